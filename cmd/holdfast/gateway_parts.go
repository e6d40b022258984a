package main

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/configfile"
	"github.com/holdfast-sessions/holdfast/internal/loopback"
)

// parts are what a gateway is run with.
type parts struct {
	gateway gateway.Config
	admin   gateway.AdminConfig
}

// loader makes parts of settings. What a reload must not change, though it is made anew, it keeps.
type loader struct {
	ownKey      []byte      // that is used where no key was given
	authorities []byte      // the file of upstreamTLS
	upstreamTLS *tls.Config // the same for the same file: with another, gateway.Reload makes new connections
}

// parts returns what the settings describe, with the keys, tokens and certificates of the files that they name. Its errors
// name the line, and all of them at once.
func (l *loader) parts(s *settings, layers *configfile.Layers) (parts, error) {
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
	p.gateway.Key, err = loadKey(s.Gateway.Affinity.KeyFile, os.Getenv("HOLDFAST_KEY"))
	bad("gateway.affinity.key_file", err)
	// Without one, gateways agree on hash and route all the same.
	if a := config.Affinity; p.gateway.Key == nil && (a == gateway.AffinityCookie || a == gateway.AffinitySession) {
		if l.ownKey == nil {
			l.ownKey = make([]byte, keyBytes)
			_, _ = rand.Read(l.ownKey) // never fails
		}
		p.gateway.Key = l.ownKey
	}
	if file := s.Gateway.Session.SignatureFile; file != "" {
		p.gateway.SignatureKey, err = loadKey(file, "")
		bad("gateway.session.signature_key_file", err)
	}
	p.gateway.UpstreamTLS, err = l.authoritiesOf(s.Gateway.UpstreamTLS.CAFile)
	bad("gateway.upstream_tls.ca_file", err)
	if file := s.Admin.TokenFile; file != "" {
		p.admin.Token, err = readToken(file)
		bad("admin.token_file", err)
	}
	if s.Admin.Listen != "" && s.Admin.TokenFile == "" && !loopback.IsAddress(s.Admin.Listen) {
		bad("admin.listen", fmt.Errorf("%q can be reached from other machines: choose a loopback address such as %s, or give a token_file", s.Admin.Listen, defaultAdmin))
	}
	if f := s.Log.Format; f != "text" && f != "json" {
		err := fmt.Errorf("%q: want text or json", f)
		if layers.Source("log.format") != configfile.File {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		bad("log.format", err)
	}
	if len(s.Gateway.Listen) == 0 {
		bad("gateway.listen", errors.New("no address for clients: want one such as :8080"))
	}
	if err := p.gateway.Validate(); err != nil {
		errs = append(errs, s.locate(layers, err))
		if !layers.HasFile() {
			return p, fmt.Errorf("%w: %w", errUsage, errors.Join(errs...))
		}
		return p, errors.Join(errs...)
	}
	// New reads the files of certificates, too.
	quiet := p.gateway
	quiet.Logger = slog.New(slog.DiscardHandler)
	_, err = gateway.New(quiet)
	return p, errors.Join(append(errs, s.locate(layers, err))...)
}

// authoritiesOf returns how https upstreams are known, by the certificates in a file. It is nil if file is "".
func (l *loader) authoritiesOf(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if l.upstreamTLS == nil || !bytes.Equal(b, l.authorities) {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s has no certificate: want those of the authority that signed the servers' ones, in PEM form", file)
		}
		l.authorities, l.upstreamTLS = b, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return l.upstreamTLS, nil
}

// readToken reads the token of the admin API.
func readToken(file string) (string, error) {
	b, err := readSecret(file)
	if err != nil {
		return "", fmt.Errorf("token file %s: %w", file, err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken {
		return "", fmt.Errorf("token file %s: it holds %d characters: want %d or more random ones (openssl rand -hex 32)", file, len(token), minToken)
	}
	return token, nil
}

// minToken is how many characters a token has at least: 80 bits if it is random and hexadecimal.
const minToken = 20
