package certificate_test

import (
	"crypto/tls"
	"fmt"
	"testing"

	"github.com/extentd/extentd/test/certs"
)

// A client whose authority is taken away is not let in again: neither with its
// certificate, nor with a ticket that it got for it.
func TestAuthorityTakenAway(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, ask := range []tls.ClientAuthType{tls.RequireAndVerifyClientCert, tls.VerifyClientCertIfGiven} {
			t.Run(fmt.Sprintf("%s, %v", tls.VersionName(version), ask), func(t *testing.T) {
				a, other := certs.New(t), certs.New(t)
				opt := at(a)
				opt.ClientCA, opt.ClientAuth, opt.MaxVersion = a.Path("ca-cert.pem"), ask, version
				f, _ := open(t, opt)
				server := f.Config()
				client := speaks(a, "localhost")
				client.Certificates = []tls.Certificate{a.Pair("client")}
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				var first tls.ConnectionState
				for i := range 2 {
					served, seen, err := shake(server, client)
					must(t, err)
					if seen.DidResume != (i > 0) || len(served.VerifiedChains) == 0 {
						t.Errorf("connection %d: resumed %v, %d chains", i, seen.DidResume, len(served.VerifiedChains))
					}
					if i == 0 {
						first = served
					}
				}
				if !f.Trusts(first.VerifiedChains) || f.Verify(first.PeerCertificates) != nil {
					t.Error("a connection is not trusted from the start")
				}
				both := append(readFile(t, other.Path("ca-cert.pem")), readFile(t, a.Path("ca-cert.pem"))...)
				writeFile(t, opt.ClientCA, both)
				_, seen, err := shake(server, client)
				must(t, err)
				if !seen.DidResume || !f.Trusts(first.VerifiedChains) || f.Verify(first.PeerCertificates) != nil {
					t.Error("one more authority does harm")
				}

				writeFile(t, opt.ClientCA, readFile(t, other.Path("ca-cert.pem")))
				served, _, err := shake(server, client)
				if err == nil {
					t.Errorf("it is let in, with %d chains", len(served.VerifiedChains))
				}
				if f.Trusts(first.VerifiedChains) || f.Verify(first.PeerCertificates) == nil {
					t.Error("a connection that stands is still trusted")
				}
				if !f.Trusts(nil) || f.Verify(nil) != nil {
					t.Error("a connection without a certificate is not trusted")
				}
				client.Certificates = nil // its ticket alone
				served, seen, err = shake(server, client)
				if ask == tls.RequireAndVerifyClientCert && err == nil || seen.DidResume || len(served.VerifiedChains) > 0 {
					t.Errorf("with a ticket alone: %v, resumed %v, %d chains", err, seen.DidResume, len(served.VerifiedChains))
				}
				client.Certificates = []tls.Certificate{other.Pair("client")}
				client.ClientSessionCache = nil
				if served, _, err = shake(server, client); err != nil || !f.Trusts(served.VerifiedChains) || len(served.VerifiedChains) == 0 {
					t.Errorf("the other authority's: %v", err)
				}
			})
		}
	}
}

// TestProtocols: TLS 1.2 and later, HTTP/2 where both speak it.
func TestProtocols(t *testing.T) {
	a := certs.New(t)
	opt := at(a)
	opt.NextProtos = []string{"h2", "http/1.1"}
	f, _ := open(t, opt)
	for _, protocol := range opt.NextProtos {
		client := speaks(a, "localhost")
		client.NextProtos = []string{protocol}
		served, _, err := shake(f.Config(), client)
		if err != nil || served.NegotiatedProtocol != protocol || served.Version != tls.VersionTLS13 {
			t.Errorf("%v, %q, %s", err, served.NegotiatedProtocol, tls.VersionName(served.Version))
		}
	}
	old := speaks(a, "localhost")
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, _, err := shake(f.Config(), old); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}
