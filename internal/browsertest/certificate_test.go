package browsertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net"
	"sync"
	"time"
)

// pinned is a certificate and the pin that a browser accepts it by.
type pinned struct {
	tls.Certificate
	pin string // base64 of the SHA-256 of the public key
}

// certificate makes the certificate of all servers of the tests, once.
var certificate = sync.OnceValue(func() pinned {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost", "*.holdfast.test", "*.other.test"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		panic(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(spki)
	return pinned{
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pin:         base64.StdEncoding.EncodeToString(sum[:]),
	}
})
