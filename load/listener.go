package load

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// refusal is what a client is told for whom there is no connection.
	refusal = "HTTP/1.1 503 Service Unavailable\r\n" +
		"Content-Type: application/problem+json\r\n" +
		"Content-Length: 100\r\n" +
		"Cache-Control: no-store\r\n" +
		"Retry-After: 5\r\n" +
		"Connection: close\r\n\r\n" +
		`{"type":"/problems/busy","title":"The server is busy","status":503,"detail":"too many connections"}` + "\n"
	// maxRefusals is how many are told so at a time; the others are only closed.
	maxRefusals = 64
	// refusalTime is how long one has to listen.
	refusalTime = time.Second
)

// Connections are those of one or more listeners, of which there may be so many
// at a time.
type Connections struct {
	most   int64
	counts *Counts
	open   atomic.Int64
}

// NewConnections returns a bound of most connections, which is above 0, and
// counts those that are refused.
func NewConnections(most int, counts *Counts) *Connections {
	return &Connections{most: int64(most), counts: counts}
}

// Open is how many there are.
func (c *Connections) Open() int64 { return c.open.Load() }

// Listener returns a listener whose connections count until they are closed. One
// beyond the bound is accepted and closed at once, with a canned answer of HTTP/1
// if the clients speak that in the clear (plain), so that it is told and does not
// wait in the dark. Its connections have a method NetConn for those underneath.
func (c *Connections) Listener(l net.Listener, plain bool) net.Listener {
	return &listener{Listener: l, bound: c, plain: plain, refused: make(chan struct{}, maxRefusals)}
}

type listener struct {
	net.Listener
	bound   *Connections
	plain   bool
	refused chan struct{} // one for each that is being told
	tells   sync.WaitGroup
}

// Accept returns the next connection within the bound.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.bound.open.Add(1) <= l.bound.most {
			return &Conn{Conn: c, bound: l.bound}, nil
		}
		l.bound.open.Add(-1)
		l.bound.counts.Refused.Add(1)
		l.refuse(c)
	}
}

// Close closes the listener, and waits for those who are being refused.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.tells.Wait()
	return err
}

func (l *listener) refuse(c net.Conn) {
	select {
	case l.refused <- struct{}{}:
	default: // a flood: nobody is told
		_ = c.Close()
		return
	}
	l.tells.Go(func() {
		defer func() { <-l.refused }()
		defer c.Close() //nolint:errcheck // there is nothing left to fail
		if l.plain {
			tell(c)
		}
	})
}

// tell sends the answer, and waits until the client has closed its end: what is
// unread when a connection is closed would take the answer with it.
func tell(c net.Conn) {
	if err := c.SetDeadline(time.Now().Add(refusalTime)); err != nil {
		return
	}
	if _, err := io.WriteString(c, refusal); err != nil {
		return
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 64<<10))
	}
}

// A Conn counts as open until it is closed.
type Conn struct {
	net.Conn
	bound  *Connections
	closed atomic.Bool
}

// NetConn is the connection underneath, which is not to be closed by itself.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Close closes the connection. It may be called again.
func (c *Conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.bound.open.Add(-1)
	}
	return c.Conn.Close()
}
