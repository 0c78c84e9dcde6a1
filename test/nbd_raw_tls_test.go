package test

import (
	"crypto/tls"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
	"github.com/extentd/extentd/test/certs"
)

// secure begins TLS, and returns what the handshake came to.
func (c *rawNBD) secure(config *tls.Config) error {
	c.t.Helper()
	c.want(wire.OptStartTLS, nil, wire.RepAck)
	over := tls.Client(c.conn, config)
	c.conn = over
	return over.Handshake()
}

// TestNBDRawTLSRequired: before TLS there is nothing but STARTTLS and ABORT; under
// it there is everything but a second STARTTLS.
func TestNBDRawTLSRequired(t *testing.T) {
	m := newMaker(t, t.TempDir(), "tls")
	own := certs.New(t)
	s := serveShell(t, m, map[string]string{"raw": "raw"}, own.NBD()...)
	trusting := &tls.Config{RootCAs: own.Pool(), ServerName: "127.0.0.1"}
	options := map[wire.Option][]byte{
		wire.OptList: nil, wire.OptInfo: goOf("raw"), wire.OptGo: goOf("raw"), wire.OptStructuredReply: nil, wire.OptExtendedHeaders: nil,
		wire.OptListMetaContext: metaOf("raw"), wire.OptSetMetaContext: metaOf("raw", wire.BaseAllocation), 4: nil, 99: make([]byte, 100),
	}
	for _, uri := range s.nbd {
		c := knock(t, uri, usualFlags)
		for o, data := range options {
			c.want(o, data, wire.RepErrTLSReqd)
			there, err := c.option(wire.OptGo, goOf("raw"))
			must(t, err)
			missing, err := c.option(wire.OptGo, goOf("missing"))
			must(t, err)
			if len(there) != 1 || len(missing) != 1 || there[0].reply != missing[0].reply || string(there[0].data) != string(missing[0].data) {
				t.Errorf("before TLS an export can be told from one that is missing: %v, %v", there, missing)
			}
		}
		c.want(wire.OptStartTLS, []byte{0}, wire.RepErrInvalid)
		must(t, c.secure(trusting))
		c.want(wire.OptStartTLS, nil, wire.RepErrInvalid)
		c.want(wire.OptStartTLS, []byte{1}, wire.RepErrInvalid)
		c.want(wire.OptSetMetaContext, metaOf("raw", wire.BaseAllocation), wire.RepErrInvalid) // nothing is left of what was asked for before
		if exports := c.want(wire.OptList, nil, wire.RepAck); len(exports) != 2 {
			t.Errorf("under TLS there are %v", exports)
		}
		c.want(99, nil, wire.RepErrUnsup)
		c.speak(structuredReplies).choose("raw").alive()

		c = knock(t, uri, usualFlags)
		c.put(wire.AppendOption(nil, wire.OptExportName, []byte("raw")))
		c.gone()
		c = knock(t, uri, usualFlags)
		c.want(wire.OptAbort, nil, wire.RepAck)
		c.gone()
	}
}

// TestNBDRawTLSBroken: what is no handshake ends the connection, and what was sent
// in clear after STARTTLS is not taken for what came under TLS.
func TestNBDRawTLSBroken(t *testing.T) {
	m := newMaker(t, t.TempDir(), "tls")
	own := certs.New(t)
	s := serveShell(t, m, map[string]string{"raw": "raw"}, own.NBD()...)
	c := knock(t, s.nbd[0], usualFlags)
	c.put(append(wire.AppendOption(nil, wire.OptStartTLS, nil), wire.AppendOption(nil, wire.OptList, nil)...))
	p := c.take(wire.OptionReplySize)
	if h, err := wire.ParseOptionReply(p, wire.OptStartTLS); err != nil || h.Reply != wire.RepAck {
		t.Fatalf("%+v, %v", h, err)
	}
	// At most an alert, which is no answer to an option.
	if head := make([]byte, 64); true {
		for n, err := c.conn.Read(head); err == nil; n, err = c.conn.Read(head) {
			if n > 7 || head[0] != 21 {
				t.Fatalf("in clear after STARTTLS: %q", head[:n])
			}
		}
	}
	c = knock(t, s.nbd[0], usualFlags)
	if err := c.secure(&tls.Config{RootCAs: own.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is good enough")
	}
}

// TestNBDRawTLSClients: where clients need a certificate, those without one see
// nothing.
func TestNBDRawTLSClients(t *testing.T) {
	m := newMaker(t, t.TempDir(), "tls")
	own, clients, stranger := certs.New(t), certs.New(t), certs.New(t)
	s := serveShell(t, m, map[string]string{"raw": "raw"},
		append(own.NBD(), "--nbd-tls-client-ca", clients.Path("ca-cert.pem"))...)
	for name, pairs := range map[string][]tls.Certificate{"none": nil, "a stranger's": {stranger.Pair("client")}} {
		t.Run(name, func(t *testing.T) {
			c := knock(t, s.nbd[0], usualFlags)
			err := c.secure(&tls.Config{RootCAs: own.Pool(), ServerName: "127.0.0.1", Certificates: pairs})
			if err == nil { // TLS 1.3 tells of it after the handshake
				_, err = c.option(wire.OptList, nil)
			}
			if err == nil {
				t.Error("the exports were listed")
			}
		})
	}
	c := knock(t, s.nbd[0], usualFlags)
	must(t, c.secure(&tls.Config{RootCAs: own.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{clients.Pair("client")}}))
	c.speak(extendedHeaders).choose("raw").alive()
}
