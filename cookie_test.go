package holdfast_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
)

// TestSetCookie is the table of headers that each setting sends: for a new token, for a login that is remembered, and
// at the logout. $ stands for the token.
func TestSetCookie(t *testing.T) {
	localhost := func(r *http.Request) { r.TLS, r.Host = nil, "localhost:8080" }
	tests := []struct {
		name    string
		cookie  holdfast.Cookie
		request func(*http.Request)
		want    [3]string
	}{
		{"default", holdfast.Cookie{}, nil, [3]string{
			"__Host-Http-session=$; Path=/; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
		{"behind a proxy that ends TLS", holdfast.Cookie{}, func(r *http.Request) { r.TLS = nil }, [3]string{
			"__Host-Http-session=$; Path=/; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
		{"name", holdfast.Cookie{Name: "id", SameSite: http.SameSiteStrictMode}, nil, [3]string{
			"__Host-Http-id=$; Path=/; HttpOnly; Secure; SameSite=Strict",
			"__Host-Http-id=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Strict",
			"__Host-Http-id=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Strict",
		}},
		{"parent domain", holdfast.Cookie{Domain: "example.com"}, nil, [3]string{
			"__Secure-session=$; Path=/; Domain=example.com; HttpOnly; Secure; SameSite=Lax",
			"__Secure-session=$; Path=/; Domain=example.com; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"__Secure-session=; Path=/; Domain=example.com; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
		{"path", holdfast.Cookie{Path: "/app"}, nil, [3]string{
			"__Secure-session=$; Path=/app; HttpOnly; Secure; SameSite=Lax",
			"__Secure-session=$; Path=/app; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"__Secure-session=; Path=/app; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
		{"no prefix", holdfast.Cookie{NoPrefix: true, Name: "JSESSIONID"}, nil, [3]string{
			"JSESSIONID=$; Path=/; HttpOnly; Secure; SameSite=Lax",
			"JSESSIONID=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"JSESSIONID=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
		{"partitioned", holdfast.Cookie{SameSite: http.SameSiteNoneMode, Partitioned: true}, nil, [3]string{
			"__Host-Http-session=$; Path=/; HttpOnly; Secure; SameSite=None; Partitioned",
			"__Host-Http-session=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=None; Partitioned",
			"__Host-Http-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=None; Partitioned",
		}},
		{"plain localhost", holdfast.Cookie{AllowPlainLocalhost: true}, localhost, [3]string{
			"session=$; Path=/; HttpOnly; SameSite=Lax",
			"session=$; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax",
			"session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax",
		}},
		{"plain localhost, not allowed", holdfast.Cookie{}, localhost, [3]string{
			"__Host-Http-session=$; Path=/; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=$; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
			"__Host-Http-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
		}},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			m := mustManager(t, mustMemory(t), holdfast.Config{Cookie: tt.cookie})
			cookie := ""
			for i, page := range []page{
				func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) },
				func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					wantField(t, visits, s, 1)
					must(t, s.Login(r.Context(), "ada", holdfast.LoginOptions{Persistent: true}))
				},
				func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					if s.User() != "ada" {
						t.Errorf("user %q", s.User())
					}
					must(t, s.Logout(r.Context()))
				},
			} {
				v := newVisitor(t, m)
				r := v.request(context.Background())
				r.Header.Set("Cookie", cookie)
				if tt.request != nil {
					tt.request(r)
				}
				lines := v.visitWith(r, page).Header["Set-Cookie"]
				if len(lines) != 1 {
					t.Fatalf("%s: Set-Cookie %q", tt.name, lines)
				}
				var rest string
				cookie, rest, _ = strings.Cut(lines[0], ";")
				name, token, _ := strings.Cut(cookie, "=")
				got := name + "=" + map[bool]string{true: "$"}[token != ""] + ";" + rest
				if got != tt.want[i] {
					t.Errorf("%s, step %d: Set-Cookie\n%s, want\n%s", tt.name, i, got, tt.want[i])
				}
				if len(lines[0]) > 4096 {
					t.Errorf("Set-Cookie of %d bytes", len(lines[0]))
				}
			}
		})
	}
}

// TestPlainLocalhostIsNarrow: only a plain request whose Host is this machine gets a cookie without Secure.
func TestPlainLocalhostIsNarrow(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{Cookie: holdfast.Cookie{AllowPlainLocalhost: true}})
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:80": true, "127.0.0.1": true, "127.0.0.1:8080": true, "127.8.9.1": true, "[::1]:80": true, "[::1]": true,
		"localhost.example.com": false, "notlocalhost": false, "127.0.0.1.example.com": false, "example.com": false, "10.0.0.1": false, "": false, "0.0.0.0": false,
	} {
		for _, secure := range []bool{false, true} {
			v := newVisitor(t, m)
			r := v.request(context.Background())
			if r.Host = host; !secure {
				r.TLS = nil
			} else {
				r.TLS = new(tls.ConnectionState)
			}
			res := v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
			plain := !strings.Contains(res.Header.Get("Set-Cookie"), "; Secure")
			if plain != (want && !secure) {
				t.Errorf("Host %q, TLS %v: Set-Cookie %q", host, secure, res.Header.Get("Set-Cookie"))
			}
		}
	}
}

// TestCookieFor gives each tenant its own cookie.
func TestCookieFor(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{CookieFor: func(r *http.Request) holdfast.Cookie {
		switch r.Host {
		case "a.example.com":
			return holdfast.Cookie{Name: "a"}
		case "bad.example.com":
			return holdfast.Cookie{Name: "a b"}
		}
		return holdfast.Cookie{Domain: "example.org"}
	}})
	see := func(host, cookie string, f page) *http.Response {
		v := newVisitor(t, m)
		r := v.request(context.Background())
		r.Host = host
		r.Header.Set("Cookie", cookie)
		return v.visitWith(r, f)
	}
	set := func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) }
	a := see("a.example.com", "", set).Header.Get("Set-Cookie")
	b := see("www.example.org", "", set).Header.Get("Set-Cookie")
	if !strings.HasPrefix(a, "__Host-Http-a=") || !strings.HasPrefix(b, "__Secure-session=") || !strings.Contains(b, "; Domain=example.org;") {
		t.Errorf("Set-Cookie %q and %q", a, b)
	}
	a, _, _ = strings.Cut(a, ";")
	see("a.example.com", a, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, visits, s, 1) })
	see("www.example.org", a, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, visits, s, 0) })
	res := see("bad.example.com", a, func(http.ResponseWriter, *http.Request, *holdfast.Session) {
		t.Error("a request with settings that cannot be used has a session")
	})
	wantStatus(t, res, 500)
	wantCookies(t, res, 0)
}

