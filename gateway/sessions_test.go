package gateway_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// memoryApp is an application that keeps its sessions in its own memory, as servlet containers and PHP do, and knows of
// no gateway. Its session ID is in the cookie JSESSIONID, and for clients without cookies in the path of every link.
type memoryApp struct {
	// urlOnly: it never sets a cookie, and so never tells the ID in a header but in redirects.
	urlOnly bool

	// mu guards the field below.
	mu       sync.Mutex
	sessions map[string]*memorySession
}

type memorySession struct {
	user   string
	visits int
}

func (a *memoryApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	page, id, inURL := strings.Cut(r.URL.Path, ";jsessionid=")
	if c, err := r.Cookie("JSESSIONID"); err == nil {
		id, inURL = c.Value, false
	}
	s := a.sessions[id]
	fresh := s == nil
	begin := func() {
		id = rand.Text()
		if !a.urlOnly {
			http.SetCookie(w, &http.Cookie{Name: "JSESSIONID", Value: id, Path: "/", HttpOnly: true})
		}
		a.sessions[id] = s
	}
	if fresh {
		s = &memorySession{}
		begin()
	}
	// As long as it is not clear that the client keeps cookies, links have the ID.
	link := func(page string) string {
		if fresh || inURL {
			return page + ";jsessionid=" + id
		}
		return page
	}
	switch page {
	case "/login":
		s.user = r.PostFormValue("user")
		delete(a.sessions, id)
		begin()
		http.Redirect(w, r, link("/home"), http.StatusSeeOther)
		return
	case "/elevate": // a new ID, told in the page only if there are no cookies
		delete(a.sessions, id)
		begin()
	case "/logout":
		delete(a.sessions, id)
		http.SetCookie(w, &http.Cookie{Name: "JSESSIONID", MaxAge: -1, Path: "/"})
		fmt.Fprint(w, "bye")
		return
	}
	s.visits++
	fmt.Fprintf(w, `user=%s visits=%d <a href="%s">home</a> <form method="post" action="%s"></form> <a href="%s">more</a>`,
		html.EscapeString(s.user), s.visits, link("/home"), link("/login"), link("/elevate"))
}

// visitor is a client of one of them.
type visitor struct {
	http     *http.Client
	gateways []string
	requests int
	page, at string // the last page and its address
}

// newVisitor returns a client with or without cookies, from an address of its own in 127.0.0.0/8.
func newVisitor(n int, cookies bool, gateways []string) *visitor {
	from := netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	v := &visitor{gateways: gateways, requests: n, http: &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if cookies {
		v.http.Jar, _ = cookiejar.New(nil)
	}
	return v
}

// do sends a request to the next gateway, follows a redirect by another, and keeps the page.
func (v *visitor) do(ctx context.Context, method, path, body string) error {
	for range 3 {
		v.requests++
		r, err := http.NewRequestWithContext(ctx, method, v.gateways[v.requests%len(v.gateways)]+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		if v.at != "" {
			r.Header.Set("Referer", v.at)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		res, err := v.http.Do(r)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return err
		}
		if location := res.Header.Get("Location"); location != "" {
			method, path, body = "GET", location, ""
			continue
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s: status %d: %s", method, path, res.StatusCode, b)
		}
		v.page, v.at = string(b), r.URL.String()
		return nil
	}
	return errors.New("redirects without end")
}

var links = regexp.MustCompile(`(?:href|action)="([^"]*)"`)

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)

// form returns the form of the page with a user filled in.
func (v *visitor) form(user string) string {
	values := url.Values{"user": {user}}
	for _, m := range hidden.FindAllStringSubmatch(v.page, -1) {
		values.Set(m[1], m[2])
	}
	return values.Encode()
}

// link returns the address of a page, as the present page has it.
func (v *visitor) link(page string) string {
	for _, m := range links.FindAllStringSubmatch(v.page, -1) {
		if strings.HasPrefix(m[1], page) {
			return m[1]
		}
	}
	return page
}

var errLost = errors.New("session lost")

// visit begins a session, logs in, and uses it. It returns errLost if the session is not there any more.
func (v *visitor) visit(ctx context.Context, user string) error {
	defer v.http.CloseIdleConnections()
	for i, page := range []string{"/", "/home", "/login", "/home", "/elevate", "/home"} {
		method, body := "GET", ""
		if page == "/login" {
			method, body = "POST", v.form(user)
		}
		if err := v.do(ctx, method, v.link(page), body); err != nil {
			return err
		}
		want := fmt.Sprintf("user= visits=%d ", i+1)
		if i >= 2 {
			want = fmt.Sprintf("user=%s visits=%d ", user, i+1)
		}
		if !strings.HasPrefix(v.page, want) {
			return fmt.Errorf("%w at step %d, %s: %.40s..., want %s", errLost, i+1, page, v.page, want)
		}
	}
	return nil
}

// Three applications that keep sessions in their own memory, have no routes in their session IDs and renew these at
// login: their clients (1,000 in a soak), every other one without cookies, lose no session; over two gateways neither, one
// request to this, one to that.
func TestSessionsInMemory(t *testing.T) {
	for _, c := range []struct {
		name      string
		clients   int
		urlOnly   bool // the applications set no cookies
		gateways  int
		byAddress bool
		// elsewhere: clients without cookies are lost, as the gateways cannot know where they began.
		elsewhere bool
	}{
		{name: "one gateway", clients: testserver.Scale(250, 1000), gateways: 1},
		{name: "two gateways", clients: testserver.Scale(250, 1000), gateways: 2, byAddress: true},
		{name: "IDs in pages only, two gateways", clients: testserver.Scale(100, 1000), urlOnly: true, gateways: 2, byAddress: true},
		{name: "two gateways, not by address", clients: testserver.Scale(100, 1000), gateways: 2, elsewhere: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var apps []string
			for range 3 {
				a := &memoryApp{urlOnly: c.urlOnly, sessions: make(map[string]*memorySession)}
				apps = append(apps, mustApp(t, a.ServeHTTP))
			}
			var urls []string
			var running []*running
			for range c.gateways {
				g := mustRun(t, "h1", gateway.Config{
					Upstreams: upstreams(apps...), Affinity: gateway.AffinitySession, Key: testKey,
					SessionCookies: []string{"JSESSIONID"}, SessionPathParameter: "jsessionid", SessionByAddress: c.byAddress,
				})
				running, urls = append(running, g), append(urls, g.url)
			}
			var lost [2]atomic.Int64 // without and with cookies
			each(c.clients, 16, func(n int) {
				v := newVisitor(n, n%2 == 0, urls)
				switch err := v.visit(t.Context(), fmt.Sprint("user", n)); {
				case errors.Is(err, errLost):
					lost[1-n%2].Add(1)
					if !c.elsewhere {
						t.Errorf("client %d: %v", n, err)
					}
				case err != nil:
					t.Errorf("client %d: %v", n, err)
				}
			})
			if n := lost[1].Load(); n > 0 {
				t.Errorf("%d of %d clients with cookies lost their sessions", n, c.clients/2)
			}
			n := lost[0].Load()
			if c.elsewhere && n == 0 {
				t.Error("no client without cookies lost its session: docs/gateway.md says otherwise")
			}
			t.Logf("%d of %d clients without cookies lost their sessions", n, c.clients/2)
			for _, g := range running {
				for _, u := range g.Upstreams() {
					if u.Requests < uint64(c.clients/c.gateways) { // half its share
						t.Errorf("upstream %s had %d requests: not spread", u.ID, u.Requests)
					}
				}
				if s := g.Stats().Learned; !c.elsewhere && (s.Entries == 0 || s.Hits == 0) {
					t.Errorf("nothing was learned: %+v", s)
				}
			}
		})
	}
}

