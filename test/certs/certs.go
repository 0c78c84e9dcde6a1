// Package certs makes certificates for tests.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An Authority signs certificates, and lays them out as libnbd, QEMU and nbdkit
// want them: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and
// client-key.pem in a directory.
type Authority struct {
	Dir string
	t   testing.TB
	crt *x509.Certificate
	key crypto.Signer
}

// New makes an authority, a server's certificate for localhost and 127.0.0.1, and
// one for a client.
func New(t testing.TB) *Authority {
	t.Helper()
	return In(t, t.TempDir())
}

// In is like New, in a directory that is there.
func In(t testing.TB, dir string) *Authority {
	t.Helper()
	a := &Authority{Dir: dir, t: t}
	a.crt = &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	a.crt, a.key = a.issue("ca", a.crt, false)
	a.Server("localhost")
	a.Client("client")
	return a
}

// Server makes the server's certificate anew: for a name, besides 127.0.0.1.
func (a *Authority) Server(name string) {
	a.t.Helper()
	a.issue("server", &x509.Certificate{
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, false)
}

// Client makes a certificate for a client of this name: NAME-cert.pem and
// NAME-key.pem. It is RSA: those are what certtool makes, and what GnuTLS is
// choosy with.
func (a *Authority) Client(name string) {
	a.t.Helper()
	a.issue(name, &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, true)
}

// issue makes a certificate with a key of its own. The first signs itself.
func (a *Authority) issue(name string, template *x509.Certificate, old bool) (*x509.Certificate, crypto.Signer) {
	a.t.Helper()
	key, err := newKey(old)
	a.must(err)
	template.Subject = pkix.Name{CommonName: name}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.crt, key.Public(), signer)
	a.must(err)
	crt, err := x509.ParseCertificate(der)
	a.must(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	a.must(err)
	a.must(os.WriteFile(a.Path(name+"-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	a.must(os.WriteFile(a.Path(name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return crt, key
}

func newKey(old bool) (crypto.Signer, error) {
	if old {
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// Path is that of a file of the authority.
func (a *Authority) Path(name string) string { return filepath.Join(a.Dir, name) }

// HTTP are the flags of a server that speaks HTTPS.
func (a *Authority) HTTP() []string {
	return []string{"--tls-cert", a.Path("server-cert.pem"), "--tls-key", a.Path("server-key.pem")}
}

// NBD are those of one that speaks NBD under TLS.
func (a *Authority) NBD() []string {
	return []string{"--nbd-tls-cert", a.Path("server-cert.pem"), "--nbd-tls-key", a.Path("server-key.pem")}
}

// Pool holds the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.crt)
	return pool
}

// Pair is a certificate that the authority made, with its key.
func (a *Authority) Pair(name string) tls.Certificate {
	a.t.Helper()
	pair, err := tls.LoadX509KeyPair(a.Path(name+"-cert.pem"), a.Path(name+"-key.pem"))
	a.must(err)
	return pair
}

func (a *Authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}