// TestTwoCookiesOfOneName is attack 21: whichever comes first, neither is taken, it is counted, and the browser drops
// both variants, so that the user is not locked out.
func TestTwoCookiesOfOneName(t *testing.T) {
	store := mustMemory(t)
	for _, c := range []holdfast.Cookie{{}, {Domain: "example.com"}} {
		m := mustManager(t, store, holdfast.Config{Cookie: c})
		name := map[bool]string{true: cookieName, false: "__Secure-session"}[c.Domain == ""]
		mine := func() string {
			v := newVisitor(t, m)
			res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				must(t, s.Login(r.Context(), "ada"))
			})
			return res.Cookies()[0].Value
		}
		planted := mine()
		for what, values := range map[string][]string{
			"mine first": {mine(), planted}, "planted first": {planted, mine()}, "one malformed": {mine(), "x"}, "the same": {planted, planted},
		} {
			for _, lines := range [][]string{
				{fmt.Sprintf("%s=%s; a=b; %[1]s=%s", name, values[0], values[1])},
				{name + "=" + values[0], name + "=" + values[1]}, // two header lines
			} {
				before := m.Stats().Duplicate
				v := newVisitor(t, m)
				r := v.request(context.Background())
				r.Header["Cookie"] = lines
				res := v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					if s.User() != "" {
						t.Errorf("%s: logged in as %q", what, s.User())
					}
				})
				wantStatus(t, res, 200)
				wantHeader(t, res, "Cache-Control", "no-store")
				want := []string{
					name + "=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
					name + "=; Path=/; Domain=www.example.com; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
					name + "=; Path=/; Domain=example.com; Max-Age=0; HttpOnly; Secure; SameSite=Lax",
				}
				if d := cmp.Diff(want, res.Header["Set-Cookie"]); d != "" {
					t.Errorf("%s: Set-Cookie (-want +got):\n%s", what, d)
				}
				if n := m.Stats().Duplicate; n != before+1 {
					t.Errorf("%s: counted %d times", what, n-before)
				}

				// Who logs in there has one cookie afterwards: that of the login.
				r = v.request(context.Background())
				r.Header["Cookie"] = lines
				res = v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					must(t, s.Login(r.Context(), "ada"))
				})
				kept := 0
				for i, line := range res.Header["Set-Cookie"] {
					if !strings.Contains(line, "Max-Age=0") {
						kept++
						if i != len(res.Header["Set-Cookie"])-1 {
							t.Errorf("%s: the login's cookie is followed by one that may drop it: %q", what, res.Header["Set-Cookie"])
						}
					}
				}
				if kept != 1 || len(res.Header["Set-Cookie"]) != 3 {
					t.Errorf("%s: Set-Cookie at the login %q", what, res.Header["Set-Cookie"])
				}
			}
		}
	}
}

