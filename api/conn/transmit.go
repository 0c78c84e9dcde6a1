package conn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// enough is how much a client must take in each period of Options.Stall while it
// is waited for, bytes.
const enough = 64 << 10

// A burst is what is sent by one call: bytes in memory, or a range of a file.
type burst struct {
	head, data  []byte
	file        int   // a descriptor, if length is above 0
	off, length int64 // in file
	sent        int64 // of all that
}

// outgoing is what a connection is sending, and how patient it still is. It
// belongs to the goroutine that writes. As long as the socket takes what is sent
// no clock is looked at: only a client that is waited for can be slow.
type outgoing struct {
	opt Options
	burst
	err  error
	step func(fd uintptr) bool // push, made once

	total int64         // bytes that the socket took
	moved int64         // bytes of them since left was full
	taken int64         // bytes that the client had taken then
	left  time.Duration // how long the client may still be waited for
	due   time.Time     // when left ends; zero while nobody waits
	check bool          // left has ended: enough may have been taken meanwhile

	others atomic.Bool // somebody else has set a deadline, which is to hold
}

// transmit sends a burst, and returns how much of it the socket took.
func (c *Conn) transmit(b burst) (int64, error) {
	o := &c.out
	o.burst, o.err = b, nil
	err := c.raw.Write(o.step)
	for errors.Is(err, os.ErrDeadlineExceeded) && !o.due.IsZero() && o.err == nil {
		// The socket's buffer may be large, and report room late.
		o.check = true
		if err = c.socket.SetWriteDeadline(time.Time{}); err == nil {
			err = c.raw.Write(o.step)
		}
	}
	if !o.due.IsZero() {
		o.left = max(time.Until(o.due), time.Millisecond)
		o.due = time.Time{}
		err = errors.Join(err, c.socket.SetWriteDeadline(time.Time{}))
	}
	sent := o.sent
	o.burst = burst{}
	if o.err != nil {
		return sent, o.err
	}
	return sent, err
}

// push sends until the burst is sent, and returns false to be called again when
// the socket has room.
func (c *Conn) push(fd uintptr) bool {
	o := &c.out
	for !o.done() {
		n, err := o.some(int(fd))
		o.sent += int64(n)
		o.total += int64(n)
		o.moved += int64(n)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if o.err = c.await(int(fd)); o.err == nil {
				return false
			}
			return true
		case err != nil:
			o.err = &net.OpError{Op: "write", Net: c.socket.LocalAddr().Network(), Err: err}
			return true
		case n == 0 && o.length > 0:
			o.err = io.ErrUnexpectedEOF
			return true
		}
	}
	return true
}

// some is one system call.
func (o *outgoing) some(fd int) (int, error) {
	if o.length > 0 {
		at := o.off + o.sent
		return clip(unix.Sendfile(fd, o.file, &at, int(min(o.length-o.sent, 1<<30))))
	}
	head := int64(len(o.head))
	switch {
	case o.sent >= head:
		return clip(unix.Write(fd, o.data[o.sent-head:]))
	case len(o.data) == 0:
		return clip(unix.Write(fd, o.head[o.sent:]))
	}
	var both [2][]byte
	both[0], both[1] = o.head[o.sent:], o.data
	return clip(unix.Writev(fd, both[:]))
}

// clip is a count of bytes without the -1 of failures.
func clip(n int, err error) (int, error) { return max(n, 0), err }

func (o *outgoing) done() bool {
	return o.sent == max(int64(len(o.head)+len(o.data)), o.length)
}

// await sets a deadline before the client is waited for, unless there is one. It
// fails when the client has not taken enough until the last.
func (c *Conn) await(fd int) error {
	o := &c.out
	if o.opt.Stall <= 0 || o.others.Load() || !o.due.IsZero() && !o.check {
		return nil
	}
	if o.check || o.moved >= enough || o.taken == 0 {
		waiting, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return os.NewSyscallError("ioctl", err)
		}
		taken := o.total - int64(waiting)
		if o.check && taken-o.taken < enough {
			o.opt.Stalled.Add(1)
			// What is in the system's buffer would be kept for the client until it
			// has taken all of that.
			if tcp, ok := c.socket.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // it is slow then, and nothing else
			}
			return &net.OpError{Op: "write", Net: c.socket.LocalAddr().Network(), Err: os.ErrDeadlineExceeded}
		}
		o.taken, o.moved, o.left, o.check = taken, 0, o.opt.Stall, false
	}
	o.due = time.Now().Add(o.left)
	return c.socket.SetWriteDeadline(o.due)
}

// SetWriteDeadline sets a deadline that holds instead of those for clients that
// take nothing.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.others.Store(!t.IsZero())
	return c.socket.SetWriteDeadline(t)
}

// SetDeadline likewise sets one for both directions.
func (c *Conn) SetDeadline(t time.Time) error {
	c.out.others.Store(!t.IsZero())
	return c.socket.SetDeadline(t)
}
