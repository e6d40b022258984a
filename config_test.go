package holdfast_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

func TestConfigValidate(t *testing.T) {
	type config = holdfast.Config
	type cookie = holdfast.Cookie
	tests := []struct {
		name string
		c    config
		want []string // part of each line of the error, in order
	}{
		{"zero", config{}, nil},
		{"short lifetime shortens the idle timeout", config{Lifetime: time.Minute}, nil},
		{"one second", config{IdleTimeout: time.Second, Lifetime: time.Second}, nil},
		{"lifetime", config{Lifetime: time.Millisecond}, []string{"Lifetime is 1ms: want at least 1s", "IdleTimeout is 1ms"}},
		{"negative lifetime", config{Lifetime: -time.Hour, IdleTimeout: time.Minute}, []string{"Lifetime is -1h0m0s", "IdleTimeout is 1m0s"}},
		{"idle timeout", config{IdleTimeout: -1}, []string{"IdleTimeout is -1ns: want 1s to Lifetime (12h0m0s)"}},
		{"idle beyond lifetime", config{IdleTimeout: 2 * time.Hour, Lifetime: time.Hour}, []string{"IdleTimeout is 2h0m0s: want 1s to Lifetime (1h0m0s)"}},
		{"max bytes", config{MaxBytes: 1023}, []string{"MaxBytes is 1023: want at least 1024"}},
		{"negative max bytes", config{MaxBytes: -1}, []string{"MaxBytes is -1"}},
		{"store timeout", config{StoreTimeout: -time.Second}, []string{"StoreTimeout is -1s"}},
		{"no transport", config{DisableCookie: true}, []string{"DisableCookie leaves no way to carry the token: set Header, URLParameter or Bearer"}},
		{"header only", config{DisableCookie: true, Header: "X-Auth-Token"}, nil},
		{"URL only", config{DisableCookie: true, URLParameter: "sid"}, nil},
		{"header with a meaning", config{Header: "authorization"}, []string{"Header is Authorization, which has a meaning of its own"}},
		{"header cookie", config{Header: "COOKIE"}, []string{"Header is Cookie"}},
		{"header with a space", config{Header: "X Auth"}, []string{`Header "X Auth" is not a header name`}},
		{"header with a line break", config{Header: "X-A\r\nB"}, []string{`Header "X-A\r\nB" is not a header name`}},
		{"parameter", config{URLParameter: "a=b"}, []string{`URLParameter "a=b" is not a plain name`}},
		{"short key", config{ValueKeys: [][]byte{testKey(1), testKey(2)[:16]}}, []string{"ValueKeys[1] has 16 bytes: want 32 random ones"}},
		{"empty key", config{ValueKeys: [][]byte{{}}}, []string{"ValueKeys[0] has 0 bytes"}},
		{"weak key", config{ValueKeys: [][]byte{make([]byte, 32)}}, []string{"ValueKeys[0] is one byte repeated"}},
		{"weak key of high bytes", config{ValueKeys: [][]byte{bytes.Repeat([]byte{0xff}, 32)}}, []string{"ValueKeys[0] is one byte repeated"}},
		{"cookie name", config{Cookie: cookie{Name: "a b"}}, []string{`Cookie.Name "a b" is not a cookie name`}},
		{"cookie name with =", config{Cookie: cookie{Name: "a=b"}}, []string{`Cookie.Name "a=b" is not a cookie name`}},
		{"prefix in the name", config{Cookie: cookie{Name: "__Host-session"}}, []string{"leave it out"}},
		{"long name", config{Cookie: cookie{Name: strings.Repeat("n", 257)}}, []string{"longer than browsers keep"}},
		{"domain", config{Cookie: cookie{Domain: "example.com; Path=/"}}, []string{"Cookie.Domain"}},
		{"domain with an underscore", config{Cookie: cookie{Domain: "ex_ample.com"}}, []string{"Cookie.Domain"}},
		{"domain with a port", config{Cookie: cookie{Domain: "example.com:80"}}, []string{"Cookie.Domain"}},
		{"domain that is a URL", config{Cookie: cookie{Domain: "https://example.com"}}, []string{"Cookie.Domain"}},
		{"good domains", config{Cookie: cookie{Domain: ".example.com"}}, nil},
		{"path", config{Cookie: cookie{Path: "app"}}, []string{`Cookie.Path "app": want a path that starts with /`}},
		{"path with attributes", config{Cookie: cookie{Path: "/; Domain=a"}}, []string{"Cookie.Path"}},
		{"path with a control character", config{Cookie: cookie{Path: "/a\x01"}}, []string{"Cookie.Path"}},
		{"partitioned", config{Cookie: cookie{Partitioned: true}}, []string{"Partitioned needs SameSite"}},
		{"partitioned, SameSite=None", config{Cookie: cookie{Partitioned: true, SameSite: http.SameSiteNoneMode}}, nil},
		{"all at once", config{MaxBytes: 1, StoreTimeout: -1, Cookie: cookie{Name: " ", Path: "x"}},
			[]string{"MaxBytes", "StoreTimeout", "Cookie.Name", "Cookie.Path"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Validate()
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("Validate = %v, want %d errors", err, len(tt.want))
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], "holdfast config: ") || !strings.Contains(lines[i], want) {
					t.Errorf("line %d is %q, want %q in it", i, lines[i], want)
				}
			}
			if _, newErr := holdfast.New(mustMemory(t), tt.c); (newErr == nil) != (err == nil) {
				t.Errorf("New = %v, Validate = %v", newErr, err)
			}
			for _, k := range tt.c.ValueKeys {
				if err != nil && len(k) > 0 && strings.Contains(err.Error(), string(k)) {
					t.Error("the error shows a key")
				}
			}
		})
	}
}

