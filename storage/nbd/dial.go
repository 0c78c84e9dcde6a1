package nbd

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"time"
)

// A session is what the handshake of one connection led to.
type session struct {
	export     export
	structured bool
	extended   bool
	context    uint32 // the id of base:allocation
	mapped     bool   // there is one
}

// dial connects and negotiates. The connection is the caller's.
func (t *target) dial(ctx context.Context, timeout time.Duration) (net.Conn, session, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, session{}, err
	}
	plain := c
	stop := context.AfterFunc(ctx, func() { _ = plain.SetDeadline(time.Unix(1, 0)) })
	h := &handshake{c: c, name: t.export}
	err = h.greet()
	if err == nil && t.tls != nil {
		if err = h.startTLS(); err == nil {
			secure := tls.Client(c, t.tls)
			h.c = secure
			err = secure.HandshakeContext(ctx)
		}
	}
	if err == nil {
		err = h.negotiate()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = h.c.Close()
		return nil, session{}, err
	}
	return h.c, h.session, nil
}

// read reads exactly n bytes, which are good until the next call.
func (h *handshake) read(n int) ([]byte, error) {
	if cap(h.buf) < n {
		h.buf = make([]byte, n)
	}
	p := h.buf[:n]
	_, err := io.ReadFull(h.c, p)
	return p, err
}
