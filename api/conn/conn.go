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
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage/block"
)

// A Source hands out its bytes in pieces. *block.Stream is one.
type Source interface {
	io.Reader
	io.WriterTo
	Next() (block.Piece, error)
}

// Wrap returns a listener whose TCP connections send Sources well.
func Wrap(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &Conn{TCPConn: tcp}, nil
	}
	return c, nil
}

// A Conn is an accepted connection. net/http writes to it from one goroutine.
type Conn struct {
	*net.TCPConn
	hold bool      // keep the next write for the piece that follows it
	held []byte    // what is kept
	vec  [2][]byte // for one gathered write
}

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
	if len(c.held) == 0 {
		return c.TCPConn.Write(p)
	}
	return c.writeHeld(p)
}

// writeHeld sends what is held and p in one system call, and returns how much
// of p was sent.
func (c *Conn) writeHeld(p []byte) (int, error) {
	head := len(c.held)
	c.vec = [2][]byte{c.held, p}
	c.held = c.held[:0]
	bufs := net.Buffers(c.vec[:])
	n, err := bufs.WriteTo(c.TCPConn)
	c.vec = [2][]byte{}
	return max(int(n)-head, 0), err
}

// ReadFrom sends src: by its pieces when it is a Source.
func (c *Conn) ReadFrom(src io.Reader) (int64, error) {
	c.hold = false
	pieces, ok := src.(Source)
	if !ok {
		if err := c.flush(); err != nil {
			return 0, err
		}
		return c.TCPConn.ReadFrom(src)
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
	_, err := c.writeHeld(nil)
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
func (c *Conn) sendfile(f syscall.Conn, off, n int64) (int64, error) {
	from, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	to, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var sent int64
	var sendErr error
	// Both descriptors are pinned while in use: Control holds the file's,
	// Write the socket's, and waits for room when the callback says false.
	err = from.Control(func(in uintptr) {
		waitErr := to.Write(func(out uintptr) bool {
			var again bool
			sent, again, sendErr = sendSome(int(out), int(in), off, n, sent)
			return !again
		})
		if sendErr == nil {
			sendErr = waitErr
		}
	})
	if err == nil {
		err = sendErr
	}
	return sent, err
}

// sendSome sends until n bytes are sent, or the socket is full (again).
func sendSome(out, in int, off, n, sent int64) (total int64, again bool, err error) {
	for sent < n {
		at := off + sent
		k, err := unix.Sendfile(out, in, &at, int(min(n-sent, 1<<30)))
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return sent, true, nil
		case err != nil:
			return sent, false, &net.OpError{Op: "sendfile", Net: "tcp", Err: err}
		case k == 0:
			return sent, false, io.ErrUnexpectedEOF
		default:
			sent += int64(k)
		}
	}
	return sent, false, nil
}