// phpApp is memoryApp in PHP, which keeps its sessions in files of each server's own. Without cookies, PHP itself
// appends the ID to links, and puts it into the body of forms.
const phpApp = `<?php
session_start();
$_SESSION += ['user' => '', 'visits' => 0];
$page = strtok($_SERVER['REQUEST_URI'], '?');
if ($page == '/login') $_SESSION['user'] = $_POST['user'];
if ($page == '/login' || $page == '/elevate') session_regenerate_id(true);
$_SESSION['visits']++;
echo "user=$_SESSION[user] visits=$_SESSION[visits] ";
?><a href="/home">home</a> <form method="post" action="/login"><p></form> <a href="/elevate">more</a>`

// Real applications: PHP with sessions of each server's own. Clients without cookies have their new IDs in Set-Cookie, as
// all have, and their forms the ID in the body, where the gateway does not look; but they come from a page whose address has it.
func TestSessionsOfPHP(t *testing.T) {
	var apps []string
	for range 3 {
		srv := testserver.PHP(t, testserver.PHPOptions{Script: phpApp, Settings: []string{
			"session.use_trans_sid=1", "session.use_only_cookies=0", "session.use_strict_mode=1",
		}})
		apps = append(apps, "http://"+srv.Addr)
	}
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams(apps...), Affinity: gateway.AffinitySession, Key: testKey,
		SessionCookies: []string{"PHPSESSID"}, SessionParameter: "PHPSESSID",
	})
	each(testserver.Scale(40, 400), 8, func(n int) {
		if err := newVisitor(n, n%2 == 0, []string{g.url}).visit(t.Context(), fmt.Sprint("user", n)); err != nil {
			t.Errorf("client %d: %v", n, err)
		}
	})
}

// tomcatApp is memoryApp as a JSP page. Without cookies, encodeURL appends the ID to paths.
func tomcatApp(page string) string {
	return `<%
String at = "` + page + `";
if (session.isNew()) { session.setAttribute("user", ""); session.setAttribute("visits", 0); }
if (at.equals("login")) session.setAttribute("user", request.getParameter("user"));
if (at.equals("login") || at.equals("elevate")) request.changeSessionId();
session.setAttribute("visits", (Integer) session.getAttribute("visits") + 1);
out.print("user=" + session.getAttribute("user") + " visits=" + session.getAttribute("visits") + " ");
%><a href="<%= response.encodeURL("/home.jsp") %>">home</a> <form method="post" action="<%= response.encodeURL("/login.jsp") %>"></form>
<a href="<%= response.encodeURL("/elevate.jsp") %>">more</a>`
}

// Real applications: Tomcat without jvmRoute. It sets its cookie with every new ID, whether or not the client keeps it.
func TestSessionsOfTomcat(t *testing.T) {
	pages := make(map[string]string)
	for _, page := range []string{"index", "home", "login", "elevate"} {
		pages[page+".jsp"] = tomcatApp(page)
	}
	var apps []string
	for range 2 {
		apps = append(apps, "http://"+testserver.Tomcat(t, testserver.TomcatOptions{Pages: pages}).Addr)
	}
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams(apps...), Affinity: gateway.AffinitySession, Key: testKey,
		SessionCookies: []string{"JSESSIONID"}, SessionPathParameter: "jsessionid",
	})
	each(testserver.Scale(40, 400), 8, func(n int) {
		if err := newVisitor(n, n%2 == 0, []string{g.url}).visit(t.Context(), fmt.Sprint("user", n)); err != nil {
			t.Errorf("client %d: %v", n, err)
		}
	})
}

// each calls f for 0 to n-1, so many at a time.
func each(n, parallel int, f func(int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
