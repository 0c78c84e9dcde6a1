package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unixPrefix begins the addresses that are sockets in a directory.
const unixPrefix = "unix:"

// maxSocketPath is what fits into the system's address of a socket, bytes.
const maxSocketPath = 107

// bind listens on HOST:PORT, or on unix:PATH with the mode given.
func bind(ctx context.Context, address string, mode fs.FileMode) (*listener, error) {
	path, isUnix := strings.CutPrefix(address, unixPrefix)
	if isUnix {
		return bindUnix(ctx, path, mode)
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false) // its sockets take no filter; see ignoreSYN
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l}, nil
}

func bindUnix(ctx context.Context, path string, mode fs.FileMode) (*listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen %s%s: the path of a socket has at most %d bytes", unixPrefix, path, maxSocketPath)
	}
	if err := removeDead(ctx, path); err != nil {
		return nil, err
	}
	// Linux gives the file the mode that the socket has when it is bound, less
	// the umask: it is never open to more than it is meant for.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode)) }); e != nil {
			return e
		}
		return err
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil { // what the umask took away
		return nil, errors.Join(err, l.Close())
	}
	return &listener{Listener: l, path: path}, nil
}

// removeDead removes a socket on which nobody listens, such as a process leaves
// behind that was killed. What is not a socket stays.
func removeDead(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil //nolint:nilerr // listening says what is wrong
	}
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return nil
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil //nolint:nilerr // as above
	}
	return os.Remove(path)
}

// A listener is one of TCP or a unix socket that can stop without losing those
// who have connected: as long as it is merely closed, they see a reset.
type listener struct {
	net.Listener
	path     string // of a unix socket
	stopping atomic.Bool
}

// Address is what users write to reach it.
func (l *listener) Address() string {
	if l.path != "" {
		return unixPrefix + l.path
	}
	return l.Addr().String()
}

// quietTime is how long connections are still accepted that have begun: the last
// packet of their handshake may be on its way.
const quietTime = 100 * time.Millisecond

// stop lets no more connections begin. Accept returns those that have, and then
// net.ErrClosed.
func (l *listener) stop() error {
	l.stopping.Store(true)
	switch n := l.Listener.(type) {
	case *net.TCPListener:
		// Where the system cannot do it, connections begin until the last moment.
		return errors.Join(ignoreSYN(n), n.SetDeadline(time.Now().Add(quietTime)))
	case *net.UnixListener:
		n.SetUnlinkOnClose(false) // a successor may have the name by then
		return errors.Join(os.Remove(l.path), n.SetDeadline(time.Now().Add(quietTime)))
	}
	return l.Close()
}

// ignoreSYN has the kernel drop the first packet of connections. Their clients
// send it again after a second, to whoever listens by then.
func ignoreSYN(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	const flags, syn = 13, 0x02 // in the TCP header
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 20}, // all of it
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
	}); e != nil {
		return e
	}
	return err
}

// Accept returns net.ErrClosed once it has stopped and nobody waits.
func (l *listener) Accept() (net.Conn, error) {
	late := false
	for {
		c, err := l.Listener.Accept()
		if err == nil || !l.stopping.Load() || !errors.Is(err, os.ErrDeadlineExceeded) {
			return c, err
		}
		if late {
			return nil, net.ErrClosed
		}
		// Past the deadline nobody is looked for: there may be some whom there was
		// no time to accept.
		late = true
		deadline := l.Listener.(interface{ SetDeadline(t time.Time) error })
		if err := deadline.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			return nil, err
		}
	}
}
