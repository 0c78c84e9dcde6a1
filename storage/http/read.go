package http

import (
	"context"
	"fmt"
	"io"
	nethttp "net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/extentd/extentd/storage"
)

// ReadAt reads len(p) bytes from off; it is io.EOF where the file ends. One
// request is one range, read straight into p. The error wraps
// [storage.ErrChanged] where the server has another version by now,
// [storage.ErrNotFound] and [storage.ErrRefused] where it no longer gives the
// file away, [io.ErrUnexpectedEOF] where an answer breaks off; everything else is
// an I/O error, such as of a server that is busy, and may be tried again.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	case len(p) == 0:
		return 0, nil
	case off >= f.size:
		return 0, io.EOF
	}
	var end error
	if left := f.size - off; int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	n, err := f.read(ctx, p, off)
	if err != nil {
		return n, err
	}
	return n, end
}

// read fills p, which lies inside the file.
func (f *File) read(ctx context.Context, p []byte, off int64) (int, error) {
	want := contentRange{off, off + int64(len(p)) - 1, f.size}
	a, err := f.send(ctx, ask{method: nethttp.MethodGet, rng: want.ask(), unchanged: true})
	if err != nil {
		return 0, err
	}
	defer a.end()
	if err := f.checkPart(a, want); err != nil {
		return 0, err
	}
	n, err := a.fill(p)
	if err != nil {
		return n, err
	}
	return n, a.over()
}

// checkPart checks that an answer is the range that was asked for, of the version
// that was opened, before a byte of it is believed.
func (f *File) checkPart(a *answer, want contentRange) error {
	switch a.StatusCode {
	case nethttp.StatusPartialContent:
	case nethttp.StatusOK:
		return f.checkWhole(a)
	default:
		return statusError(a.StatusCode)
	}
	if err := checkEncoding(a.Header); err != nil {
		return err
	}
	if err := f.validator.check(a.Header); err != nil {
		return err
	}
	got, err := parseContentRange(a.Header)
	switch {
	case err != nil:
		return err
	case got.size != f.size:
		return fmt.Errorf("%w: the file has %d bytes and had %d", storage.ErrChanged, got.size, f.size)
	case got != want:
		return fmt.Errorf("%w: asked for %v, the server answers with %v", syscall.EIO, want, got)
	case a.ContentLength >= 0 && a.ContentLength != want.length():
		return fmt.Errorf("%w: %d bytes in answer to %v", syscall.EIO, a.ContentLength, want)
	}
	return nil
}

// checkWhole is why the whole file came where a part was asked for.
func (f *File) checkWhole(a *answer) error {
	if err := f.validator.check(a.Header); err != nil {
		return err
	}
	if a.ContentLength >= 0 && a.ContentLength != f.size {
		return fmt.Errorf("%w: the file has %d bytes and had %d", storage.ErrChanged, a.ContentLength, f.size)
	}
	return fmt.Errorf("%w: the server no longer serves ranges", storage.ErrUnsupported)
}

// fill reads len(p) bytes of the body.
func (a *answer) fill(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = a.Read(p[n:])
		n += more
	}
	switch {
	case n == len(p):
		return n, nil
	case err == io.EOF: //nolint:errorlint // as readers return it
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("after %d of %d bytes: %w", n, len(p), err)
}

// over reads the end of the body, without which the connection is of no further
// use.
func (a *answer) over() error {
	var one [1]byte
	for {
		n, err := a.Read(one[:])
		switch {
		case n > 0:
			return fmt.Errorf("%w: more bytes than were asked for", syscall.EIO)
		case err == io.EOF: //nolint:errorlint // as readers return it
			return nil
		case err != nil:
			return err
		}
	}
}

// checkEncoding refuses a body that is not the file's bytes.
func checkEncoding(h nethttp.Header) error {
	for _, line := range h["Content-Encoding"] {
		if line != "" && !strings.EqualFold(line, "identity") {
			return fmt.Errorf("%w: the server sends the file encoded", storage.ErrUnsupported)
		}
	}
	return nil
}

// A contentRange is bytes first to last of size; first is -1 where no range could
// be satisfied.
type contentRange struct{ first, last, size int64 }

func (r contentRange) length() int64 { return r.last - r.first + 1 }

func (r contentRange) ask() string {
	return "bytes=" + strconv.FormatInt(r.first, 10) + "-" + strconv.FormatInt(r.last, 10)
}

func (r contentRange) String() string { return fmt.Sprintf("bytes %d-%d/%d", r.first, r.last, r.size) }

// parseContentRange fails where the header is missing, malformed, or leaves the
// size open.
func parseContentRange(h nethttp.Header) (contentRange, error) {
	r := contentRange{-1, -1, -1}
	lines := h["Content-Range"]
	if len(lines) == 1 {
		unit, rest, _ := strings.Cut(lines[0], " ")
		part, size, _ := strings.Cut(rest, "/")
		first, last, _ := strings.Cut(part, "-")
		ok := strings.EqualFold(unit, "bytes") && number(size, &r.size)
		if ok && part == "*" {
			return r, nil
		}
		if ok && number(first, &r.first) && number(last, &r.last) && r.first <= r.last && r.last < r.size {
			return r, nil
		}
	}
	return r, fmt.Errorf("%w: a part without a good Content-Range", syscall.EIO)
}

// number parses decimal digits alone.
func number(text string, into *int64) bool {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < '0' || r > '9' }) {
		return false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	*into = n
	return err == nil
}
