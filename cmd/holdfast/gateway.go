package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/gateway/metrics"
	"github.com/holdfast-sessions/holdfast/internal/configfile"
)

// gatewayCmd runs a gateway, or talks to one that runs.
type gatewayCmd struct {
	Run         gatewayRunCmd  `cmd:"" default:"withargs" help:"Run the gateway (this is what holdfast gateway without a verb does)."`
	Upstreams   upstreamsCmd   `cmd:"" help:"List the servers of a running gateway, and how they are."`
	Drain       drainCmd       `cmd:"" help:"Empty a server: no new clients, and by a deadline none."`
	Maintenance maintenanceCmd `cmd:"" help:"Take a server out at once; what it has begun it finishes."`
	Ready       readyCmd       `cmd:"" help:"Take a server back."`
	Weight      weightCmd      `cmd:"" help:"Give a server another share, until the gateway ends."`
	Explain     explainCmd     `cmd:"" help:"Say where a request would go, and why."`
}

type gatewayRunCmd struct {
	Config string `type:"existingfile" placeholder:"PATH" help:"Configuration file (holdfast config init prints one). It is read again on SIGHUP and when it changes."`
	gatewayFlags
}

func (gatewayRunCmd) Help() string {
	return `A server that cannot be reached is left at once, and the next one gets the request. SIGTERM and Ctrl-C let requests
finish first.

Examples:

  holdfast gateway --upstream http://10.0.0.1:3000 --upstream http://10.0.0.2:3000

  (umask 077; openssl rand -hex 32 > gateway.key)
  holdfast gateway --listen :8443 --tls-cert cert.pem --tls-key key.pem \
      --upstream a=http://10.0.0.1:3000 --upstream b=http://10.0.0.2:3000 \
      --affinity cookie --key-file gateway.key

  holdfast config init > holdfast.yaml
  holdfast gateway --config holdfast.yaml`
}

// defaultAdmin is where the commands that talk to a gateway look for it.
const defaultAdmin = "127.0.0.1:9180"

func (c gatewayRunCmd) Run(ctx context.Context, k *kong.Context) error {
	read := func() (settings, parts, error) {
		s, layers, err := readSettings(c.Config)
		if err == nil {
			err = c.lay(&s, layers, k)
		}
		if err != nil {
			return s, parts{}, err
		}
		p, err := s.build(layers)
		return s, p, err
	}
	s, p, err := read()
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if s.Log.Format == "json" {
		logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	}
	m := metrics.New()
	config := p.gateway
	config.Logger, config.OnRequest = logger, m.OnRequest
	if config.Affinity == gateway.AffinityCookie && s.Gateway.Affinity.KeyFile == "" && os.Getenv("HOLDFAST_KEY") == "" {
		logger.Warn("random key: after a restart, and at another gateway, clients move to another server; give a key with --key-file")
	}
	g, err := gateway.New(config)
	if err != nil {
		return err
	}

	// All addresses are taken before anything is served.
	var listeners []net.Listener
	for _, address := range s.Gateway.Listen {
		l, err := listen(address, "--listen")
		if err != nil {
			return err
		}
		defer l.Close()
		listeners = append(listeners, l)
	}
	var admin net.Listener
	if s.Admin.Listen != "" {
		if admin, err = listen(s.Admin.Listen, "--admin"); err != nil {
			return err
		}
		defer admin.Close()
	}

	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		logger.Info("gateway listening", "address", l.Addr().String(), "upstreams", len(config.Upstreams), "affinity", config.Affinity)
		group.Go(func() error { return g.Run(ctx, l) })
	}
	if admin != nil {
		logger.Info("admin listening", "address", admin.Addr().String())
		group.Go(func() error { return serveAdmin(ctx, admin, adminHandler(ctx, g, m, p.admin)) })
	}
	group.Go(func() error {
		return reloadUntil(ctx, c.Config, logger, func() error {
			_, p, err := read()
			if err != nil {
				return err
			}
			p.gateway.Logger, p.gateway.OnRequest = logger, m.OnRequest
			return g.Reload(p.gateway)
		})
	})
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // not under systemd: nothing to tell
	context.AfterFunc(ctx, func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) })
	err = group.Wait()
	logger.Info("gateway ended")
	return err
}

// listen takes an address. Its errors say what to do about it.
func listen(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("address %s is in use: stop what listens there, or choose another with %s", address, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("address %s is not for this user: choose a port from 1024, or grant the right to lower ones (setcap cap_net_bind_service=+ep)", address)
	case err != nil:
		return nil, fmt.Errorf("%w: listen on %q: %w: want host:port, such as 127.0.0.1:8080 or :8080", errUsage, address, err)
	}
	return l, nil
}

