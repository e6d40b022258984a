package memcached_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

func TestURL(t *testing.T) {
	tests := []struct{ url, want string }{
		{"", "want memcached://"},
		{"localhost:11211", "want memcached://"},
		{"redis://h", "want memcached://"},
		{"memcached://", "no host"},
		{"memcached://,h", "number 1 is empty"},
		{"memcached://h1,h2,", "number 3 is empty"},
		{"memcached://h:0", "port 0"},
		{"memcached://h:99999", "port 99999"},
		{"memcached://h,h:11211", "given twice"},
		{"memcached://h/0", "nothing may follow the hosts"},
		{"memcached://ada:s3cret@h", "no login"},
		{"memcached://s3cret@h", "no login"},
		{"memcached://ada:s3cret#@h", "%23"},
		{"memcached://ada:s3cret/x@h", "%40"},
		{"memcached://h?prefx=a", `option "prefx" unknown, did you mean "prefix"?`},
		{"memcached://h?weight=1", `did you mean "weights"?`},
		{"memcached://h?prefix=a&prefix=b", "prefix is given 2 times"},
		{"memcached://h?prefix=", "want 1 to 64 letters"},
		{"memcached://h?prefix=a%0d%0aflush_all", "want 1 to 64 letters"},
		{"memcached://h?prefix=a%20b", "want 1 to 64 letters"},
		{"memcached://h?prefix=" + strings.Repeat("a", 65), "want 1 to 64 letters"},
		{"memcached://h?hash=ketma", "did you mean ketama?"},
		{"memcached://h1,h2?weights=1", "1 weights for 2 servers"},
		{"memcached://h1,h2?weights=1,0", `"0": want a number from 1 to 1000`},
		{"memcached://h1,h2?weights=1,2&hash=modula", "only hash=ketama has weights"},
		{"memcached://h?conns=0", "from 1 to 1024"},
		{"memcached://h?timeout=3", "such as 10ms"},
		{"memcached://h?timeout=2h", "want a time from 10ms to 1m"},
		{"memcached://h?grace=0s", "want a time from 5s to 24h"},
		{"memcached://h?max_bytes=1", "from 1024 to"},
		{"memcached://h?copies=2", "needs a second server"},
		{"memcached://h1,h2?copies=3", "from 1 to 2"},
		{"memcached://h?x=%zz", "malformed"},
	}
	for _, tt := range tests {
		_, err := memcached.Open(t.Context(), tt.url, quiet)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%s) = %v, want an error that says %q", tt.url, err, tt.want)
			continue
		}
		if errors.Is(err, driver.ErrUnavailable) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Open(%s) = %v, want it found wrong without asking a server, and the password not shown", tt.url, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	noCAS := testserver.Memcached(t, testserver.MemcachedOptions{Args: []string{"-C"}})
	tests := []struct {
		name, url   string
		want        string
		unavailable bool
	}{
		{"nobody listens", "memcached://" + testserver.FreeAddr(t), "is memcached running there?", true},
		{"no such host", "memcached://no-such-host.invalid", `host "no-such-host.invalid" cannot be resolved`, true},
		{"not memcached", "memcached://" + testserver.Answer(t, "HTTP/1.1 400 Bad Request\r\n\r\n"), "its answer is not one of memcached's", true},
		{"closes at once", "memcached://" + testserver.Answer(t, ""), "is this memcached?", true},
		{"too many connections", "memcached://" + testserver.Answer(t, "ERROR Too many open connections\r\n"), "Too many open connections", true},
		{"no CAS", "memcached://" + noCAS.Addr, "start it without -C", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err := memcached.Open(ctx, tt.url, quiet)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open(%s) = %v, want one line that says %q", tt.url, err, tt.want)
			}
			if errors.Is(err, driver.ErrUnavailable) != tt.unavailable {
				t.Errorf("Open(%s) = %v, matches ErrUnavailable: %v, want %v", tt.url, err, !tt.unavailable, tt.unavailable)
			}
		})
	}
}

func TestOpenHeedsItsContext(t *testing.T) {
	srv := testserver.Memcached(t)
	srv.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := memcached.Open(ctx, "memcached://"+srv.Addr, quiet)
	if d := time.Since(start); d > 200*time.Millisecond+late {
		t.Errorf("Open took %v, its deadline was 200ms", d)
	}
	wantErr(t, "Open", err, driver.ErrUnavailable)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := memcached.Open(cancelled, "memcached://"+srv.Addr, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("Open under a cancelled context = %v", err)
	}
}

// One server of three that is down does not keep an application from starting; its sessions come when it does.
func TestOpenWithAServerDown(t *testing.T) {
	srvs, url := mustServers(t, 3)
	srvs[2].Stop()
	s := mustOpen(t, url)
	if d := s.Describe(); !d.Evicts || !d.Shared || d.MaxBytes < 1<<20-1000 || d.MaxBytes > 1<<20 {
		t.Errorf("Describe = %+v", d)
	}
	for n := range 30 {
		first, _ := s.ServerOf(idOf(n))
		err := s.Save(t.Context(), idOf(n), record("ada"), 0)
		if first == 2 {
			wantErr(t, "Save on the server that is down", err, driver.ErrUnavailable)
		} else if err != nil {
			t.Errorf("Save on another = %v", err)
		}
	}
	srvs[2].Restart()
	for n := range 30 {
		if first, _ := s.ServerOf(idOf(n)); first == 2 {
			eventually(t, "after it is up", func() error { return s.Save(t.Context(), idOf(n), record("ada"), 0) })
		}
	}
}

// A server without compare-and-swap that was down when the store was opened is found out by its answers.
func TestServerWithoutCAS(t *testing.T) {
	noCAS := testserver.Memcached(t, testserver.MemcachedOptions{Args: []string{"-C"}})
	_, url := mustServers(t, 1)
	noCAS.Stop()
	s := mustOpen(t, url+","+noCAS.Addr)
	noCAS.Restart()
	id := firstOn(s, 1, 1)[0]
	eventually(t, "a save", func() error { return s.Save(t.Context(), id, record("ada"), 0) })
	_, err := s.Load(t.Context(), id)
	wantErr(t, "Load", err, driver.ErrUnavailable)
	if err != nil && !strings.Contains(err.Error(), "without -C") {
		t.Errorf("Load = %v, want it to say why", err)
	}
}
