// Package demo is what holdfast demo runs: a gateway and several copies of a small application, each a process of its
// own, over one store, with a page on which servers can be killed and started while the session stays.
//
// The process that the user starts, the supervisor, answers no request of theirs. It holds the listening socket, so
// that the address stays taken and connections wait while the gateway is being restarted, and starts the others by
// running its own binary again:
//
//	browser ──> gateway ──> app-1, app-2, app-3 ──> store
//	               │ /demo/ and a secret
//	               └─────> supervisor
//
// A child gets its orders, secrets among them, as one line of JSON on standard input, and answers with one line on
// standard output once it serves. When its standard input ends it ends too, however the supervisor came to die.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/loopback"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/store"
)

// The hidden commands by which the binary becomes a child.
const (
	AppCommand     = "demo-app"
	GatewayCommand = "demo-gateway"
)

// MaxApps is how many applications Run starts at most.
const MaxApps = 9

// Config says what to run.
type Config struct {
	// Listen is the gateway's address. Port 0 is a free one.
	Listen string
	// Apps is the number of application servers, 1 to MaxApps.
	Apps int
	// Store is the URL of the store they share; memory: gives each its own. "": files in a temporary directory.
	Store string
	// Affinity is the gateway's.
	Affinity gateway.Affinity
	// Public allows an address that other machines reach. Whoever reaches the page can kill the demo's processes.
	Public bool
	// Out gets the addresses and process IDs.
	Out io.Writer
}

// ErrConfig says that Run cannot do what Config says.
var ErrConfig = errors.New("bad demo configuration")

// Run runs the demo until ctx ends. It returns an error if the demo could not be started.
func Run(ctx context.Context, c Config) error {
	if c.Apps < 1 || c.Apps > MaxApps {
		return fmt.Errorf("%w: %d application servers: want 1 to %d", ErrConfig, c.Apps, MaxApps)
	}
	l, err := listen(c)
	if err != nil {
		return err
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program, to start it again as a server: %w", err)
	}
	s := &supervisor{
		config: c, exe: exe, listener: l,
		secret: rand.Text(), key: make([]byte, 32),
	}
	_, _ = rand.Read(s.key) // never fails
	if needsDirectory(c.Store) {
		dir, err := os.MkdirTemp("", "holdfast-demo-")
		if err != nil {
			return fmt.Errorf("make a directory for the sessions: %w", err)
		}
		defer os.RemoveAll(dir)
		if s.config.Store, err = storeIn(dir, c.Store); err != nil {
			return err
		}
		s.temporary = true
	}
	if err := tryStore(ctx, s.config.Store); err != nil {
		return err
	}
	return s.run(ctx)
}

// needsDirectory reports whether a store's URL leaves something to the demo: everything, or where the keys of sealed
// sessions and their user records are.
func needsDirectory(rawURL string) bool {
	scheme, options, _ := strings.Cut(rawURL, ":")
	if scheme != "cookie" && scheme != "jwt" {
		return rawURL == ""
	}
	q, err := url.ParseQuery(strings.TrimPrefix(options, "?"))
	return err == nil && !(q.Has("keys") && q.Has("users"))
}

// storeIn completes the URL of a store by what the directory dir is to hold.
func storeIn(dir, rawURL string) (string, error) {
	if rawURL == "" {
		return "file:" + filepath.ToSlash(dir), nil
	}
	scheme, options, _ := strings.Cut(rawURL, ":")
	q, err := url.ParseQuery(strings.TrimPrefix(options, "?"))
	if err != nil {
		return "", fmt.Errorf("%w: the options of the store cannot be read", ErrConfig)
	}
	if !q.Has("keys") {
		path := filepath.Join(dir, "keys")
		if err := keyring.Create(path, keyring.NewSet()); err != nil {
			return "", err
		}
		q.Set("keys", "file:"+filepath.ToSlash(path))
	}
	if !q.Has("users") {
		users := filepath.Join(dir, "users")
		if err := os.Mkdir(users, 0o700); err != nil {
			return "", err
		}
		q.Set("users", "file:"+filepath.ToSlash(users))
	}
	if scheme == "jwt" {
		for name, value := range map[string]string{"issuer": "holdfast demo", "audience": "holdfast demo"} {
			if !q.Has(name) {
				q.Set(name, value)
			}
		}
	}
	return scheme + ":?" + q.Encode(), nil
}

// listen opens the gateway's address.
func listen(c Config) (*net.TCPListener, error) {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w: address %q: want host:port, such as 127.0.0.1:8080", ErrConfig, c.Listen)
	}
	if !c.Public && !loopback.Is(host) {
		return nil, fmt.Errorf("%w: address %s can be reached from other machines, and whoever opens the page can kill the demo's servers: listen on 127.0.0.1, or add --public", ErrConfig, c.Listen)
	}
	l, err := net.Listen("tcp", c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("address %s is in use: choose another with --listen, or 127.0.0.1:0 for any free port", c.Listen)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", c.Listen, err)
	}
	return l.(*net.TCPListener), nil
}