// adminHandler is what the admin address serves: the admin API, and what monitors ask for.
func adminHandler(ctx context.Context, g *gateway.Gateway, m *metrics.Metrics, c gateway.AdminConfig) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.Of(g), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case ctx.Err() != nil:
			http.Error(w, "ending", http.StatusServiceUnavailable)
		case !anyUp(g):
			http.Error(w, "no upstream is up", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ready")
		}
	})
	mux.Handle("/", g.AdminHandler(c))
	return mux
}

func anyUp(g *gateway.Gateway) bool {
	for _, u := range g.Upstreams() {
		if u.Up {
			return true
		}
	}
	return false
}

// serveAdmin serves until ctx ends, and for a moment longer, so that a monitor sees that the gateway is ending.
func serveAdmin(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	defer context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Shutdown(end) // what it leaves, the end of the program closes
	})()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// reloadUntil calls reload on SIGHUP, and when the content of the file has changed, until ctx ends. Without a file SIGHUP ends the
// program, as a terminal that closes expects.
func reloadUntil(ctx context.Context, file string, logger *slog.Logger, reload func() error) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var changed <-chan time.Time
	var known []byte
	if file != "" {
		known, _ = os.ReadFile(file) // just read; a failure shows at the next look
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		changed = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if file == "" {
				return errHangup
			}
		case <-changed:
			now, err := os.ReadFile(file)
			if err != nil || bytes.Equal(now, known) { // a file that is being replaced is missing for a moment
				continue
			}
			known = now
		}
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
		if err := reload(); err != nil {
			logger.Error("configuration not usable, the running one stays", "err", err)
		} else {
			logger.Info("configuration read again")
		}
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	}
}

// errHangup ends a gateway whose terminal closed.
var errHangup = errors.New("terminal closed (SIGHUP); with --config that reads the file again")

// parts are what a gateway is run with.
type parts struct {
	gateway gateway.Config
	admin   gateway.AdminConfig
}

// build returns what the settings describe, with the keys, tokens and certificates of the files that they name. Its errors
// name the line, and all of them at once.
func (s *settings) build(layers *configfile.Layers) (parts, error) {
	var errs []error
	bad := func(path string, err error) {
		if err != nil {
			errs = append(errs, layers.At(path, err))
		}
	}
	config, err := s.config(layers)
	if err != nil {
		errs = append(errs, err)
	}
	p := parts{gateway: config, admin: gateway.AdminConfig{Hosts: s.Admin.Hosts}}
	if p.gateway.Key, err = loadKey(s.Gateway.Affinity.KeyFile, os.Getenv("HOLDFAST_KEY")); err != nil {
		bad("gateway.affinity.key_file", err)
	}
	if p.gateway.Key == nil {
		p.gateway.Key = processKey()
	}
	if file := s.Gateway.Session.SignatureFile; file != "" {
		p.gateway.SignatureKey, err = loadKey(file, "")
		bad("gateway.session.signature_key_file", err)
	}
	switch t := s.Gateway.TLS; {
	case (t.Cert == "") != (t.Key == ""):
		bad("gateway.tls", fmt.Errorf("%w: --tls-cert and --tls-key: give both or neither", errUsage))
	case t.Cert != "":
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			bad("gateway.tls", fmt.Errorf("--tls-cert and --tls-key: %w", err))
		}
		p.gateway.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	if file := s.Admin.TokenFile; file != "" {
		b, err := readSecret(file)
		if p.admin.Token = strings.TrimSpace(string(b)); err == nil && len(p.admin.Token) < 20 {
			err = fmt.Errorf("token file %s: it holds %d characters: want 20 or more random ones (openssl rand -hex 32)", file, len(p.admin.Token))
		}
		bad("admin.token_file", err)
	}
	if s.Admin.Listen != "" && s.Admin.TokenFile == "" && !isLoopback(s.Admin.Listen) {
		bad("admin.listen", fmt.Errorf("%q can be reached from other machines: choose a loopback address such as %s, or give a token_file", s.Admin.Listen, defaultAdmin))
	}
	switch s.Log.Format {
	case "text", "json":
	default:
		bad("log.format", fmt.Errorf("%q: want text or json", s.Log.Format))
	}
	if len(s.Gateway.Listen) == 0 {
		bad("gateway.listen", errors.New("no address for clients: want one such as :8080"))
	}
	if err := p.gateway.Validate(); err != nil {
		errs = append(errs, s.locate(layers, err))
		if !layers.HasFile() {
			return p, fmt.Errorf("%w: %w", errUsage, errors.Join(errs...))
		}
	}
	return p, errors.Join(errs...)
}

// processKey is the key of a gateway that was given none. A reload must not change it.
var processKey = sync.OnceValue(func() []byte {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails
	return key
})
