package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// CertificateFiles are a certificate, with the chain that leads to it, and its private key, both in PEM form.
type CertificateFiles struct {
	CertFile, KeyFile string
}

// certificatePoll is how often the files are looked at. Events of the file system would be sooner, and are missed on some.
const certificatePoll = 10 * time.Second

// certificates are those of Config.Certificates, as the files were when they were last good.
type certificates struct {
	logger  *slog.Logger
	current atomic.Pointer[[]tls.Certificate]

	// mu guards the fields below, and is held while files are read.
	mu    sync.Mutex
	files []CertificateFiles
	tried [][]byte // what the files last held, good or not
}

// loadCertificates returns nil if there are none.
func loadCertificates(c Config) (*certificates, error) {
	if len(c.Certificates) == 0 {
		return nil, nil
	}
	s := &certificates{files: slices.Clone(c.Certificates), logger: c.Logger}
	_, err := s.load()
	return s, err
}

// load reads the files, and reports whether they have changed. If anything is wrong with one, all stay as they are.
func (s *certificates) load() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found [][]byte
	var pairs []tls.Certificate
	var errs []error
	for i, f := range s.files {
		bad := func(name, format string, args ...any) {
			errs = append(errs, &ConfigError{fmt.Sprintf("Certificates[%d].%s", i, name), fmt.Errorf(format, args...)})
		}
		chain, err := os.ReadFile(f.CertFile)
		if err != nil {
			bad("CertFile", "certificate: %w", err)
		}
		key, err := readKeyFile(f.KeyFile)
		if err != nil {
			bad("KeyFile", "key of certificate %s: %w", f.CertFile, err)
		}
		found = append(found, chain, key)
		if chain == nil || key == nil {
			continue
		}
		pair, err := tls.X509KeyPair(chain, key)
		switch {
		case err == nil:
			pairs = append(pairs, pair)
		case strings.Contains(err.Error(), "does not match"):
			bad("KeyFile", "certificate %s is not for the key in %s: give the key that it was made with, or have a new certificate made for this key", f.CertFile, f.KeyFile)
		default:
			bad("CertFile", "certificate %s with key %s: %w", f.CertFile, f.KeyFile, err)
		}
	}
	if slices.EqualFunc(found, s.tried, bytes.Equal) && s.tried != nil {
		return false, errors.Join(errs...)
	}
	s.tried = found
	if len(errs) > 0 {
		return true, errors.Join(errs...)
	}
	s.current.Store(&pairs)
	for i, p := range pairs {
		if end := p.Leaf.NotAfter; time.Now().After(end) {
			s.logger.Warn("certificate has expired: clients will not accept it", "file", s.files[i].CertFile, "expired", end)
		}
	}
	return true, nil
}

// take makes the files of next, which have been loaded, its own.
func (s *certificates) take(next *certificates) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.tried = next.files, next.tried
	s.current.Store(next.current.Load())
}

// readKeyFile reads a private key, which must not be for everybody to read.
func readKeyFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o004 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s can be read by everybody: chmod o-rwx it", name)
	}
	b := make([]byte, 0, 4<<10)
	buf := bytes.NewBuffer(b)
	if _, err := buf.ReadFrom(f); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// ReloadCertificates reads the files of Config.Certificates again. Run does that every ten seconds by itself. If one of
// them is no good, all of the certificates in use stay, and the error says why.
func (g *Gateway) ReloadCertificates() error {
	if g.certificates == nil {
		return nil
	}
	changed, err := g.certificates.load()
	switch {
	case err != nil && changed:
		g.config.Logger.Error("certificates not loaded: those from before stay in use", "err", err)
	case err == nil && changed:
		g.config.Logger.Info("certificates loaded", "count", len(*g.certificates.current.Load()))
	}
	return err
}

// watchCertificates loads what changes until ctx ends.
func (g *Gateway) watchCertificates(ctx context.Context) {
	if g.certificates == nil {
		return
	}
	tick := time.NewTicker(certificatePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = g.ReloadCertificates() // which logs it, once
		}
	}
}

// forClient returns the first certificate that the client of a handshake accepts, by name and algorithm, or the first of
// all.
func (s *certificates) forClient(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := *s.current.Load()
	if len(all) > 1 {
		for i := range all {
			if hello.SupportsCertificate(&all[i]) == nil {
				return &all[i], nil
			}
		}
	}
	return &all[0], nil
}

// serverTLS returns the configuration of the clients' side, or nil for plain HTTP.
func (g *Gateway) serverTLS() *tls.Config {
	if g.config.TLS == nil && g.certificates == nil {
		return nil
	}
	c := g.config.TLS.Clone()
	if c == nil {
		c = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if g.certificates != nil {
		c.GetCertificate = g.certificates.forClient
		c.Certificates = nil // which would come first
	}
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	return c
}
