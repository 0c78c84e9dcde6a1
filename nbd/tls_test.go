package nbd_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
	"github.com/extentd/extentd/test/certs"
)

// certificates are a server's and a client's configuration, of an authority of
// their own. The server wants to see the client's certificate.
func certificates(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	a := certs.New(t)
	server = &tls.Config{Certificates: []tls.Certificate{a.Pair("server")}, ClientCAs: a.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	return server, &tls.Config{Certificates: []tls.Certificate{a.Pair("client")}, RootCAs: a.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

// TestTLSRequired: before TLS nothing is told, whatever is asked for.
func TestTLSRequired(t *testing.T) {
	server, config := certificates(t)
	content := random(mib)
	v := serve(t, setup{options: nbd.Options{TLS: server, RequireTLS: true}}, raw(t, "a.raw", content))
	t.Run("before", func(t *testing.T) {
		c := v.greet(t)
		for option, data := range map[wire.Option][]byte{
			wire.OptList: nil, wire.OptInfo: goFor("a.raw"), wire.OptGo: goFor("b.raw"), wire.OptStructuredReply: nil,
			wire.OptExtendedHeaders: nil, wire.OptListMetaContext: metaFor("a.raw"), wire.OptSetMetaContext: {1, 2, 3}, 99: []byte("x"),
		} {
			all := c.option(option, data)
			if len(all) != 1 || all[0].reply != wire.RepErrTLSReqd || bytes.Contains(all[0].data, []byte("raw")) {
				t.Errorf("option %d: %+v", option, all)
			}
		}
		c.want(wire.OptStartTLS, []byte{1}, wire.RepErrInvalid)
		c.want(wire.OptAbort, nil, wire.RepAck)
		c.gone()
	})
	t.Run("export name", func(t *testing.T) {
		c := v.greet(t)
		c.write(wire.AppendOption(nil, wire.OptExportName, []byte("a.raw")))
		c.gone()
	})
	t.Run("no certificate", func(t *testing.T) {
		c := v.greet(t)
		c.want(wire.OptStartTLS, nil, wire.RepAck)
		without := config.Clone()
		without.Certificates = nil
		nc := tls.Client(c.nc, without)
		if err := nc.Handshake(); err == nil { // TLS 1.3 tells later
			if _, err := nc.Read(make([]byte, 1)); err == nil {
				t.Error("served without a certificate")
			}
		}
	})
	t.Run("sent ahead", func(t *testing.T) { // what came before TLS is not taken for what comes after it
		c := v.greet(t)
		p := wire.AppendOption(nil, wire.OptStartTLS, nil)
		c.write(wire.AppendOption(p, wire.OptList, nil))
		c.answers(wire.OptStartTLS)
		if err := tls.Client(c.nc, config).Handshake(); err == nil {
			t.Error("TLS stands")
		}
	})
	t.Run("after", func(t *testing.T) {
		for _, m := range modes {
			c := v.greet(t)
			c.secure(config)
			c.want(wire.OptStartTLS, nil, wire.RepErrInvalid)
			if all := c.want(wire.OptList, nil, wire.RepAck); len(all) != 1 {
				t.Error(all)
			}
			c.agree(m)
			c.choose("")
			if got := c.readAt(0, mib); !bytes.Equal(got, content) {
				t.Error("content differs")
			}
			c.writeAt(content[:200_000], 0)
			c.writeAt([]byte("abc"), 0)
			if got := c.readAt(0, 3); string(got) != "abc" {
				t.Errorf("%q", got)
			}
			c.writeAt(content[:3], 0)
			c.send(wire.Request{Command: wire.CmdDisc}, nil)
			if _, err := c.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // not cut off
				t.Error(err)
			}
		}
	})
}

// TestTLSForgets: what was agreed on before TLS does not hold after it.
func TestTLSForgets(t *testing.T) {
	server, config := certificates(t)
	v := serve(t, setup{options: nbd.Options{TLS: server}}, raw(t, "a.raw", random(512)))
	c := v.open(t, "a.raw", extended) // as one likes
	c.alive()
	c = v.greet(t)
	c.agree(structured)
	c.setContexts("a.raw", wire.BaseAllocation)
	c.secure(config)
	c.want(wire.OptSetMetaContext, metaFor("a.raw", wire.BaseAllocation), wire.RepErrInvalid)
	c.structured = false
	c.choose("a.raw")
	if c.info.Flags&wire.SendDF != 0 {
		t.Errorf("flags %#x", c.info.Flags)
	}
	c.fails(wire.EINVAL, wire.Request{Command: wire.CmdBlockStatus, Length: 512}, nil)
	if got := c.readAt(0, 512); len(got) != 512 {
		t.Error("no data")
	}
}

func TestTLSTimeout(t *testing.T) {
	server, _ := certificates(t)
	v := serve(t, setup{options: nbd.Options{TLS: server, RequireTLS: true, HandshakeTimeout: 200 * time.Millisecond}}, raw(t, "a.raw", nil))
	c := v.greet(t)
	began := time.Now()
	for time.Since(began) < 150*time.Millisecond { // options do not help
		c.want(wire.OptList, nil, wire.RepErrTLSReqd)
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	c.gone()
	c = v.greet(t)
	c.want(wire.OptStartTLS, nil, wire.RepAck)
	c.gone()
}
