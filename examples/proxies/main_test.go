package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// Every configuration of this folder, as it is but for addresses and files, in the real nginx or HAProxy, in front of two
// application servers over one Redis: who is logged in stays so wherever a request goes, and when a server ends.
func TestBehindProxies(t *testing.T) {
	redis := testserver.Redis(t)
	files := testserver.NewCertificates(t)
	for _, c := range []struct {
		file   string
		header string // in which the token is passed
		cookie string // in which the client has it
		sticky bool   // once it has one
	}{
		{"nginx-session-header.conf", "X-Session-Id", "sessionid", false},
		{"nginx-ip-hash.conf", "", "__Host-Http-session", true},
		{"nginx-hash-cookie.conf", "", "__Host-Http-session", true},
		{"haproxy-cookie.cfg", "", "__Host-Http-session", true},
		{"haproxy-stick-table.cfg", "", "__Host-Http-session", true},
	} {
		t.Run(c.file, func(t *testing.T) {
			apps := map[string]*httptest.Server{"a": mustApp(t, redis.Addr, c.header, "a"), "b": mustApp(t, redis.Addr, c.header, "b")}
			site := mustProxy(t, c.file, files, apps["a"].Listener.Addr().String(), apps["b"].Listener.Addr().String())
			ada := mustClient(t, site, files)

			seen := make(map[string]bool)
			for i := range 6 {
				server := ada.wantVisit(i+1, "")
				if i > 0 { // hashes: from the first token on
					seen[server] = true
				}
			}
			if c.sticky != (len(seen) == 1) {
				t.Errorf("one client was at %d servers, sticky %v", len(seen), c.sticky)
			}
			token := ada.token(c.cookie)
			ada.post("/login", url.Values{"user": {"ada"}})
			if ada.token(c.cookie) == token {
				t.Error("the token is the same after login")
			}
			server := ada.wantVisit(7, "ada")
			ada.wantVisit(8, "ada")

			eve := mustClient(t, site, files)
			eve.wantVisit(1, "", "X-Session-Id", ada.token(c.cookie)) // not what a proxy says
			eve.wantVisit(2, "", "X-Session-Id", ada.token(c.cookie))
			mustClient(t, site, files).wantDead(c.cookie, token)

			apps[server].CloseClientConnections()
			apps[server].Close()
			for i := range 6 {
				ada.wantVisit(9+i, "ada")
			}
			before := ada.token(c.cookie)
			ada.post("/logout", nil)
			mustClient(t, site, files).wantDead(c.cookie, before)
			ada.wantVisit(1, "")
		})
	}
}

// Each configuration has a test.
func TestAllConfigurations(t *testing.T) {
	test, err := os.ReadFile("main_test.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	nginx, _ := filepath.Glob("*.conf") // the patterns are well-formed
	haproxy, _ := filepath.Glob("*.cfg")
	if len(nginx) == 0 || len(haproxy) == 0 {
		t.Fatalf("configurations: %q, %q", nginx, haproxy)
	}
	for _, name := range slices.Concat(nginx, haproxy) {
		if !strings.Contains(string(test), `{"`+name+`"`) || !strings.Contains(string(readme), "("+name+")") {
			t.Errorf("%s is not in TestBehindProxies or not in README.md", name)
		}
	}
}

// mustApp starts an application server with a connection of its own to Redis.
func mustApp(t *testing.T, redis, header, name string) *httptest.Server {
	t.Helper()
	store, err := redisstore.Open(t.Context(), "redis://"+redis)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	h, err := handler(store, header, name)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// mustProxy runs the server that a configuration is for, and returns its URL.
func mustProxy(t *testing.T, file string, files *testserver.Certificates, apps ...string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "app.pem")
	if err := os.WriteFile(both, slices.Concat(mustRead(t, files.CertFile), mustRead(t, files.KeyFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := testserver.FreeAddr(t)
	conf := strings.NewReplacer("127.0.0.1:8443", addr, "127.0.0.1:3001", apps[0], "127.0.0.1:3002", apps[1],
		"/etc/ssl/certs/app.pem", files.CertFile, "/etc/ssl/private/app.key", files.KeyFile, "/etc/ssl/private/app.pem", both).Replace(string(b))
	if strings.HasSuffix(file, ".conf") {
		testserver.Nginx(t, testserver.NginxOptions{HTTP: []string{conf}})
	} else {
		testserver.HAProxy(t, testserver.HAProxyOptions{Frontend: []string{"http-request return status 204"}, Sections: []string{conf}})
	}
	return "https://" + addr
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client is a browser.
type client struct {
	t    *testing.T
	site *url.URL
	http *http.Client
}

func mustClient(t *testing.T, site string, files *testserver.Certificates) *client {
	t.Helper()
	u, err := url.Parse(site)
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(mustRead(t, files.CAFile))
	c := &client{t, u, &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// wantDead: a token that was renewed or ended is nobody's, and for half a minute its requests are refused.
func (c *client) wantDead(cookie, token string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), "GET", c.site.String(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: cookie, Value: token})
	res, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusConflict || len(c.http.Jar.Cookies(c.site)) > 1 {
		c.t.Errorf("an old token: %s, and cookies, want 409 and no new token", res.Status)
	}
}

// send returns the page. It fails the test if the answer is another one, or a cookie is not as it has to be.
func (c *client) send(method, path string, form url.Values, header ...string) string {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.site.String()+path, strings.NewReader(form.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", c.site.String())
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s %s: %s, %v: %s", method, path, res.Status, err, b)
	}
	if res.Header.Get("X-Session-Id") != "" {
		c.t.Error("pages can read X-Session-Id")
	}
	for _, k := range res.Cookies() {
		if !k.Secure || !k.HttpOnly || k.SameSite != http.SameSiteLaxMode || !strings.Contains(res.Header.Get("Cache-Control"), "no-store") && k.Name != "app-server" {
			c.t.Errorf("cookie %s: Secure %v, HttpOnly %v, SameSite %v, beside Cache-Control %q", k.Name, k.Secure, k.HttpOnly, k.SameSite, res.Header.Get("Cache-Control"))
		}
	}
	if method == "GET" && !slices.ContainsFunc(res.Header.Values("Vary"), func(v string) bool { return strings.Contains(v, "Cookie") }) {
		c.t.Errorf("Vary: %q, want Cookie in it", res.Header.Values("Vary"))
	}
	return string(b)
}

func (c *client) post(path string, form url.Values) {
	c.t.Helper()
	c.send("POST", path, form)
}

var page = regexp.MustCompile(`^visit (\d+) of "(.*)" at (.)\n$`)

// wantVisit returns the server that answered.
func (c *client) wantVisit(n int, user string, header ...string) (server string) {
	c.t.Helper()
	text := c.send("GET", "/", nil, header...)
	m := page.FindStringSubmatch(text)
	if m == nil || m[1] != fmt.Sprint(n) || m[2] != user {
		c.t.Fatalf("page %q, want visit %d of %q", text, n, user)
	}
	return m[3]
}

func (c *client) token(cookie string) string {
	c.t.Helper()
	for _, k := range c.http.Jar.Cookies(c.site) {
		if k.Name == cookie {
			return k.Value
		}
	}
	c.t.Fatalf("no cookie %s", cookie)
	return ""
}
