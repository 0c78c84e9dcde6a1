// Package nbd serves images by name over the NBD protocol: fixed newstyle, TLS,
// structured replies, block status, extended headers.
//
// It guarantees that a reply to a flush, or to a request with FUA, is sent when
// everything it covers is durable, on whatever connection it was written; that
// nothing is told of any export before TLS where that is required; and that what a
// client sends decides neither how much memory is taken nor for how long a
// request is waited for once it has begun. A request that breaks the rules is
// answered with an error, and the connection goes on; only what makes the rest of
// the stream unintelligible ends it.
//
// It does not guarantee that an image stays as it is: what others write through
// another connection or over HTTP is seen at once, and a resize shows when a
// client connects anew.
package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("nbd: server closed")

// Options configure a server. The zero value serves without TLS.
type Options struct {
	// TLS is what STARTTLS begins. Default: it is refused.
	TLS *tls.Config
	// RequireTLS answers nothing but STARTTLS before it. Without TLS nobody is
	// served then. Default: clients choose.
	RequireTLS bool
	// Identify says who a client is by the certificates that it has shown, which
	// have been verified. It is asked again while the connection lasts. Default:
	// everybody may do everything.
	Identify func(chain []*x509.Certificate) (*auth.Caller, error)
	// MaxConnections is how many there are at a time; further ones are closed
	// at once. Default: 256.
	MaxConnections int
	// MaxInFlight is how many requests of one connection are under way at a
	// time, from the header read to the reply sent; further ones are not read.
	// Default: 128.
	MaxInFlight int
	// MaxMemory bounds the payloads of all requests under way, bytes; who needs
	// more waits. One connection takes a quarter of it at most, and for one
	// request as much as that needs. Default: 256 MiB; the least is 33 MiB.
	MaxMemory int64
	// ReadOnly offers every export read-only. Default: false.
	ReadOnly bool
	// Description is what is told of an export. Default: its format.
	Description func(name, format string) string
	// HandshakeTimeout is how long an option is waited for, and where TLS is
	// required, how long it takes until it stands. Default: 10 s.
	HandshakeTimeout time.Duration
	// StallTimeout is how long a client may neither take a byte of a reply nor
	// send one of a payload that has begun. Default: 60 s.
	StallTimeout time.Duration
	// Audit takes a record of what each connection has changed, when it ends.
	// Default: nothing is recorded.
	Audit *audit.Log
	// Trace is told of each request: when it is served, and by end, how that
	// went. It is served in the context that Trace returns. Default: nobody is
	// told.
	Trace func(ctx context.Context, command, image string, off, n uint64) (_ context.Context, end func(err error))
	// Logger is told of connections (debug), of clients that break the protocol
	// (warn), and of what went wrong here (error). Default: nobody is.
	Logger *slog.Logger
}

const (
	defaultConnections = 256
	defaultInFlight    = 128
	defaultMemory      = 256 << 20
	defaultHandshake   = 10 * time.Second
	defaultStall       = 60 * time.Second
)

// maxData is the longest read or write, bytes: what the protocol lets every client
// ask for.
const maxData = 32 << 20

func (o *Options) complete() {
	if o.MaxConnections <= 0 {
		o.MaxConnections = defaultConnections
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = defaultInFlight
	}
	if o.MaxMemory <= 0 {
		o.MaxMemory = defaultMemory
	}
	o.MaxMemory = max(o.MaxMemory, maxData+1<<20)
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = defaultHandshake
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = defaultStall
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Description == nil {
		o.Description = func(_, format string) string { return format + " image" }
	}
}

// A Server is safe for concurrent use.
type Server struct {
	svc    *service.Service
	opt    Options
	log    *slog.Logger
	memory *budget
	pool   buffers
	ctx    context.Context // of all requests; ends when they are cut off
	cancel context.CancelFunc
	work   sync.WaitGroup // a goroutine each connection
	rest   sync.WaitGroup // the janitor

	draining atomic.Bool
	last     atomic.Uint64 // number of the last connection

	mu        sync.Mutex // protects all below; not held during I/O
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	exports   map[*export]struct{}
	ended     [Commands]CommandStats // of connections that have
	refused   uint64                 // connections
}

// New returns a server of the service's images. It must be closed.
func New(svc *service.Service, opt Options) *Server {
	opt.complete()
	s := &Server{
		svc:       svc,
		opt:       opt,
		log:       opt.Logger,
		memory:    newBudget(opt.MaxMemory),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
		exports:   make(map[*export]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.rest.Go(s.janitor)
	return s
}

// Serve answers on l until Shutdown or Close, and returns ErrServerClosed then.
// It closes l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		_ = l.Close() // nobody listens
		return ErrServerClosed
	}
	defer s.unlisten(l)
	var wait time.Duration
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.start(c)
			continue
		case s.isClosed():
			return ErrServerClosed
		case !temporary(err):
			return err
		}
		// Out of descriptors, most likely: others will be closed.
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		s.log.Warn("nbd: accept", "error", err, "wait", wait)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return ErrServerClosed
		}
	}
}

// temporary reports whether accepting may work again.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	_ = l.Close() // closed already, or nobody is waiting there
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// start serves a connection, unless there are enough.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	refused := s.closed
	full := len(s.conns) >= s.opt.MaxConnections
	if !refused && !full {
		s.conns[c] = struct{}{}
		s.work.Go(func() {
			c.serve()
			s.mu.Lock()
			delete(s.conns, c)
			c.counts.addTo(&s.ended)
			s.mu.Unlock()
		})
	} else {
		s.refused++
	}
	s.mu.Unlock()
	if refused || full {
		_ = nc.Close() // it was never served
	}
	if full {
		c.log.Warn("nbd: refused, there are enough connections", "most", s.opt.MaxConnections)
	}
}

// Shutdown stops listening, refuses options with ERR_SHUTDOWN, and closes each
// connection once the requests on it that are under way have been answered.
// What is left when ctx ends is cut off, and the error is the context's. It
// returns when no goroutine of the server is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	for _, c := range s.stop() {
		c.drain()
	}
	idle := make(chan struct{})
	go func() {
		s.work.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		s.cancel()
		s.rest.Wait()
		return nil
	case <-ctx.Done():
		s.Close()
		<-idle
		return ctx.Err()
	}
}

// Close stops listening and cuts off all connections and their requests. It
// returns when no goroutine of the server is left.
func (s *Server) Close() {
	s.draining.Store(true)
	conns := s.stop()
	s.cancel()
	for _, c := range conns {
		c.cut()
	}
	s.work.Wait()
	s.rest.Wait()
}

// refreshTime is how often exports that nobody asks for anything are refreshed.
const refreshTime = time.Second

// janitor cuts off clients whose rights have shrunk, and refreshes exports: that of an idle connection may be of an image that
// was taken out of service, and in the way of others.
func (s *Server) janitor() {
	ticker := time.NewTicker(refreshTime)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, e := range s.opened() {
				if !e.c.stillMay(e) {
					e.c.log.Warn("nbd: cut off, for the client may not do anymore what it could", "export", e.name)
					e.c.cut()
				}
				e.refresh(s.ctx)
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Server) opened() []*export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.exports))
}

// yield lets go of all images that nobody writes to, for one who wants to write
// and met one of them. Requests under way may have them for a while yet.
func (s *Server) yield(ctx context.Context, try int) error {
	for _, e := range s.opened() {
		e.yield()
	}
	select {
	case <-time.After(time.Millisecond << try):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop closes the listeners, and returns the connections that there are.
func (s *Server) stop() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for l := range s.listeners {
		_ = l.Close() // Serve returns
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}
