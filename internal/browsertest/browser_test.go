package browsertest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"
	"go.uber.org/goleak"
)

// shared is the browser of the package. Every test has a context of its own in it: no cookies, no cache, no history.
var shared struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	err    error
}

func TestMain(m *testing.M) {
	flag.Parse()
	if runtime.GOMAXPROCS(0) < 4 { // tests wait for the browser, or for a session to end, much of the time
		_ = flag.Set("test.parallel", "4") // the flag exists
	}
	code := m.Run()
	if shared.cancel != nil {
		shared.cancel()
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// findChromium returns the program, or skips the test; with CI=true it fails it.
func findChromium(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("chromium is not installed (Debian: apt-get install chromium)")
	}
	t.Skip("NOT RUN: chromium is not installed: Debian package chromium")
	return ""
}

// startChromium starts a browser with a user data directory of its own.
func startChromium(path, dir string) (context.Context, context.CancelFunc, error) {
	allocator, stop := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path),
		chromedp.UserDataDir(dir),
		chromedp.Env("TMPDIR="+dir), // where Chromium leaves things behind
		chromedp.Headless,
		chromedp.NoFirstRun,
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("password-store", "basic"),
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1, EXCLUDE localhost"),
		// Unlike with ignore-certificate-errors, pages with this certificate are cached as with any other.
		chromedp.Flag("ignore-certificate-errors-spki-list", certificate().pin),
	)
	var said lines
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithErrorf(said.printf), chromedp.WithLogf(said.printf))
	end := func() {
		cancel()
		stop()
	}
	if err := chromedp.Do(ctx); err != nil {
		end()
		return nil, nil, fmt.Errorf("start %s: %w\n%s", path, err, said.String())
	}
	return ctx, end, nil
}

// tab is a page of the browser.
type tab struct {
	t       testing.TB
	ctx     context.Context
	answers chan answer // of what send sent
}

// newTab opens a tab in a fresh context of the shared browser.
func newTab(t testing.TB) *tab {
	t.Helper()
	path := findChromium(t)
	shared.once.Do(func() {
		var dir string
		if dir, shared.err = os.MkdirTemp("", "browsertest"); shared.err != nil {
			return
		}
		var end context.CancelFunc
		shared.ctx, end, shared.err = startChromium(path, dir)
		shared.cancel = func() {
			if end != nil {
				end()
			}
			_ = os.RemoveAll(dir) // a temporary one
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return newTabIn(t, shared.ctx, chromedp.WithNewBrowserContext())
}

// newTabWithoutCookies opens a tab in a browser of its own that blocks all cookies.
func newTabWithoutCookies(t testing.TB) *tab {
	t.Helper()
	path := findChromium(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "Default"), 0o700); err != nil {
		t.Fatal(err)
	}
	const block = `{"profile": {"default_content_setting_values": {"cookies": 2}}}`
	if err := os.WriteFile(filepath.Join(dir, "Default", "Preferences"), []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, end, err := startChromium(path, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return newTabIn(t, ctx)
}

func newTabIn(t testing.TB, browser context.Context, o ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, o...)
	t.Cleanup(cancel)
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute)
	t.Cleanup(stop)
	b := &tab{t: t, ctx: ctx, answers: make(chan answer, 100)}
	report := func(_ context.Context, a answer) (chromedp.Void, error) {
		b.answers <- a
		return chromedp.Void{}, nil
	}
	b.do(chromedp.ExposeFunc("report", report))
	return b
}

// in returns the tab for a subtest, whose failures it reports.
func (b *tab) in(t testing.TB) *tab {
	return &tab{t: t, ctx: b.ctx, answers: b.answers}
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// open loads an address as a user would who types it in, and returns the header of the page.
func (b *tab) open(address string) network.Headers {
	b.t.Helper()
	return b.follow(chromedp.Navigate(address))
}

// follow does something that loads another page, waits for that, and returns its header.
func (b *tab) follow(step chromedp.Action[chromedp.Void]) network.Headers {
	b.t.Helper()
	res, err := chromedp.RunResponse(b.ctx, step)
	if err != nil {
		b.t.Fatal(err)
	}
	if res == nil {
		return nil // from the back/forward cache
	}
	return res.Headers
}

// click clicks on the element with an ID, and waits for the page that follows.
func (b *tab) click(id string) network.Headers {
	b.t.Helper()
	return b.follow(func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](fmt.Sprintf("document.getElementById(%q).click(), true", id))(ctx, t)
		return chromedp.Void{}, err
	})
}

// eval returns the value of a JavaScript expression, awaited if it is a promise.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// whoami loads /whoami as a page.
func (b *tab) whoami(base string) who {
	b.t.Helper()
	b.open(base + "/whoami")
	return b.shown()
}

// shown returns what the loaded page /whoami shows.
func (b *tab) shown() who {
	b.t.Helper()
	text := eval[string](b, "document.body.innerText")
	return parse(b.t, text)
}

func parse(t testing.TB, text string) who {
	t.Helper()
	var w who
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		t.Fatalf("want what /whoami says, got %q: %v", text, err)
	}
	return w
}

