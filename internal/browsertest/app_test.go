package browsertest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// instances is how many servers of the application stand behind the gateway.
const instances = 3

// setup says what a fleet is made of.
type setup struct {
	files  bool // sessions in files, every instance with a store of its own over them, and affinity; otherwise in one memory
	plain  bool // plain http on localhost instead of TLS, with AllowPlainLocalhost
	strict bool // plain http on localhost with the cookie that is for TLS
	sealed bool // sessions in the cookie, and user records in the one memory
	config holdfast.Config
	routes func(*holdfast.Manager, *http.ServeMux) // more than those of the application
	wrap   func(http.Handler) http.Handler         // around the application, within Manager.Handler
}

// fleet is a running application: instances over one store, and a gateway in front. At its end it checks that no token
// is in its logs.
type fleet struct {
	t     testing.TB
	base  string // where browsers reach it
	port  string
	stage stage
	log   lines
	store driver.Store // as the first instance has it, not held
	apps  []*httptest.Server
	keys  *keyring.Ring // of sealed sessions

	managers []*holdfast.Manager // of the instances

	mu sync.Mutex
	// mu guards the fields below
	tokens    []string // all that were given out
	gotCookie bool     // a browser sent one
}

// startFleet starts an application and stops it after the test.
func startFleet(t testing.TB, c setup) *fleet {
	t.Helper()
	f := &fleet{t: t}
	f.stage.over = make(chan struct{})
	logger := slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.config.Logger = logger
	c.config.StoreTimeout = 2 * patience
	if c.plain {
		c.config.Cookie.AllowPlainLocalhost = true
	}

	if c.sealed {
		f.keys = keyring.New(keyring.NewSet())
		t.Cleanup(func() { _ = f.keys.Close() }) // nothing is kept
	}

	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	g := gateway.Config{
		Affinity: gateway.AffinityNone,
		Cookie:   gateway.Cookie{AllowPlainLocalhost: true},
		Key:      key,
		Logger:   logger,
		OnRequest: func(r gateway.Request) {
			logger.Info("access", "method", r.Method, "path", r.Path, "status", r.Status, "upstream", r.Upstream)
		},
		SessionParameter: c.config.URLParameter,
	}
	if c.files { // and so every request of a client to one instance
		g.Affinity = gateway.AffinityCookie
	}
	open := f.opener(c.files)
	for range instances {
		g.Upstreams = append(g.Upstreams, gateway.Upstream{URL: f.startInstance(c, open(), logger)})
	}
	if !c.plain && !c.strict {
		g.TLS = &tls.Config{Certificates: []tls.Certificate{certificate().Certificate}}
	}
	gw, err := gateway.New(g)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- gw.Run(ctx, l) }()
	t.Cleanup(func() {
		close(f.stage.over)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.wantNoTokens("the logs", f.log.String())
	})
	f.port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	f.base = f.at("app.holdfast.test")
	if c.plain || c.strict {
		f.base = "http://localhost:" + f.port
	}
	return f
}

// at returns the address of the fleet under another name.
func (f *fleet) at(host string) string { return "https://" + host + ":" + f.port }

// opener returns what opens the store of each instance.
func (f *fleet) opener(files bool) func() driver.Store {
	f.t.Helper()
	if !files {
		f.store = memory.New()
		f.t.Cleanup(func() { _ = f.store.Close() }) // nothing is kept
		return func() driver.Store { return f.store }
	}
	dir := f.t.TempDir()
	return func() driver.Store {
		s, err := filestore.Open(context.Background(), dir, filestore.Config{SweepEvery: -1})
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { _ = s.Close() }) // read to its end
		if f.store == nil {
			f.store = s
		}
		return s
	}
}

// startInstance starts one server of the application and returns its URL.
func (f *fleet) startInstance(c setup, s driver.Store, logger *slog.Logger) string {
	f.t.Helper()
	m, err := f.newManager(c, s)
	if err != nil {
		f.t.Fatal(err)
	}
	f.managers = append(f.managers, m)
	mux := http.NewServeMux()
	a := application{m}
	mux.HandleFunc("GET /{$}", a.page)
	mux.HandleFunc("GET /whoami", a.with(a.whoami))
	mux.HandleFunc("GET /read", a.with(a.whoami))
	mux.HandleFunc("POST /write", a.with(a.write))
	mux.HandleFunc("POST /login", a.with(a.login))
	mux.HandleFunc("POST /logout", a.with(a.logout))
	if c.routes != nil {
		c.routes(m, mux)
	}
	var h http.Handler = mux
	if c.wrap != nil {
		h = c.wrap(h)
	}
	inner := h
	h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		logger.Info("request", "method", r.Method, "uri", r.RequestURI, "url", r.URL, "referer", r.Referer())
		inner.ServeHTTP(w, r)
	})
	srv := httptest.NewUnstartedServer(f.observe(strconv.Itoa(len(f.apps)), m.Handler(h)))
	srv.Config.ErrorLog = slog.NewLogLogger(logger.Handler(), slog.LevelError)
	srv.Start()
	f.t.Cleanup(srv.Close)
	f.apps = append(f.apps, srv)
	return srv.URL
}

