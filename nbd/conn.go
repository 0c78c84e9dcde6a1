package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// A conn is a connection. Its goroutine negotiates, and then reads requests.
type conn struct {
	s        *Server
	log      *slog.Logger
	nc       net.Conn     // as accepted
	draining atomic.Bool  // no more options or requests are served
	state    atomic.Int32 // where it is, for drain
	caller   *auth.Caller // who the client is; may change when TLS begins
	tls      *tls.Conn    // nil without TLS
	counts   counts
	readOnly bool   // so is the export
	denied   string // the last image that the client was not let to
}

// The states of a connection.
const (
	negotiating int32 = iota
	transmitting
)

func newConn(s *Server, nc net.Conn) *conn {
	id := s.last.Add(1)
	return &conn{s: s, nc: nc, caller: auth.Anyone(), log: s.log.With("connection", id, "client", nc.RemoteAddr().String())}
}

// goodbyeTime is how long a client that negotiates has to send its next option
// once the server is stopping.
const goodbyeTime = 500 * time.Millisecond

// drain lets what is under way end, and closes the connection after it.
func (c *conn) drain() {
	c.draining.Store(true)
	wait := time.Duration(0)
	if c.state.Load() == negotiating {
		wait = goodbyeTime
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(wait)) // one that is closed needs none
}

// cut ends the connection at once.
func (c *conn) cut() { _ = c.nc.Close() }

// lingerTime is how long a client has to take its last replies, and go.
const lingerTime = 2 * time.Second

// linger lets the last replies arrive: a TCP connection that is closed while there
// are requests that nobody has read is reset, and with it goes what is on its way.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c.nc) // until it is gone, or it is cut
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer c.cut()
	defer func() {
		if p := recover(); p != nil { // as net/http does for its own goroutines
			c.log.Error("nbd: panic", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if c.s.draining.Load() { // it may have come too late to be told
		c.drain()
	}
	c.log.Debug("nbd: connected")
	err := c.run()
	if c.draining.Load() {
		c.linger()
	}
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
		c.log.Debug("nbd: disconnected", "error", err)
	case errors.Is(err, wire.ErrProtocol):
		c.log.Warn("nbd: the client broke the protocol", "error", err)
	default:
		c.log.Debug("nbd: connection lost", "error", err)
	}
}

// identify finds out who the client is, once TLS stands.
func (c *conn) identify(t *tls.Conn) error {
	if c.s.opt.Identify == nil {
		return nil
	}
	caller, err := c.s.opt.Identify(t.ConnectionState().PeerCertificates)
	if err != nil {
		c.log.Warn("nbd: refused", "error", err)
		c.caller = nil
		c.auditRefusal("")
		return err
	}
	c.caller, c.tls = caller, t
	return nil
}

// stillMay reports whether the client may still do what it could when it chose
// the export.
func (c *conn) stillMay(e *export) bool {
	if c.tls == nil {
		return true
	}
	now, err := c.s.opt.Identify(c.tls.ConnectionState().PeerCertificates)
	return err == nil && now.Grants.Verbs(e.name).Has(c.caller.Grants.Verbs(e.name))
}

// run serves the connection to its end.
func (c *conn) run() error {
	n := negotiation{c: c, rw: c.nc}
	defer n.release()
	if err := n.run(); err != nil || n.export == nil {
		return err
	}
	c.state.Store(transmitting)
	if c.draining.Load() {
		c.drain() // it may have allowed for an option
	} else if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	} else if c.draining.Load() {
		c.drain()
	}
	c.s.mu.Lock()
	c.s.exports[n.export] = struct{}{}
	c.s.mu.Unlock()
	c.readOnly = n.export.readOnly
	defer c.auditChanges(n.export.name, time.Now())
	if err := newSession(&n).run(); err != nil {
		return fmt.Errorf("export %q: %w", n.export.name, err)
	}
	return nil
}
