package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// errLost: the image that a connection has written to is open no more.
var errLost = errors.New("the image was opened anew since this connection wrote to it: what it wrote may be lost; connect anew")

// errSlow: zeroing would take as long as writing.
var errSlow = errors.New("zeroing would take as long as writing zeros")

// A requestError is a request that breaks the rules.
type requestError struct {
	errno wire.Errno
	text  string
}

func (e *requestError) Error() string { return e.text }

func refuse(errno wire.Errno, format string, args ...any) error {
	return &requestError{errno, fmt.Sprintf(format, args...)}
}

// errnos is the one table from errors to what is told of them. The first that an
// error wraps counts; all others are EIO.
var errnos = [...]struct {
	err   error
	errno wire.Errno
}{
	{errLost, wire.EIO},
	{errSlow, wire.ENOTSUP},
	{context.Canceled, wire.ESHUTDOWN},
	{storage.ErrClosed, wire.ESHUTDOWN},
	{storage.ErrOutOfService, wire.EIO},
	{storage.ErrMisaligned, wire.EINVAL},
	{storage.ErrOutOfRange, wire.EINVAL}, // but see errnoOf
	{storage.ErrReadOnly, wire.EPERM},
	{storage.ErrBusy, wire.EPERM},
	{storage.ErrConflict, wire.EPERM},
	{storage.ErrRefused, wire.EPERM},
	{storage.ErrNoSpace, wire.ENOSPC},
	{syscall.ENOSPC, wire.ENOSPC},
	{syscall.EDQUOT, wire.ENOSPC},
	{syscall.EFBIG, wire.ENOSPC},
	{storage.ErrUnsupported, wire.EINVAL},
	{syscall.ENOMEM, wire.ENOMEM},
}

// errnoOf is the error on the wire.
func errnoOf(err error, c wire.Command) wire.Errno {
	var request *requestError
	if errors.As(err, &request) {
		return request.errno
	}
	for i := range errnos {
		if !errors.Is(err, errnos[i].err) {
			continue
		}
		if errnos[i].err == storage.ErrOutOfRange && grows(c) { //nolint:errorlint // the table's own
			return wire.ENOSPC
		}
		return errnos[i].errno
	}
	return wire.EIO
}

// grows reports whether a command beyond the end would need room.
func grows(c wire.Command) bool { return c == wire.CmdWrite || c == wire.CmdWriteZeroes }

// textOf is what a client is told of an error. Of what went wrong here the log
// says more.
func textOf(err error, errno wire.Errno) string {
	var path *fs.PathError
	switch {
	case errors.Is(err, errLost):
	case errno == wire.EIO || errno == wire.ENOMEM:
		return "input or output failed"
	case errno == wire.ESHUTDOWN:
		return "the server is stopping"
	case errors.As(err, &path): // it holds a path of the host
		return "not possible"
	}
	return plain(err.Error())
}

// plain is a text that a client may show.
func plain(text string) string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\n", "; "), "\x00", "")
	return strings.ToValidUTF8(text, "\uFFFD")
}
