package holdfast_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast"
)

// malformed are tokens that no server issues. None may reach a store.
var malformed = map[string]string{
	"empty":              "",
	"42 characters":      strings.Repeat("A", 42),
	"44 characters":      strings.Repeat("A", 44),
	"padded":             strings.Repeat("A", 43) + "=",
	"1 MB":               strings.Repeat("A", 1<<20),
	"not canonical":      strings.Repeat("A", 42) + "B",
	"standard base64":    strings.Repeat("A", 41) + "+A",
	"slash":              strings.Repeat("A", 41) + "/A",
	"path":               "../../x" + strings.Repeat("A", 36),
	"escaped path":       "..%2f..%2f" + strings.Repeat("A", 33),
	"NUL":                strings.Repeat("A", 42) + "\x00",
	"CR LF":              strings.Repeat("A", 41) + "\r\n",
	"CR LF and more":     strings.Repeat("A", 43) + "\r\nSet-Cookie: a=b",
	"line feeds between": strings.Repeat("A", 20) + "\n" + strings.Repeat("A", 22),
	"star":               "*",
	"stars":              strings.Repeat("*", 43),
	"tag":                "{tag}" + strings.Repeat("A", 38),
	"quoted":             `"` + strings.Repeat("A", 43) + `"`,
	"emoji":              strings.Repeat("🦀", 10) + "AAA",
	"SQL":                "' OR 1=1 --" + strings.Repeat("A", 32),
	"hex":                strings.Repeat("0", 64),
}

// TestMalformedTokens is attack 4: no store call, and an answer that does not depend on the token.
func TestMalformedTokens(t *testing.T) {
	for name, token := range malformed {
		t.Run(name, func(t *testing.T) {
			var calls journal
			c := holdfast.Config{Header: "X-Auth-Token", URLParameter: "sid"}
			m := mustManager(t, tapped{mustMemory(t), calls.note}, c)
			v := newVisitor(t, m)
			for transport, r := range map[string]*http.Request{
				"cookie": v.request(context.Background()),
				"header": v.request(context.Background()),
				"URL":    v.request(context.Background()),
			} {
				switch transport {
				case "cookie":
					if r.Header.Set("Cookie", cookieName+"="+token); len(token) > 32<<10 {
						continue // refused whole, see TestOversizedCookies
					}
				case "header":
					r.Header.Set("X-Auth-Token", token)
				case "URL":
					r.URL.RawQuery = "sid=" + url.QueryEscape(token)
				}
				res := v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					wantField(t, visits, s, 0)
					_, _ = w.Write([]byte("anonymous"))
				})
				wantStatus(t, res, 200)
				wantCookies(t, res, 0)
				if ops := calls.take(); len(ops) != 0 {
					t.Errorf("by %s: store calls %v", transport, ops)
				}
			}
		})
	}
}

// TestWrongTransport is attack 3: a token counts only in a transport that is switched on.
func TestWrongTransport(t *testing.T) {
	tests := []struct {
		name   string
		config holdfast.Config
		put    func(r *http.Request, token string)
		want   bool
	}{
		{"cookie", holdfast.Config{}, byCookie, true},
		{"cookie of another name", holdfast.Config{}, func(r *http.Request, token string) {
			r.Header.Set("Cookie", "session="+token+"; __Secure-session="+token+"; __host-http-session="+token)
		}, false},
		{"cookie, switched off", holdfast.Config{DisableCookie: true, Header: "X-Auth-Token"}, byCookie, false},
		{"header", holdfast.Config{Header: "X-Auth-Token"}, byHeader, true},
		{"header, other case", holdfast.Config{Header: "x-auth-TOKEN"}, byHeader, true},
		{"header, not switched on", holdfast.Config{}, byHeader, false},
		{"Authorization", holdfast.Config{Header: "X-Auth-Token"}, func(r *http.Request, token string) {
			r.Header.Set("Authorization", "Bearer "+token)
		}, false},
		{"URL", holdfast.Config{URLParameter: "sid"}, byURL, true},
		{"URL, not switched on", holdfast.Config{}, byURL, false},
		{"URL, other name", holdfast.Config{URLParameter: "token"}, byURL, false},
		{"form", holdfast.Config{URLParameter: "sid"}, func(r *http.Request, token string) {
			*r = *httptest.NewRequest("POST", site.String(), strings.NewReader("sid="+token))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}, false},
		{"path", holdfast.Config{URLParameter: "sid"}, func(r *http.Request, token string) {
			r.URL.Path = "/a;sid=" + token
		}, false},
		{"fragment", holdfast.Config{URLParameter: "sid"}, func(r *http.Request, token string) {
			r.URL.Fragment = "sid=" + token
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := mustMemory(t)
			owner := newVisitor(t, mustManager(t, store, holdfast.Config{}))
			owner.set(7)
			v := newVisitor(t, mustManager(t, store, tt.config))
			r := v.request(context.Background())
			tt.put(r, owner.token())
			v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantField(t, visits, s, map[bool]int{true: 7}[tt.want])
			})
		})
	}
}

