package http

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"os"
	"syscall"

	"github.com/extentd/extentd/storage"
)

// errIdle is not a context's: it is the server that is late, not the caller.
var errIdle = fmt.Errorf("%w: the server lets one wait", os.ErrDeadlineExceeded)

// failure is what an error of a request means: that the caller has given up, that
// the file was closed, that the server is late, or what it says.
func (a *answer) failure(err error) error {
	if gaveUp := a.caller.Err(); gaveUp != nil {
		return gaveUp
	}
	switch cause := context.Cause(a.ctx); {
	case a.f.life.Err() != nil:
		return storage.ErrClosed
	case errors.Is(cause, errIdle):
		return fmt.Errorf("%w for %v", errIdle, a.f.timeout)
	}
	return meaning(err)
}

// meaning keeps the errors that callers tell apart. All others are of I/O, a text
// each: some of them would be taken for a context's.
func meaning(err error) error {
	if _, bad := errors.AsType[*tls.CertificateVerificationError](err); bad {
		return fmt.Errorf("%w: %w", storage.ErrRefused, err)
	}
	if _, system := errors.AsType[syscall.Errno](err); system {
		return err
	}
	if errors.Is(err, storage.ErrRefused) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	kind := error(syscall.EIO)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		kind = os.ErrDeadlineExceeded
	}
	return fmt.Errorf("%w: %v", kind, err) //nolint:errorlint // see above
}

// statusError is what a status means that is not the one hoped for.
func statusError(status int) error {
	kind := error(syscall.EIO)
	switch status {
	case nethttp.StatusNotFound, nethttp.StatusGone:
		kind = storage.ErrNotFound
	case nethttp.StatusUnauthorized, nethttp.StatusForbidden, nethttp.StatusUnavailableForLegalReasons:
		kind = storage.ErrRefused
	case nethttp.StatusPreconditionFailed, nethttp.StatusRequestedRangeNotSatisfiable:
		kind = storage.ErrChanged
	}
	text := nethttp.StatusText(status)
	if text != "" {
		text = " " + text
	}
	return fmt.Errorf("%w: the server answers %d%s", kind, status, text)
}
