package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/loopback"
)

// appOrder is what an application server is told.
type appOrder struct {
	Name     string
	Listen   string
	Store    string
	Affinity gateway.Affinity
}

// gatewayOrder is what the gateway is told.
type gatewayOrder struct {
	Listen    string // "": it has inherited the listening socket
	Affinity  gateway.Affinity
	Key       []byte
	Upstreams []gateway.Upstream
	Control   string // the supervisor's URL
	Secret    string // for the supervisor
}

// service is what a child does.
type service struct {
	listener net.Listener
	handler  http.Handler
	close    func() error
}

// RunApp is the hidden command AppCommand.
func RunApp(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	return runChild(ctx, stdin, stdout, openApp)
}

// RunGateway is the hidden command GatewayCommand.
func RunGateway(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	return runChild(ctx, stdin, stdout, openGateway)
}

// runChild does what the order says until stdin or ctx ends.
func runChild[O any](ctx context.Context, stdin io.Reader, stdout io.Writer, open func(context.Context, O) (service, error)) error {
	signal.Ignore(os.Interrupt, syscall.SIGHUP) // these reach every process of a terminal: the supervisor decides
	ctx, end := context.WithCancel(ctx)
	defer end()
	var o O
	if err := json.NewDecoder(stdin).Decode(&o); err != nil {
		return errors.New("this command is for holdfast demo to run, which tells it what to do on standard input")
	}
	opening, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, err := open(opening, o)
	if err != nil {
		_ = json.NewEncoder(stdout).Encode(answer{Error: err.Error()}) // fails if the supervisor has gone
		return err
	}
	defer s.close()
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	go func() { // until this process ends
		_, _ = io.Copy(io.Discard, stdin)
		end()
	}()
	if err := json.NewEncoder(stdout).Encode(answer{Addr: s.listener.Addr().String()}); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(s.listener) }()
	select {
	case err = <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
	<-served
	return nil
}

// openGateway makes the gateway, with /demo/ in front of it.
func openGateway(_ context.Context, o gatewayOrder) (service, error) {
	g, err := gateway.New(gateway.Config{
		Upstreams: o.Upstreams, Affinity: o.Affinity, Key: o.Key,
		Cookie: gateway.Cookie{AllowPlainLocalhost: true},
		Logger: slog.New(slog.DiscardHandler), // the supervisor says who died
	})
	if err != nil {
		return service{}, err
	}
	control, err := url.Parse(o.Control)
	if err != nil {
		return service{}, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", g)
	mux.Handle("/demo/", &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(control)
			p.Out.Header = http.Header{"Authorization": {"Bearer " + o.Secret}} // no cookies
		},
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	})
	l, err := inherit(o.Listen)
	if err != nil {
		return service{}, err
	}
	return service{listener: l, handler: guard(mux), close: g.Close}, nil
}

// inherit returns the listening socket of the supervisor, or one on address.
func inherit(address string) (net.Listener, error) {
	if address != "" {
		return net.Listen("tcp", address)
	}
	const first = 3 // of exec.Cmd.ExtraFiles
	f := os.NewFile(first, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the address: %w", err)
	}
	return l, nil
}

// guard refuses what another site has a browser send. Checking the origin of requests that change something is not
// enough: a site whose name is made to lead to 127.0.0.1 (DNS rebinding) is its own origin, but its name gives it away.
func guard(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "Refused: another site's page sent this request.", http.StatusForbidden)
	}))
	next = protection.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !loopback.Is(host) {
			http.Error(w, fmt.Sprintf("Refused: the demo answers under localhost, 127.0.0.1 or [::1], not under %q.", r.Host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