func TestNewNeedsAStore(t *testing.T) {
	if _, err := holdfast.New(nil, holdfast.Config{}); err == nil || !strings.Contains(err.Error(), "memory.New()") {
		t.Errorf("New without a store: %v, want an error that says what to do", err)
	}
}

// described is a store with a limit of its own.
type described struct {
	tapped
	d driver.Description
}

func (s described) Describe() driver.Description { return s.d }

func TestCapabilities(t *testing.T) {
	mem := mustMemory(t)
	d := driver.Description{Name: "small", Shared: true, MaxBytes: 5000}
	small := described{tapped{Store: mem}, d}
	for _, tt := range []struct {
		name  string
		store driver.Store
		max   int
		want  holdfast.Capabilities
	}{
		{"memory", mem, 0, holdfast.Capabilities{Store: mem.Describe(), Merge: true, Watch: true, List: true, Sweep: true, Stat: true, Revoke: true, MaxBytes: 1 << 20}},
		{"plain", tapped{Store: mem}, 0, holdfast.Capabilities{Revoke: true, MaxBytes: 1 << 20}},
		{"toucher", tappedToucher{tappedMerger{tapped{Store: mem}}}, 0, holdfast.Capabilities{Merge: true, Touch: true, Revoke: true, MaxBytes: 1 << 20}},
		{"small", small, 0, holdfast.Capabilities{Store: d, Revoke: true, MaxBytes: 5000}},
		{"configured smaller", small, 2000, holdfast.Capabilities{Store: d, Revoke: true, MaxBytes: 2000}},
	} {
		got := mustManager(t, tt.store, holdfast.Config{MaxBytes: tt.max}).Capabilities()
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestConfigIsCopied: what the caller does to a key afterwards changes nothing.
func TestConfigIsCopied(t *testing.T) {
	store := mustMemory(t)
	k := testKey(1)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{ValueKeys: [][]byte{k}}))
	clear(k)
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, owner.Set(s, secret)) })
	v.m = mustManager(t, store, holdfast.Config{ValueKeys: [][]byte{testKey(1)}})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, owner, s, secret) })
}
