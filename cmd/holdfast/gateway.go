package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"
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
	hup, stop := watchHangups()
	defer stop()
	var known []byte
	if c.Config != "" {
		var err error
		if known, err = readConfig(c.Config); err != nil {
			return err
		}
	}
	var load loader
	read := func(content []byte) (settings, *configfile.Layers, parts, error) {
		s, layers, err := parseSettings(c.Config, content)
		if err == nil {
			err = c.lay(&s, layers, k)
		}
		if err != nil {
			return s, layers, parts{}, err
		}
		p, err := load.parts(&s, layers)
		return s, layers, p, err
	}
	s, layers, p, err := read(known)
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
	if path := s.Gateway.AccessLog.Path; path != "" {
		l, err := openAccessLog(path)
		if err != nil {
			return layers.At("gateway.access_log.path", err)
		}
		defer l.Close()
		config.AccessLog = l
	}
	if load.ownKey != nil {
		logger.Warn("random key: after a restart, and at another gateway, clients move to another server; give a key with --key-file")
	}
	g, err := gateway.New(config)
	if err != nil {
		return s.locate(layers, err)
	}

	// All addresses are taken before anything is served.
	var listeners []net.Listener
	for _, address := range s.Gateway.Listen {
		l, err := listen(address, "gateway.listen", layers)
		if err != nil {
			return err
		}
		defer l.Close()
		listeners = append(listeners, l)
	}
	var adminListener net.Listener
	if s.Admin.Listen != "" {
		if adminListener, err = listen(s.Admin.Listen, "admin.listen", layers); err != nil {
			return err
		}
		defer adminListener.Close()
	}

	// The first part that fails ends the others. The admin address serves until the last request of a client is over, so that
	// monitors see the end coming, and operators what is left.
	group, ctx := errgroup.WithContext(ctx)
	admin := newAdminServer(ctx, g, m, p.admin)
	served, allServed := context.WithCancel(context.WithoutCancel(ctx))
	defer allServed()
	var fronts sync.WaitGroup
	for _, l := range listeners {
		logger.Info("gateway listening", "address", l.Addr().String(), "upstreams", len(config.Upstreams), "affinity", config.Affinity)
		fronts.Add(1)
		group.Go(func() error {
			defer fronts.Done()
			return s.locate(layers, g.Run(ctx, l))
		})
	}
	group.Go(func() error {
		fronts.Wait()
		allServed()
		return nil
	})
	if adminListener != nil {
		logger.Info("admin listening", "address", adminListener.Addr().String())
		group.Go(func() error { return admin.serve(served, adminListener) })
	}
	group.Go(func() error {
		return reloadUntil(ctx, hup, c.Config, known, logger, func(content []byte) error {
			now, layers, p, err := read(content)
			if err == nil {
				err = s.unchanged(&now, layers)
			}
			if err == nil {
				p.gateway.Logger, p.gateway.OnRequest = logger, m.OnRequest
				err = now.locate(layers, g.Reload(p.gateway))
			}
			if admin.reloaded(err == nil); err == nil {
				admin.allow(p.admin)
			}
			return err
		})
	})
	heap := raiseHeap()
	defer runtime.KeepAlive(heap)
	notifyReady()
	context.AfterFunc(ctx, notifyStopping)
	err = group.Wait()
	logger.Info("gateway ended")
	return err
}

// listen takes an address, the value of a setting. Its errors say what to do about it.
func listen(address, setting string, layers *configfile.Layers) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("address %s is in use: stop what listens there, or choose another", address)
	case errors.Is(err, syscall.EACCES):
		err = fmt.Errorf("address %s is not for this user: choose a port from 1024, or grant the right to lower ones (setcap cap_net_bind_service=+ep)", address)
	case err != nil:
		err = fmt.Errorf("%w: listen on %q: %w: want host:port, such as 127.0.0.1:8080 or :8080", errUsage, address, err)
	}
	if err != nil {
		return nil, layers.At(setting, err)
	}
	return l, nil
}