func (f *fleet) newManager(c setup, s driver.Store) (*holdfast.Manager, error) {
	if !c.sealed {
		return holdfast.New(hold(s), c.config)
	}
	sealer, err := cookie.New(f.keys, cookie.Config{Application: "browsertest"})
	if err != nil {
		return nil, err
	}
	return holdfast.NewSealed(sealer, hold(s), c.config)
}

// instanceHeader names the instance that answered.
const instanceHeader = "X-Instance"

// observe notes the tokens that are given out, and holds the requests that the stage knows.
func (f *fleet) observe(instance string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header["Cookie"] != nil {
			f.mu.Lock()
			f.gotCookie = true
			f.mu.Unlock()
		}
		held := f.stage.flight(r.URL.Query().Get("name"))
		if held != nil {
			held.cookie = r.Header.Get("Cookie")
			held.hold("arrived")
			r = r.WithContext(context.WithValue(r.Context(), flightKey{}, held))
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		f.note(answer.Result())
		if held != nil {
			held.setCookie = answer.Header()["Set-Cookie"]
			held.hold("ready")
		}
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.Header().Set(instanceHeader, instance)
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()) // the client may be gone
	})
}

func (f *fleet) note(res *http.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range res.Cookies() {
		chunked, _, _ := strings.Cut(c.Name, ".")
		if len(c.Value) >= 43 && strings.HasSuffix(chunked, "session") {
			f.tokens = append(f.tokens, c.Value)
		}
	}
}

// wantNoTokens checks that a text has no token in it.
func (f *fleet) wantNoTokens(where, text string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, token := range slices.Compact(f.tokens) {
		if at := strings.Index(text, token); at >= 0 {
			f.t.Fatalf("token in %s: %s[token]", where, text[max(0, at-200):at])
		}
	}
}

// last returns the token that was given out last.
func (f *fleet) last() string {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.tokens) == 0 {
		f.t.Fatal("no token was given out")
	}
	return f.tokens[len(f.tokens)-1]
}

// ask sends a request with a session cookie past the browser, and returns whom the application takes it for.
func (f *fleet) ask(token string) who {
	f.t.Helper()
	return f.askWith(defaultCookie + "=" + token)
}

// askWith is ask with a whole Cookie header.
func (f *fleet) askWith(cookies string) who {
	f.t.Helper()
	req, err := http.NewRequest(http.MethodGet, f.at("127.0.0.1")+"/whoami", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Cookie", cookies)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	res, err := client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	var w who
	if err := json.NewDecoder(res.Body).Decode(&w); err != nil {
		f.t.Fatalf("GET /whoami: status %d: %v", res.StatusCode, err)
	}
	return w
}

// idOf is the ID of the session with a token.
func idOf(token string) driver.ID { return sha256.Sum256([]byte(token)) }

const defaultCookie = "__Host-Http-session"

// fields are what the application keeps: one for each request that writes.
var fields = func() (all [24]holdfast.Field[string]) {
	for i := range all {
		all[i] = holdfast.NewField[string](fmt.Sprintf("f%02d", i))
	}
	return all
}()

// application is written as a user of the library would.
type application struct{ m *holdfast.Manager }

// who is what it says of a session.
type who struct {
	User   string            `json:"user"`
	Fields map[string]string `json:"fields"`
}

func (a application) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,"><title>application</title>`)
}

func (a application) with(h func(http.ResponseWriter, *http.Request, *holdfast.Session) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := a.m.Get(r)
		if err == nil {
			err = h(w, r, s)
		}
		if err != nil {
			a.m.Error(w, r, err)
		}
	}
}

func (a application) whoami(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	me := who{User: s.User(), Fields: map[string]string{}}
	for _, f := range fields {
		v, err := f.Get(s)
		if err != nil {
			return err
		}
		if v != "" {
			me.Fields[f.Name()] = v
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	return json.NewEncoder(w).Encode(me)
}

// write sets a field, every second one by Update.
func (a application) write(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	n, err := strconv.Atoi(r.FormValue("field"))
	if err != nil || n < 0 || n >= len(fields) {
		http.Error(w, "field: want a number below the number of fields.", http.StatusBadRequest)
		return nil
	}
	v := r.FormValue("value")
	if n%2 == 0 {
		err = fields[n].Set(s, v)
	} else {
		_, err = fields[n].Update(r.Context(), s, func(string) (string, error) { return v, nil })
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "written")
	return err
}

func (a application) login(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if err := s.Login(r.Context(), r.FormValue("user")); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "logged in")
	return err
}

func (a application) logout(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if err := s.Logout(r.Context()); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "logged out")
	return err
}