func byCookie(r *http.Request, token string) { r.Header.Set("Cookie", cookieName+"="+token) }
func byHeader(r *http.Request, token string) { r.Header.Set("X-Auth-Token", token) }
func byURL(r *http.Request, token string)    { r.URL.RawQuery = "a=1&sid=" + token + "&b=2" }

// TestHeaderTransport: an API client sends the header, empty at first, and finds its token in the response.
func TestHeaderTransport(t *testing.T) {
	for _, disableCookie := range []bool{false, true} {
		m := mustManager(t, mustMemory(t), holdfast.Config{Header: "X-Auth-Token", DisableCookie: disableCookie})
		v := newVisitor(t, m)
		v.header.Set("X-Auth-Token", "")
		see := func(f page) string {
			res := v.visit(f)
			wantCookies(t, res, 0)
			token, sent := res.Header["X-Auth-Token"]
			if !sent {
				return "none"
			}
			wantHeader(t, res, "Cache-Control", "no-store")
			v.header.Set("X-Auth-Token", token[0])
			return token[0]
		}
		first := see(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
		if len(first) != 43 {
			t.Fatalf("the new token is %q", first)
		}
		if got := see(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, visits, s, 1) }); got != "none" {
			t.Errorf("a request that changes nothing gets a token")
		}
		login := see(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		})
		if login == first || len(login) != 43 {
			t.Errorf("after the login the token is %q", login)
		}
		if u := v.user(); u != "ada" {
			t.Errorf("user %q", u)
		}
		if got := see(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Logout(r.Context())) }); got != "" {
			t.Errorf("after the logout the header is %q, want empty", got)
		}
	}
}

// TestTwoHeaders: of two tokens neither is taken.
func TestTwoHeaders(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.set(7)
	m := mustManager(t, store, holdfast.Config{Header: "X-Auth-Token", URLParameter: "sid"})
	twice := newVisitor(t, m)
	r := twice.request(context.Background())
	r.Header["X-Auth-Token"] = []string{v.token(), v.token()}
	other := twice.request(context.Background())
	other.URL.RawQuery = "sid=" + v.token() + "&sid=" + strings.Repeat("A", 43)
	for _, r := range []*http.Request{r, other} {
		twice.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, visits, s, 0) })
	}
	if n := m.Stats().Duplicate; n != 2 {
		t.Errorf("Duplicate = %d, want 2", n)
	}
}

// TestURLTransport: a client without cookies logs in and goes on by links; no handler sees the token.
func TestURLTransport(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{URLParameter: "sid"})
	v := newVisitor(t, m)
	var link string
	see := func(query string, f page) *http.Response {
		r := httptest.NewRequest("GET", site.String()+"page?"+query, nil)
		return v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			for what, got := range map[string]string{
				"URL": r.URL.String(), "RequestURI": r.RequestURI, "form": r.FormValue("sid"), "query": r.URL.Query().Get("sid"),
			} {
				if strings.Contains(got, "sid") || what == "form" && got != "" {
					t.Errorf("%s is %q", what, got)
				}
			}
			if r.FormValue("q") != "1" && query != "" {
				t.Errorf("the query is %q", r.URL.RawQuery)
			}
			f(w, r, s)
			link = m.URL(r, "/next?a=b#top")
		})
	}
	token := func() string {
		t.Helper()
		u, err := url.Parse(link)
		must(t, err)
		got := u.Query().Get("sid")
		if u.Path != "/next" || u.Query().Get("a") != "b" || u.Fragment != "top" || u.Host != "" || len(got) != 43 {
			t.Fatalf("link %q", link)
		}
		return got
	}
	res := see("", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {})
	if link != "/next?a=b#top" {
		t.Errorf("a visitor without a session gets the link %q", link)
	}
	wantHeader(t, res, "Referrer-Policy", "")
	res = see("", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
	first := token()
	wantHeader(t, res, "Referrer-Policy", "no-referrer")
	wantHeader(t, res, "Cache-Control", "no-store")
	see("q=1&sid="+first, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 1)
		must(t, s.Login(r.Context(), "ada"))
	})
	second := token()
	if second == first {
		t.Error("the token is the same after the login")
	}
	for n := range 20 {
		res = see("sid="+second+"&q=1", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Set(s, n+2))
			if s.User() != "ada" {
				t.Errorf("user %q", s.User())
			}
		})
		if token() != second {
			t.Fatal("the token changed")
		}
		wantCookies(t, res, 0)
		wantHeader(t, res, "Referrer-Policy", "no-referrer")
		wantHeader(t, res, "Cache-Control", "no-store")
	}
	see("q=1&sid="+second, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Logout(r.Context())) })
	if link != "/next?a=b#top" {
		t.Errorf("after the logout the link is %q", link)
	}
	see("q=1&sid="+second, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		if s.User() != "" {
			t.Errorf("user %q after the logout", s.User())
		}
	})
}