// TestOversizedCookies is attack 22: a header that cannot be trusted whole is an error that says so, not a logout.
func TestOversizedCookies(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	v := newVisitor(t, m)
	v.set(1)
	own := cookieName + "=" + v.token()
	tests := []struct {
		name  string
		lines []string
		want  int
	}{
		{"3000 cookies", []string{strings.Repeat("a=;", 2999) + own}, 200},
		{"3001 cookies", []string{strings.Repeat("a=;", 3000) + own}, 431},
		{"3001 cookies, own first", []string{own + strings.Repeat(";a=", 3000)}, 431},
		{"3001 cookies on three lines", []string{strings.Repeat("a=;", 1500) + "a=", strings.Repeat("a=;", 1498) + "a=", own}, 431},
		{"32 KB", []string{own + "; a=" + strings.Repeat("x", 32<<10-len(own)-4)}, 200},
		{"64 KB cookie", []string{own + "; a=" + strings.Repeat("x", 64<<10)}, 431},
		{"64 KB session cookie", []string{cookieName + "=" + strings.Repeat("x", 64<<10)}, 431},
		{"64 KB on many lines", append(strings.Split(strings.Repeat("a="+strings.Repeat("x", 1000)+"\n", 64), "\n"), own), 431},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := m.Stats().Oversized
			r := newVisitor(t, m).request(context.Background())
			r.Header["Cookie"] = tt.lines
			res := newVisitor(t, m).visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantField(t, visits, s, 1)
			})
			wantStatus(t, res, tt.want)
			wantCookies(t, res, 0)
			if n := m.Stats().Oversized - before; n != uint64(map[int]int{431: 1}[tt.want]) {
				t.Errorf("counted %d times", n)
			}
		})
	}
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := m.Get(r); err != nil {
				m.Error(w, r, err)
			}
		})))
		r, err := http.NewRequest("GET", sv.URL, nil)
		must(t, err)
		r.Header.Set("Cookie", own+"; a="+strings.Repeat("x", 64<<10))
		res, _ := sv.do(t, r)
		wantStatus(t, res, 431)
	})
}

// TestCookieThroughHTTP: cookies survive both protocols, HTTP/2 with each in a field of its own.
func TestCookieThroughHTTP(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err != nil {
				m.Error(w, r, err)
				return
			}
			n, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
			if err != nil {
				m.Error(w, r, err)
				return
			}
			http.SetCookie(w, &http.Cookie{Name: fmt.Sprint("c", n), Value: "v"})
			_, _ = fmt.Fprint(w, n)
		})))
		for n := range 5 {
			res, body := sv.get(t, "/")
			wantStatus(t, res, 200)
			if body != fmt.Sprint(n+1) {
				t.Errorf("visit %d shows %s", n+1, body)
			}
		}
	})
}

// TestClearSiteData is sent at the logout alone, and only when asked for.
func TestClearSiteData(t *testing.T) {
	for _, on := range []bool{false, true} {
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{ClearSiteData: on}))
		res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		})
		wantHeader(t, res, "Clear-Site-Data", "")
		res = v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Logout(r.Context())) })
		wantHeader(t, res, "Clear-Site-Data", map[bool]string{true: `"cookies", "storage"`}[on])
	}
}

// TestLogoutAlwaysClears: also where the token is unknown, or there is none.
func TestLogoutAlwaysClears(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	for _, cookie := range []string{"", cookieName + "=" + strings.Repeat("A", 43), cookieName + "=x"} {
		r := httptest.NewRequest("POST", site.String(), nil)
		r.Header.Set("Cookie", cookie)
		res := newVisitor(t, m).visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Logout(r.Context()))
		})
		wantCookies(t, res, 1)
		if c := res.Cookies()[0]; c.MaxAge != -1 || c.Value != "" {
			t.Errorf("cookie %v", c)
		}
	}
}
