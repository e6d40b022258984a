package browsertest

import (
	"crypto/tls"
	"fmt"
	"html/template"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/holdfast-sessions/holdfast"
)

// visits is what the site counts.
var visits = holdfast.NewField[int]("visits")

// site is an application for clients without cookies: all its links, forms and redirects go through Manager.URL, also
// those to another site.
type site struct {
	application
	other string // another site
}

var home = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><title>site</title>
<link rel="icon" href="data:,">
<p>visits <span id="visits">{{.Visits}}</span> user <span id="user">{{.User}}</span>
<p><a id="link" href="{{.Visit}}">visit</a> <a id="redirect" href="{{.Redirect}}">visit and come back</a>
<form method="post" action="{{.Visit}}"><button id="post">visit</button></form>
<form method="post" action="{{.Enter}}"><input name="user" value="anna"><button id="enter">log in</button></form>
<form method="post" action="{{.Leave}}"><button id="leave">log out</button></form>
{{range $i, $href := .Others}}<a id="other{{$i}}" {{$href}}>another site</a>
{{end}}<form method="post" action="{{.Other}}"><button id="post-other">send to another site</button></form>
<img src="{{.Other}}/image"><script src="{{.Other}}/script"></script>`))

func (a site) home(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	n, err := visits.Get(s)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	data := map[string]any{
		"Visits": n, "User": s.User(), "Other": a.m.URL(r, a.other),
		"Visit": a.m.URL(r, "/visit"), "Redirect": a.m.URL(r, "/redirect?to=/home"),
		"Enter": a.m.URL(r, "/enter"), "Leave": a.m.URL(r, "/leave"),
	}
	var others []template.HTMLAttr // so that the template leaves the address as it is written
	for _, address := range a.elsewhere() {
		others = append(others, template.HTMLAttr(`href="`+template.HTMLEscapeString(a.m.URL(r, address))+`"`))
	}
	data["Others"] = others
	var page strings.Builder
	if err := home.Execute(&page, data); err != nil {
		return err
	}
	_, err = fmt.Fprint(w, page.String())
	return err
}

// elsewhere are ways to write the address of the other site, as browsers understand them.
func (a site) elsewhere() []string {
	host := strings.TrimPrefix(a.other, "https://")
	return []string{
		a.other, "//" + host, `/\` + host, `\\` + host, `///` + host, `https:\\` + host, "https:///" + host, "/\t/" + host,
	}
}

func (a site) visit(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if _, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil }); err != nil {
		return err
	}
	if r.Method == http.MethodGet && r.URL.Path == "/visit" {
		return a.home(w, r, s)
	}
	return a.toHome(w, r)
}

func (a site) toHome(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, a.m.URL(r, "/home"), http.StatusSeeOther)
	return nil
}

func (a site) enter(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if err := s.Login(r.Context(), r.PostFormValue("user")); err != nil {
		return err
	}
	return a.toHome(w, r)
}

func (a site) leave(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if err := s.Logout(r.Context()); err != nil {
		return err
	}
	return a.toHome(w, r)
}

// foreign is another site, which remembers what browsers send it.
type foreign struct {
	url string

	mu sync.Mutex

	// mu guards the field below
	requests []*http.Request
}

func startForeign(t testing.TB) *foreign {
	f := &foreign{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/favicon.ico" { // asked for by the site's own page
			f.mu.Lock()
			f.requests = append(f.requests, r)
			f.mu.Unlock()
		}
		w.Header().Set("Content-Type", "text/javascript")
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{certificate().Certificate}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.url = "https://www.other.test:" + u.Port()
	return f
}

// text is all that the site got, as it would log it.
func (f *foreign) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, r := range f.requests {
		fmt.Fprintln(&b, r.Method, r.URL, r.Header)
	}
	return b.String()
}

// count returns how many requests came, and how many said from where.
func (f *foreign) count() (all, withReferer int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if all++; r.Header["Referer"] != nil {
			withReferer++
		}
	}
	return all, withReferer
}

const urlParameter = "sid"

func startSite(t testing.TB, other string) *fleet {
	t.Helper()
	return startFleet(t, setup{
		config: holdfast.Config{URLParameter: urlParameter},
		routes: func(m *holdfast.Manager, mux *http.ServeMux) {
			a := site{application{m}, other}
			mux.HandleFunc("GET /home", a.with(a.home))
			mux.HandleFunc("/visit", a.with(a.visit))
			mux.HandleFunc("GET /redirect", a.with(a.visit))
			mux.HandleFunc("POST /enter", a.with(a.enter))
			mux.HandleFunc("POST /leave", a.with(a.leave))
		},
		// A page that is told not to send a Referer sends "Origin: null" with its forms.
		wrap: http.NewCrossOriginProtection().Handler,
	})
}

// wantShown checks what a page of the site shows.
func wantShown(b *tab, visits int, user string) {
	b.t.Helper()
	got := eval[string](b, `document.getElementById("visits").innerText + " " + document.getElementById("user").innerText`)
	if want := fmt.Sprintf("%d %s", visits, user); got != want {
		b.t.Errorf("page shows visits and user %q, want %q", got, want)
	}
}

