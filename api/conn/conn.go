// Package conn sends streams over HTTP connections at the cost of a web
// server's file read: header and first bytes in one system call, and ranges of
// files by sendfile at explicit offsets.
//
// net/http reaches sendfile only through an *os.File's own position, which
// parallel ranges of one file cannot share. A connection of this package
// recognises a stream when the response copies from it, and does the sending
// itself; whatever else is written passes through. With TLS or HTTP/2, where
// the response does not copy straight to the connection, the stream is read.
package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/extentd/extentd/storage/block"
)

// A Source hands out its bytes in pieces. *block.Stream is one.
type Source interface {
	io.Reader
	io.WriterTo
	Next() (block.Piece, error)
}

// Options say how patient connections are. The zero value waits for ever.
type Options struct {
	// Stall is how long a client may take to accept 64 KiB that wait for it, or
	// less if less waits. Then the connection fails. Default: for ever.
	Stall time.Duration
	// Stalled counts the connections that failed so. Default: nobody counts.
	Stalled *atomic.Int64
}

// Wrap returns a listener whose connections send Sources well, and fail when
// their clients do not take what is sent. Connections that are none of a socket,
// nor around one as NetConn says, are returned as they are.
func Wrap(l net.Listener, opt Options) net.Listener {
	if opt.Stalled == nil {
		opt.Stalled = new(atomic.Int64)
	}
	return listener{l, opt}
}

type listener struct {
	net.Listener
	opt Options
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	inner := c
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		inner = outer.NetConn()
	}
	if s, ok := inner.(socket); ok {
		return newConn(c, s, l.opt)
	}
	return c, nil
}

// A socket is a *net.TCPConn or a *net.UnixConn.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// A Conn is an accepted connection. It is written to by one goroutine at a time,
// as net/http does. It is the accepted one, whose bytes are written to the socket
// itself.
type Conn struct {
	net.Conn
	socket socket
	raw    syscall.RawConn
	hold   bool   // keep the next write for the piece that follows it
	held   []byte // what is kept
	out    outgoing
}

func newConn(c net.Conn, s socket, opt Options) (net.Conn, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	n := &Conn{Conn: c, socket: s, raw: raw, out: outgoing{opt: opt, left: opt.Stall}}
	n.out.step = n.push
	return n, nil
}

// CloseWrite ends what is sent, while what comes is still read.
func (c *Conn) CloseWrite() error { return c.socket.CloseWrite() }

type connKey struct{}

// Context is the ConnContext of an http.Server over a wrapped listener. Send
// finds the connection through it.
func Context(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*Conn); ok {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

// sniffed is how many bytes net/http copies through user space before it hands
// a response over to the connection.
const sniffed = 512

// Send writes the body of the answer to r, n bytes, from src. The status must
// have been set, with a Content-Length of n, and nothing written. It returns how
// many bytes of the body were accepted.
func Send(w http.ResponseWriter, r *http.Request, src Source, n int64) (int64, error) {
	to, ok := w.(io.ReaderFrom)
	if !ok || r.ProtoMajor != 1 { // the streams of HTTP/2 share a connection
		return src.WriteTo(w)
	}
	if c, ok := r.Context().Value(connKey{}).(*Conn); ok && n >= sniffed {
		// The header comes first, with the first bytes, and then the rest:
		// ReadFrom below, or the next write, sends what is held.
		c.hold = true
		defer func() { c.hold = false }()
	}
	return to.ReadFrom(src)
}

// Write sends p, after what is held.
func (c *Conn) Write(p []byte) (int, error) {
	if c.hold {
		c.hold = false
		c.held = append(c.held[:0], p...)
		return len(p), nil
	}
	head := c.held
	c.held = c.held[:0]
	n, err := c.transmit(burst{head: head, data: p})
	return max(int(n)-len(head), 0), err
}

// ReadFrom sends src: by its pieces when it is a Source.
func (c *Conn) ReadFrom(src io.Reader) (int64, error) {
	c.hold = false
	pieces, ok := src.(Source)
	if !ok {
		if err := c.flush(); err != nil {
			return 0, err
		}
		return io.Copy(struct{ io.Writer }{c}, src)
	}
	var sent int64
	for {
		piece, err := pieces.Next()
		if errors.Is(err, io.EOF) {
			return sent, c.flush()
		}
		if err != nil {
			return sent, err
		}
		n, err := c.send(piece)
		sent += n
		if err != nil {
			return sent, err
		}
	}
}

func (c *Conn) flush() error {
	if len(c.held) == 0 {
		return nil
	}
	_, err := c.Write(nil)
	return err
}

func (c *Conn) send(p block.Piece) (int64, error) {
	if p.File == nil {
		n, err := c.Write(p.Data)
		return int64(n), err
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.sendfile(p.File, p.Offset, p.Length)
}

// sendfile sends n bytes of f from off. A file that ends earlier is an error:
// the body was promised longer.
func (c *Conn) sendfile(f syscall.Conn, off, n int64) (sent int64, err error) {
	from, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	// The file's descriptor is pinned while it is sent from.
	pinErr := from.Control(func(in uintptr) {
		sent, err = c.transmit(burst{file: int(in), off: off, length: n})
	})
	return sent, errors.Join(pinErr, err)
}