// tryStore opens the store once, so that what is wrong with it is said once, and not by every server.
func tryStore(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, opened, err := store.OpenManager(ctx, url, holdfast.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return opened.Close()
}

// supervisor is a running demo.
type supervisor struct {
	config    Config
	temporary bool // the store's directory
	exe       string
	listener  *net.TCPListener
	secret    string // lets the gateway, and nobody else, use the control address
	key       []byte // of the affinity cookie
	control   string // URL of the control address
	apps      []*app
	watchers  sync.WaitGroup

	mu sync.Mutex // mu guards Config.Out
}

func (s *supervisor) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.watchers.Wait()
	defer cancel()

	cl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the gateway's calls: %w", err)
	}
	defer cl.Close()
	s.control = "http://" + cl.Addr().String()
	defer s.stopApps()
	for i := range s.config.Apps {
		a := &app{name: fmt.Sprintf("app-%d", i+1)}
		s.apps = append(s.apps, a)
		if err := s.start(ctx, a); err != nil {
			return err
		}
	}
	control := &http.Server{Handler: s.controlHandler(ctx), ReadHeaderTimeout: 5 * time.Second}
	s.watchers.Go(func() { _ = control.Serve(cl) }) // ends by Close
	defer control.Close()
	g, err := s.startGateway(ctx)
	if err != nil {
		return err
	}
	s.welcome(g)
	s.keepGateway(ctx, g)
	return nil
}

// keepGateway starts the gateway again whenever it dies, until ctx ends, and stops it then.
func (s *supervisor) keepGateway(ctx context.Context, g *process) {
	const quick, maxWait = time.Second, 5 * time.Second
	wait := time.Duration(0)
	for {
		started := time.Now()
		if g != nil {
			select {
			case <-ctx.Done():
				g.stop()
				return
			case <-g.exited:
				s.printf("gateway  pid %d  died (%v), starting another", g.pid(), g.err)
			}
		}
		if time.Since(started) > quick {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait+100*time.Millisecond, maxWait)
		var err error
		if g, err = s.startGateway(ctx); err != nil {
			s.printf("gateway  %v", err)
			continue
		}
		s.printf("gateway  pid %d  up again", g.pid())
	}
}

func (s *supervisor) startGateway(ctx context.Context) (*process, error) {
	o := gatewayOrder{
		Affinity: s.config.Affinity, Key: s.key, Control: s.control, Secret: s.secret,
	}
	for _, a := range s.apps {
		o.Upstreams = append(o.Upstreams, gateway.Upstream{ID: a.name, URL: "http://" + a.addr})
	}
	if runtime.GOOS == "windows" { // where sockets cannot be handed over
		o.Listen = s.listener.Addr().String()
		_ = s.listener.Close()
		return startProcess(ctx, s.exe, GatewayCommand, o)
	}
	f, err := s.listener.File()
	if err != nil {
		return nil, fmt.Errorf("hand the address to the gateway: %w", err)
	}
	defer f.Close()
	return startProcess(ctx, s.exe, GatewayCommand, o, f)
}

// url is where the page is.
func (s *supervisor) url() string {
	a := s.listener.Addr().(*net.TCPAddr)
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, fmt.Sprint(a.Port))
}

// welcome says where everything is and what to try.
func (s *supervisor) welcome(g *process) {
	var b strings.Builder
	fmt.Fprintf(&b, "demo     %s\n", s.url())
	fmt.Fprintf(&b, "gateway  pid %d  affinity %s\n", g.pid(), s.config.Affinity)
	for _, a := range s.apps {
		fmt.Fprintf(&b, "%-7s  pid %d  http://%s\n", a.name, a.process.Load().pid(), a.addr)
	}
	fmt.Fprintf(&b, "store    %s\n\n", s.storeNote())
	fmt.Fprintf(&b, "Open %s, log in, and kill a server on the page, or:\n", s.url())
	if runtime.GOOS != "windows" {
		fmt.Fprintf(&b, "  kill -9 %d\n", s.apps[0].process.Load().pid())
	}
	fmt.Fprintf(&b, "  curl -c jar -b jar -d user=ada %s/login\n", s.url())
	fmt.Fprintf(&b, "  curl -c jar -b jar -X POST %s/visit\n", s.url())
	fmt.Fprintf(&b, "Ctrl-C ends everything.\n")
	s.printf("%s", b.String())
}

func (s *supervisor) storeNote() string {
	name := store.Name(s.config.Store)
	switch {
	case s.temporary:
		return name + "  removed at the end"
	case name == "memory:":
		return name + "  each server has its own: logins vanish"
	}
	return name
}

// printf writes a line, or several, to Config.Out.
func (s *supervisor) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.config.Out, format+"\n", args...)
}
