package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// mustCertificate writes a self-signed certificate for the names, and its key.
func mustCertificate(t testing.TB, f gateway.CertificateFiles, serial int64, names ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, f.CertFile, 0o644, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	mustWrite(t, f.KeyFile, 0o600, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

func mustWrite(t testing.TB, name string, mode os.FileMode, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func certificateFiles(dir, name string) gateway.CertificateFiles {
	return gateway.CertificateFiles{CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key")}
}

// serialFor returns the serial number of the certificate that a client that asks for a name gets.
func serialFor(t testing.TB, dial func() net.Conn, name string) int64 {
	t.Helper()
	c := tls.Client(dial(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
	defer c.Close()
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// New certificates are used without a restart, those that are no good are not, and connections stay.
func TestCertificatesReloaded(t *testing.T) {
	dir := t.TempDir()
	shop, wild := certificateFiles(dir, "shop"), certificateFiles(dir, "wild")
	log := &lockedBuffer{}
	synctest.Test(t, func(t *testing.T) {
		mustCertificate(t, shop, 1, "shop.example", "www.shop.example")
		mustCertificate(t, wild, 2, "*.example")
		c := gateway.Config{Certificates: []gateway.CertificateFiles{shop, wild}, Logger: textLogger(log)}
		piped(t, c, says("a"), func(t *testing.T, g *gateway.Gateway, dial func() net.Conn) {
			want := func(name string, serial int64) {
				t.Helper()
				if got := serialFor(t, dial, name); got != serial {
					t.Errorf("%s: certificate %d, want %d", name, got, serial)
				}
			}
			want("shop.example", 1)
			want("www.shop.example", 1)
			want("blog.example", 2)
			want("elsewhere.test", 1)
			want("", 1)

			open := &http.Client{Transport: &http.Transport{
				DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
					return tls.Client(dial(), &tls.Config{InsecureSkipVerify: true}), nil
				},
			}}
			defer open.CloseIdleConnections()
			get := func() {
				t.Helper()
				res, err := open.Get("https://shop.example/")
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if n := res.TLS.PeerCertificates[0].SerialNumber.Int64(); n != 1 {
					t.Errorf("connection with certificate %d, want the old one with 1", n)
				}
			}
			get()

			mustCertificate(t, shop, 3, "shop.example")
			time.Sleep(11 * time.Second)
			want("shop.example", 3)
			want("blog.example", 2)
			get()

			// A certificate that was replaced before its key: nothing changes until the key is there.
			other := certificateFiles(dir, "other")
			mustCertificate(t, other, 4, "shop.example")
			mustWrite(t, shop.CertFile, 0o644, mustRead(t, other.CertFile))
			time.Sleep(11 * time.Second)
			want("shop.example", 3)
			if err := g.ReloadCertificates(); err == nil || !strings.Contains(err.Error(), "is not for the key in "+shop.KeyFile) {
				t.Errorf("certificate of another key: %v", err)
			}
			mustWrite(t, shop.KeyFile, 0o600, mustRead(t, other.KeyFile))
			if err := g.ReloadCertificates(); err != nil {
				t.Errorf("with its key: %v", err)
			}
			want("shop.example", 4)

			// Reload names others, or is refused as a whole.
			c.Upstreams, c.Certificates = upstreams("http://app:1"), []gateway.CertificateFiles{wild}
			if err := g.Reload(c); err != nil {
				t.Fatal(err)
			}
			want("shop.example", 2)
			c.Certificates = []gateway.CertificateFiles{{CertFile: shop.CertFile, KeyFile: wild.KeyFile}}
			if err := g.Reload(c); err == nil || !strings.Contains(err.Error(), "is not for the key") {
				t.Errorf("reload with a key of another certificate: %v", err)
			}
			want("shop.example", 2)
			c.Certificates = nil
			if err := g.Reload(c); err == nil || !strings.Contains(err.Error(), "restart the gateway") {
				t.Errorf("reload without certificates: %v", err)
			}

			mustWrite(t, wild.CertFile, 0o644, "garbage")
			time.Sleep(time.Minute)
			want("blog.example", 2)

			// Reload takes other files; one that is no good changes nothing.
			third := certificateFiles(dir, "third")
			mustCertificate(t, third, 5, "third.example")
			c.Upstreams, c.Certificates = upstreams("http://app:1"), []gateway.CertificateFiles{third, wild}
			var wrong *gateway.ConfigError
			if err := g.Reload(c); !errors.As(err, &wrong) || wrong.Field != "Certificates[1].CertFile" {
				t.Errorf("reload with a certificate that is no good: %v", err)
			}
			want("shop.example", 2)
			want("third.example", 2)
			c.Certificates = c.Certificates[:1]
			if err := g.Reload(c); err != nil {
				t.Errorf("reload: %v", err)
			}
			want("third.example", 5)
			get()
			c.Certificates = nil
			if err := g.Reload(c); !errors.As(err, &wrong) || wrong.Field != "Certificates" {
				t.Errorf("reload without certificates: %v", err)
			}
		})
	})
	for message, n := range map[string]int{"certificates not loaded": 2, "certificates loaded": 2} {
		if got := strings.Count(log.String(), message); got != n {
			t.Errorf("%q logged %d times, want %d:\n%s", message, got, n, log)
		}
	}
}

func mustRead(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCertificateErrors(t *testing.T) {
	dir := t.TempDir()
	good, other, open, bad := certificateFiles(dir, "good"), certificateFiles(dir, "other"), certificateFiles(dir, "open"), certificateFiles(dir, "bad")
	for i, f := range []gateway.CertificateFiles{good, other, open, bad} {
		mustCertificate(t, f, int64(i), "x")
	}
	if err := os.Chmod(open.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, bad.CertFile, 0o644, "no PEM")
	for _, c := range []struct {
		name  string
		files []gateway.CertificateFiles
		want  string
	}{
		{"good", []gateway.CertificateFiles{good, other}, ""},
		{"key of another", []gateway.CertificateFiles{{good.CertFile, other.KeyFile}}, "good.crt is not for the key in " + other.KeyFile},
		{"the second of two", []gateway.CertificateFiles{good, {other.CertFile, good.KeyFile}}, "other.crt is not for the key in"},
		{"no certificate", []gateway.CertificateFiles{{filepath.Join(dir, "none"), good.KeyFile}}, "none: no such file"},
		{"no key", []gateway.CertificateFiles{{good.CertFile, filepath.Join(dir, "none")}}, "none: no such file"},
		{"open to all", []gateway.CertificateFiles{open}, "open.key can be read by everybody: chmod o-rwx it"},
		{"garbage", []gateway.CertificateFiles{bad}, "bad.crt with key"},
		{"no key named", []gateway.CertificateFiles{{CertFile: good.CertFile}}, "certificate 1: give both"},
	} {
		_, err := gateway.New(gateway.Config{Upstreams: upstreams("http://127.0.0.1:1"), Certificates: c.files})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(fmt.Sprint(err), "PRIVATE KEY") {
			t.Errorf("%s: the error shows a key", c.name)
		}
	}
}