// wantSecret checks the header of a page that has a token in its address or its links.
func wantSecret(t testing.TB, h network.Headers) {
	t.Helper()
	for name, want := range map[string]string{"referrer-policy": "no-referrer", "cache-control": "no-store"} {
		if got := header(h, name); got != want {
			t.Errorf("page has %s %q, want %q", name, got, want)
		}
	}
}

func header(h network.Headers, name string) string {
	for n, v := range h {
		if strings.EqualFold(n, name) {
			return fmt.Sprint(v)
		}
	}
	return ""
}

// TestURLTransport: in a browser that refuses all cookies, a session goes on through links, forms and redirects, and its
// token reaches neither another site nor a log.
func TestURLTransport(t *testing.T) {
	t.Parallel()
	other := startForeign(t)
	f := startSite(t, other.url)
	b := newTabWithoutCookies(t)

	wantSecret(t, b.open(f.base+"/visit"))
	wantShown(b, 1, "")
	if kept := eval[string](b, `(() => { try { document.cookie = "a=b; Secure"; return document.cookie } catch (e) { return "" } })()`); kept != "" {
		t.Fatalf("the page could set a cookie: %s", kept)
	}
	first := f.last()
	b.click("link")
	wantShown(b, 2, "")
	if parameter(t, eval[string](b, "location.href"), urlParameter) != first {
		t.Error("the link does not carry the token")
	}

	wantSecret(t, b.click("enter"))
	wantShown(b, 2, "anna")
	second := f.last()
	if first == second {
		t.Fatal("login did not renew the token")
	}
	for i := range 20 {
		wantSecret(t, b.click([]string{"link", "post", "redirect"}[i%3]))
		wantShown(b, 3+i, "anna")
		if parameter(t, eval[string](b, "location.href"), urlParameter) != second {
			t.Error("the address does not carry the token")
		}
	}
	// What the browser sends to another site, for a link, a form, an image and a script.
	others := []string{"post-other"}
	for i := range (site{other: other.url}).elsewhere() {
		others = append(others, fmt.Sprintf("other%d", i))
	}
	for _, id := range others {
		b.click(id)
		if at := eval[string](b, "location.href"); !strings.HasPrefix(at, other.url) {
			t.Errorf("%s leads to %q, want the other site", id, strings.SplitN(at, "?", 2)[0])
		}
		b.follow(back)
		wantShown(b, 22, "anna")
	}
	f.wantNoTokens("what another site gets", other.text())
	all, referers := other.count()
	if all < 6 || referers > 0 {
		t.Errorf("the other site got %d requests, %d of them with a Referer; want at least 6 and none", all, referers)
	}
	if strings.Contains(f.log.String(), "referer=http") {
		t.Error("the site itself gets a Referer, which its log would keep")
	}

	b.click("leave")
	wantShown(b, 0, "")
	b.open(f.base + "/home?" + urlParameter + "=" + second)
	wantShown(b, 0, "")

	f.mu.Lock()
	gotCookie := f.gotCookie
	f.mu.Unlock()
	if gotCookie {
		t.Error("the browser sent a cookie: this test shows nothing")
	}
	wantDead(t, f, first)
	wantDead(t, f, second)
}

// TestURLTransportWithCookies: where the parameter is on, a browser with cookies has no token in its addresses once it
// has sent its first cookie.
func TestURLTransportWithCookies(t *testing.T) {
	t.Parallel()
	f := startSite(t, startForeign(t).url)
	b := newTab(t)
	b.open(f.base + "/visit") // whether the cookie comes back is not known yet
	b.open(f.base + "/visit")
	wantShown(b, 2, "")
	for _, step := range []struct {
		click  string
		visits int
		user   string
	}{
		{"link", 3, ""}, {"post", 4, ""}, {"enter", 4, "anna"}, {"redirect", 5, "anna"}, {"leave", 0, ""},
	} {
		b.click(step.click)
		wantShown(b, step.visits, step.user)
		for _, address := range eval[[]string](b, `[location.href, ...[...document.links].map(a => a.href), ...[...document.forms].map(f => f.action)]`) {
			if parameter(t, address, urlParameter) != "" {
				t.Errorf("after %s a token is in the address %s", step.click, strings.SplitN(address, "?", 2)[0])
			}
		}
	}
}

// TestURLTransportOtherPages: a page that does not look at the session, and the gateway's own, can be opened by an
// address with a token too. What the browser asks for from there must not tell it as the Referer, which logs keep.
func TestURLTransportOtherPages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, path string }{
		{"page that does not use the session", "/"},
		{"page that does not exist", "/nothing"},
		{"gateway without a server", "/visit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := startSite(t, startForeign(t).url)
			b := newTab(t)
			b.open(f.base + "/visit")
			b.clearCookies()
			if strings.Contains(test.name, "gateway") {
				for _, app := range f.apps {
					app.Close()
				}
			}
			h := b.open(f.base + test.path + "?" + urlParameter + "=" + f.last())
			if got := header(h, "referrer-policy"); got != "no-referrer" {
				t.Errorf("page has Referrer-Policy %q, want no-referrer", got)
			}
			eval[bool](b, `fetch("/read").then(() => true)`)
		})
	}
}