// cookies returns all that the browser keeps, of all sites.
func (b *tab) cookies() []*network.Cookie {
	b.t.Helper()
	id := chromedp.FromContext(b.ctx).BrowserContextID
	res, err := chromedp.CallBrowser(b.ctx, storage.GetCookies, storage.GetCookiesParams{BrowserContextID: id})
	if err != nil {
		b.t.Fatal(err)
	}
	return res.Cookies
}

// cookie returns the cookie with a name, nil if there is none; there must not be two.
func (b *tab) cookie(name string) *network.Cookie {
	b.t.Helper()
	var found *network.Cookie
	for _, c := range b.cookies() {
		if c.Name != name {
			continue
		}
		if found != nil {
			b.t.Fatalf("browser keeps two cookies %s: %s%s and %s%s", name, found.Domain, found.Path, c.Domain, c.Path)
		}
		found = c
	}
	return found
}

func (b *tab) clearCookies() {
	b.t.Helper()
	id := chromedp.FromContext(b.ctx).BrowserContextID
	if _, err := chromedp.CallBrowser(b.ctx, storage.ClearCookies, storage.ClearCookiesParams{BrowserContextID: id}); err != nil {
		b.t.Fatal(err)
	}
}

// answer is what a page got for one of the requests that send sent.
type answer struct {
	Name   string `json:"name"`
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error"`
}

// send has the page send requests, all at once, and report their answers as they come. The application knows a request
// by its name.
func (b *tab) send(requests ...request) {
	b.t.Helper()
	list, err := json.Marshal(requests)
	if err != nil {
		b.t.Fatal(err)
	}
	eval[bool](b, `(requests => {
		for (const q of requests)
			fetch(q.path + (q.path.includes("?") ? "&" : "?") + "name=" + q.name, {method: q.method, cache: "no-store"})
				.then(async r => report({name: q.name, status: r.status, body: await r.text()}))
				.catch(e => report({name: q.name, error: String(e)}));
		return true;
	})(`+string(list)+`)`)
}

// await returns the next answer.
func (b *tab) await() (answer, error) {
	select {
	case a := <-b.answers:
		if a.Error != "" {
			return a, fmt.Errorf("request %s: %s", a.Name, a.Error)
		}
		return a, nil
	case <-time.After(patience):
		return answer{}, errors.New("the browser got no answer")
	}
}

// fetch sends one request from the page and returns the answer.
func (b *tab) fetch(method, path string) answer {
	b.t.Helper()
	b.send(request{Name: "one", Method: method, Path: path})
	a, err := b.await()
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// request is one for send.
type request struct {
	Name   string `json:"name"`
	Method string `json:"method"`
	Path   string `json:"path"`
}

// patience is how long a step may take that takes milliseconds.
const patience = 30 * time.Second

// lines collects what is logged.
type lines struct {
	mu sync.Mutex

	// mu guards the field below
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) printf(format string, a ...any) { fmt.Fprintf(l, format+"\n", a...) }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// parameter returns a query parameter of an address.
func parameter(t testing.TB, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get(name)
}
