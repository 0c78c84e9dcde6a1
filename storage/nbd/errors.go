package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// ErrLost: the connection was lost, and it is not known whether what was asked for
// is done: a change that was under way, or, for a flush, those before it. It is
// EIO.
var ErrLost = fmt.Errorf("%w: the connection was lost", syscall.EIO)

// A lostError is of a request whose connection was lost.
type lostError struct {
	cause error
	// again: nothing of the request was done, nor will be.
	again bool
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%v: %v", ErrLost, e.cause)
}

func (e *lostError) Unwrap() []error { return []error{ErrLost, e.cause} }

// meaning keeps of an error of I/O what callers tell apart. All others are a text
// each: some would be taken for a context's, or tell the path of a socket.
func meaning(err error) error {
	if _, bad := errors.AsType[*tls.CertificateVerificationError](err); bad {
		return fmt.Errorf("%w: %w", storage.ErrRefused, err)
	}
	for _, kept := range []error{
		storage.ErrRefused, storage.ErrChanged, storage.ErrClosed, storage.ErrNotFound, storage.ErrUnsupported,
	} {
		if errors.Is(err, kept) {
			return err
		}
	}
	if errors.Is(err, wire.ErrProtocol) {
		return fmt.Errorf("%w: %w", syscall.EIO, err)
	}
	if errors.Is(err, errRefusal) {
		return err
	}
	if code, system := errors.AsType[syscall.Errno](err); system {
		return code
	}
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: the server lets one wait", os.ErrDeadlineExceeded)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the server closed the connection", io.ErrUnexpectedEOF)
	}
	if where, ok := errors.AsType[*net.OpError](err); ok {
		err = where.Err
	}
	return fmt.Errorf("%w: %v", syscall.EIO, err) //nolint:errorlint // see above
}

// answerError is what an error means that a server answers a command with. The text
// that may come with it is not passed on: nobody knows what is in it.
func answerError(cmd wire.Command, e wire.Errno) error {
	kind := error(syscall.EINVAL) // as the protocol says of what it does not know
	switch e {
	case wire.EPERM:
		if kind = syscall.EPERM; cmd != wire.CmdRead && cmd != wire.CmdBlockStatus {
			kind = storage.ErrReadOnly
		}
	case wire.ENOSPC:
		kind = storage.ErrNoSpace
	case wire.ENOTSUP:
		kind = storage.ErrUnsupported
	case wire.EIO:
		kind = syscall.EIO
	case wire.ENOMEM:
		kind = syscall.ENOMEM
	case wire.EOVERFLOW:
		kind = syscall.EOVERFLOW
	case wire.ESHUTDOWN:
		kind = syscall.ESHUTDOWN
	}
	return fmt.Errorf("%w: the server answers %v", kind, e)
}

var errRefusal = errors.New("the server answers")

// optionError is what a refusal during the handshake means.
func optionError(o wire.Option, r wire.OptionReply) error {
	kind, text := error(syscall.EINVAL), "an error"
	switch r {
	case wire.RepErrUnsup:
		kind, text = storage.ErrUnsupported, "that it does not know it"
	case wire.RepErrPolicy:
		kind, text = storage.ErrRefused, "that its policy forbids it"
	case wire.RepErrPlatform:
		kind, text = storage.ErrUnsupported, "that it is not made for it"
	case wire.RepErrTLSReqd:
		kind, text = storage.ErrRefused, "that it wants TLS"
	case wire.RepErrUnknown:
		kind, text = storage.ErrNotFound, "that there is no such export"
	case wire.RepErrShutdown:
		kind, text = syscall.ESHUTDOWN, "that it is shutting down"
	}
	return fmt.Errorf("%w: %w option %d with %s (%#x)", kind, errRefusal, o, text, uint32(r))
}

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", wire.ErrProtocol, fmt.Sprintf(format, args...))
}

// errDead is for the sender: the receiver knows why.
var errDead = errors.New("the connection has ended")
