package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// A conn is a connection that counts if the server ends it out of the blue: whoever
// is behind it may have been lost with what it had not made durable.
type conn struct {
	net.Conn
	stall  time.Duration
	losses *atomic.Int64
	over   atomic.Bool // we have closed it, the server has announced that it will, or it is counted
}

// Read is only ever waited for: an idle connection has a read under way too.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !c.over.Swap(true) {
		c.losses.Add(1)
	}
	return n, err
}

// Write gives the server some time to take each piece.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil && !c.over.Swap(true) {
		c.losses.Add(1)
	}
	return n, err
}

func (c *conn) Close() error {
	c.over.Store(true)
	return c.Conn.Close()
}

// announced is told that the server is about to end the connection c, which may be
// under TLS.
func announced(c net.Conn) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.over.Store(true)
	}
}

// newTransport makes the connections of a server.
func newTransport(opt *Options, base, socket string, losses *atomic.Int64) (*http.Transport, error) {
	secure, err := opt.tls()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: opt.DialTimeout, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       secure,
		TLSHandshakeTimeout:   opt.DialTimeout,
		ResponseHeaderTimeout: opt.Timeout,
		ExpectContinueTimeout: opt.Timeout,
		MaxIdleConns:          opt.Connections,
		MaxIdleConnsPerHost:   opt.Connections,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if socket != "" {
				network, address = "unix", socket
			}
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, dialError(shown(base, socket), err)
			}
			return &conn{Conn: c, stall: opt.Timeout, losses: losses}, nil
		},
	}
	if socket != "" {
		t.Proxy = nil
	}
	return t, nil
}

// tls is how the server is verified, and what is shown to it. The files' names are
// the caller's, and stand in errors.
func (o *Options) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("client: authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("client: authorities: %s holds no certificate", o.CAFile)
		}
	}
	if o.CertFile == "" {
		return config, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client: certificate: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return config, nil
}

// hopeless reports whether a connection fails for what another attempt would not
// change.
func hopeless(err error) bool {
	if _, bad := errors.AsType[*tls.CertificateVerificationError](err); bad {
		return true
	}
	if _, bad := errors.AsType[tls.RecordHeaderError](err); bad {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert of TLS
		return true
	}
	if where, ok := errors.AsType[*net.DNSError](err); ok {
		return where.IsNotFound
	}
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission)
}
