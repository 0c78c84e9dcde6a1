package http

import (
	"context"
	"crypto/tls"
	"net"
	nethttp "net/http"
	"time"
)

// mostHeader bounds the header of an answer, bytes.
const mostHeader = 64 << 10

// newTransport has no Proxy: the environment must not lead requests elsewhere.
func (f *File) newTransport(opt *Options, dialer *net.Dialer) *nethttp.Transport {
	dialer.Timeout = opt.Timeout
	return &nethttp.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return f.dial(ctx, dialer, network, address)
		},
		TLSClientConfig:        &tls.Config{RootCAs: opt.CA, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    opt.Timeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxConnsPerHost:        opt.MaxConnections,
		MaxIdleConnsPerHost:    opt.MaxConnections,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: mostHeader,
	}
}

// dial connects for as long as the file is open: net/http goes on with dialling,
// and with what comes before the first request, when nobody waits for it.
func (f *File) dial(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(f.life, cancel) //nolint:contextcheck // that of the file
	defer stop()
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	unbind := context.AfterFunc(f.life, func() { _ = c.Close() }) //nolint:contextcheck // that of the file
	return &conn{Conn: c, unbind: unbind}, nil
}

// A conn is closed with its file at the latest.
type conn struct {
	net.Conn
	unbind func() bool
}

func (c *conn) Close() error {
	c.unbind()
	return c.Conn.Close()
}