// TestURLTokenInAnAddressThatUsesNoSession: what the page links to and loads must not get the token as Referer either,
// also where a cookie carries a token beside it, or the answer is an error.
func TestURLTokenInAnAddressThatUsesNoSession(t *testing.T) {
	down := false
	store := tapped{mustMemory(t), func(context.Context, storeCall) error {
		if down {
			return errDown
		}
		return nil
	}}
	m := mustManager(t, store, holdfast.Config{URLParameter: "sid"})
	v := newVisitor(t, m)
	v.set(1)
	token := v.token()
	v.path = "/page?sid=" + token
	check := func(what string, res *http.Response) {
		t.Helper()
		if got := res.Header.Get("Referrer-Policy"); got != "no-referrer" {
			t.Errorf("%s: Referrer-Policy %q", what, got)
		}
		if got := res.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control %q", what, got)
		}
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		_, _ = w.Write([]byte("hello"))
	}
	check("no session used", v.handle(v.request(context.Background()), hello))
	check("cookie beside it", v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { hello(w, r) }))
	check("failed commit", v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, visits.Set(s, 2))
		down = true
		hello(w, r)
	}))
}

// TestManagerURL: the token goes to this site alone, however an address is written. What browsers make of each one is
// in the WHATWG URL standard: they take \ for /, skip extra slashes and ignore tabs.
func TestManagerURL(t *testing.T) {
	tests := []struct {
		path string
		want string // with $ for the token; "" for unchanged
	}{
		{"/", "/?sid=$"},
		{"/a?b=c", "/a?b=c&sid=$"},
		{"/a?b=c#d", "/a?b=c&sid=$#d"},
		{"/a#d", "/a?sid=$#d"},
		{"a/b", "a/b?sid=$"},
		{"../a", "../a?sid=$"},
		{"?b=c", "?b=c&sid=$"},
		{"/a%2Fb", "/a%2Fb?sid=$"},
		{"/a//b", "/a//b?sid=$"},
		{"/%2F/evil.example", "/%2F/evil.example?sid=$"},
		{"https://www.example.com/a", "https://www.example.com/a?sid=$"},
		{"//www.example.com/a", "//www.example.com/a?sid=$"},
		{"https://evil.example/a", ""},
		{"https://www.example.com.evil.example/a", ""},
		{"https://www.example.com@evil.example/a", ""},
		{"https://www.example.com:444/a", ""},
		{"https:/evil.example/a", ""},
		{"https:///evil.example/a", ""},
		{"http:/evil.example/a", ""},
		{"http:///evil.example/a", ""},
		{"https:evil.example/a", ""},
		{`https:\\evil.example/a`, ""},
		{`https:/\evil.example/a`, ""},
		{"//evil.example/a", ""},
		{"///evil.example/a", ""},
		{"////evil.example/a", ""},
		{`/\evil.example/a`, ""},
		{`\/evil.example/a`, ""},
		{`\\evil.example/a`, ""},
		{"/\t/evil.example/a", ""},
		{"\t//evil.example/a", ""},
		{"/\n/evil.example", ""},
		{"/?sid=given", ""}, // as when URL is called twice
		{"javascript:alert(1)", ""},
		{"mailto:ada@example.com", ""},
		{"ftp://www.example.com/a", ""},
		{"data:text/html,a", ""},
		{"%zz", ""},
	}
	m := mustManager(t, mustMemory(t), holdfast.Config{URLParameter: "sid"})
	v := newVisitor(t, m)
	for _, tt := range tests {
		v.visitWith(httptest.NewRequest("GET", site.String(), nil), func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Set(s, 1))
			probe, err := url.Parse(m.URL(r, "/"))
			must(t, err)
			want := strings.ReplaceAll(tt.want, "$", probe.Query().Get("sid"))
			if want == "" {
				want = tt.path
			}
			if got := m.URL(r, tt.path); got != want {
				t.Errorf("URL(%q) = %q, want %q", tt.path, got, want)
			}
		})
	}
	// A leading space is dropped by browsers.
	v.visitWith(httptest.NewRequest("GET", site.String(), nil), func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, visits.Set(s, 1))
		if got := m.URL(r, " //evil.example/"); strings.HasPrefix(strings.TrimSpace(got), "//") && got != " //evil.example/" {
			t.Errorf("URL = %q", got)
		}
	})
}

// TestManagerURLForClientsWithCookies: who brings the token in a cookie needs none in addresses, not even at the login.
func TestManagerURLForClientsWithCookies(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{URLParameter: "sid"})
	v := newVisitor(t, m)
	v.set(1)
	for what, f := range map[string]page{
		"read": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {},
		"login": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		},
		"logout": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Logout(r.Context())) },
	} {
		res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			f(w, r, s)
			if got := m.URL(r, "/a"); got != "/a" {
				t.Errorf("%s: URL = %q", what, got)
			}
		})
		wantHeader(t, res, "Referrer-Policy", "")
		if what == "logout" {
			v.set(1)
		}
	}
}

func TestManagerURLSwitchedOff(t *testing.T) {
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, visits.Set(s, 1))
		if got := v.m.URL(r, "/a"); got != "/a" {
			t.Errorf("URL = %q", got)
		}
	})
}
