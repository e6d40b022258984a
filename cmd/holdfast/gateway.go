package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

type gatewayCmd struct {
	Listen   string   `default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address for clients (${default}). Port 0 takes a free one."`
	Upstream []string `required:"" placeholder:"[ID=]URL" help:"Application server, as http://host:port or ID=http://host:port. Once for each, or with commas between them."`
	Affinity string   `enum:"none,cookie" default:"none" help:"Which server a client goes to: none takes them in turn, cookie keeps to one (${default})."`

	KeyFile          string `type:"path" placeholder:"PATH" help:"File with the key of affinity cookies, 32 random bytes (openssl rand -hex 32), the same on every gateway and readable by its owner only. Or put the key into HOLDFAST_KEY."`
	AffinityCookie   string `placeholder:"NAME" help:"Name of the affinity cookie, without __Host- (holdfast-upstream)."`
	PlainLocalhost   bool   `name:"allow-plain-localhost" help:"On plain http to localhost, where not every browser sends Secure cookies, make them without it. For development."`
	SessionCookie    string `placeholder:"NAME" help:"Name of the application's session cookie, for X-Session-Id (__Host-Http-session)."`
	SessionHeader    string `placeholder:"NAME" help:"Header that holds the session token of clients without cookies."`
	SessionParameter string `name:"session-parameter" placeholder:"NAME" help:"URL parameter that holds the session token of clients without cookies."`

	TLSCert string `name:"tls-cert" type:"path" placeholder:"PATH" help:"Certificate chain, in PEM form. Clients then use https, also HTTP/2."`
	TLSKey  string `name:"tls-key" type:"path" placeholder:"PATH" help:"Private key of the certificate."`

	DialTimeout     time.Duration `default:"2s" help:"Time to connect to a server (${default})."`
	ResponseTimeout time.Duration `default:"60s" help:"Time for a server to begin its answer (${default})."`
	DrainTimeout    time.Duration `default:"30s" help:"Time for requests to finish at the end (${default})."`
	LogFormat       string        `enum:"text,json" default:"text" help:"Log on standard error as text or json."`
}

func (gatewayCmd) Help() string {
	return `A server that cannot be reached is left at once, and the next one gets the request. SIGTERM and Ctrl-C let requests
finish first.

Examples:

  holdfast gateway --upstream http://10.0.0.1:3000 --upstream http://10.0.0.2:3000

  (umask 077; openssl rand -hex 32 > gateway.key)
  holdfast gateway --listen :8443 --tls-cert cert.pem --tls-key key.pem \
      --upstream a=http://10.0.0.1:3000 --upstream b=http://10.0.0.2:3000 \
      --affinity cookie --key-file gateway.key`
}

func (c gatewayCmd) Run(ctx context.Context) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if c.LogFormat == "json" {
		logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	}
	config, err := c.config(logger)
	if err != nil {
		return err
	}
	if err := config.Validate(); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	g, err := gateway.New(config)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("address %s is in use: stop what listens there, or choose another with --listen", c.Listen)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("address %s is not for this user: choose a port from 1024, or grant the right to lower ones (setcap cap_net_bind_service=+ep)", c.Listen)
	case err != nil:
		return fmt.Errorf("%w: listen on %q: %w: want host:port, such as 127.0.0.1:8080 or :8080", errUsage, c.Listen, err)
	}
	logger.Info("gateway listening", "address", l.Addr().String(), "upstreams", len(config.Upstreams), "affinity", config.Affinity)
	err = g.Run(ctx, l)
	logger.Info("gateway ended")
	return err
}

// config returns the gateway's configuration; what it does not check, Validate does.
func (c gatewayCmd) config(logger *slog.Logger) (gateway.Config, error) {
	config := gateway.Config{
		Affinity:      gateway.Affinity(c.Affinity),
		Cookie:        gateway.Cookie{Name: c.AffinityCookie, AllowPlainLocalhost: c.PlainLocalhost},
		SessionHeader: c.SessionHeader, SessionParameter: c.SessionParameter,
		DialTimeout: c.DialTimeout, ResponseHeaderTimeout: c.ResponseTimeout, DrainTimeout: c.DrainTimeout,
		Logger: logger,
	}
	for _, u := range c.Upstream {
		config.Upstreams = append(config.Upstreams, gateway.ParseUpstream(u))
	}
	if c.SessionCookie != "" {
		config.SessionCookies = []string{c.SessionCookie}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return gateway.Config{}, fmt.Errorf("%w: --tls-cert and --tls-key: give both or neither", errUsage)
	}
	if c.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return gateway.Config{}, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		config.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	if config.Affinity != gateway.AffinityCookie {
		return config, nil
	}
	var err error
	if config.Key, err = loadKey(c.KeyFile, os.Getenv("HOLDFAST_KEY")); err != nil {
		return gateway.Config{}, err
	}
	if config.Key == nil {
		logger.Warn("random key: after a restart, and at another gateway, clients move to another server; give a key with --key-file")
		config.Key = make([]byte, keyBytes)
		_, _ = rand.Read(config.Key) // never fails
	}
	return config, nil
}
