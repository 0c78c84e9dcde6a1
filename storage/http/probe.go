package http

import (
	"context"
	"fmt"
	nethttp "net/http"
	"strconv"
	"strings"

	"github.com/extentd/extentd/storage"
)

// probe finds out what there is to know of the file. Where HEAD is not allowed or
// does not say all, the first byte is asked for, which a server must not refuse.
func (f *File) probe(ctx context.Context) error {
	done, err := f.probeHead(ctx)
	if err != nil || done {
		return err
	}
	return f.probeRange(ctx)
}

// probeHead reports whether HEAD has told all. An empty file is not believed: some
// servers say so of whatever they are asked for with HEAD.
func (f *File) probeHead(ctx context.Context) (done bool, err error) {
	a, err := f.send(ctx, ask{method: nethttp.MethodHead})
	if err != nil {
		return false, err
	}
	defer a.end()
	switch a.StatusCode {
	case nethttp.StatusOK:
	case nethttp.StatusBadRequest, nethttp.StatusForbidden, nethttp.StatusMethodNotAllowed, nethttp.StatusNotImplemented:
		return false, nil // an URL that is signed for GET is forbidden for HEAD
	default:
		return false, statusError(a.StatusCode)
	}
	if a.ContentLength <= 0 || !servesRanges(a.Header) {
		return false, nil
	}
	return true, f.accept(a, a.ContentLength)
}

func servesRanges(h nethttp.Header) bool {
	for _, line := range h["Accept-Ranges"] {
		for unit := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(unit), "bytes") {
				return true
			}
		}
	}
	return false
}

// probeRange asks for the first byte. Of an empty file there is none.
func (f *File) probeRange(ctx context.Context) error {
	a, err := f.send(ctx, ask{method: nethttp.MethodGet, rng: "bytes=0-0"})
	if err != nil {
		return err
	}
	defer a.end()
	switch a.StatusCode {
	case nethttp.StatusPartialContent:
		r, err := parseContentRange(a.Header)
		if err == nil && (r.first != 0 || r.last != 0) {
			err = fmt.Errorf("%w: asked for the first byte, the server answers with %v", storage.ErrUnsupported, r)
		}
		if err != nil {
			return err
		}
		return f.accept(a, r.size)
	case nethttp.StatusOK:
		if a.ContentLength != 0 {
			return fmt.Errorf("%w: the server serves no ranges", storage.ErrUnsupported)
		}
		return f.accept(a, 0)
	case nethttp.StatusRequestedRangeNotSatisfiable:
		if r, err := parseContentRange(a.Header); err == nil && r.size == 0 {
			return f.acceptEmpty(ctx, a)
		}
	}
	return statusError(a.StatusCode)
}

// acceptEmpty takes an empty file, whose validator an error need not have.
func (f *File) acceptEmpty(ctx context.Context, a *answer) error {
	if v, err := newValidator(a.Header); err == nil {
		f.validator = v
		return nil
	}
	a.end()
	a, err := f.send(ctx, ask{method: nethttp.MethodHead})
	if err != nil {
		return err
	}
	defer a.end()
	if a.StatusCode != nethttp.StatusOK || a.ContentLength > 0 {
		return statusError(nethttp.StatusRequestedRangeNotSatisfiable)
	}
	return f.accept(a, 0)
}

// accept takes the size, and what else the header says.
func (f *File) accept(a *answer, size int64) error {
	if size > storage.MaxSize {
		return fmt.Errorf("%w: size %d, at most %d", storage.ErrUnsupported, size, storage.MaxSize)
	}
	if err := checkEncoding(a.Header); err != nil {
		return err
	}
	v, err := newValidator(a.Header)
	if err != nil {
		return err
	}
	f.size, f.validator, f.minimum = size, v, minimumOf(a.Header)
	return nil
}

// minimumOf is the minimum that another extentd has for its ranges, 0 if nothing
// or nothing sensible is said.
func minimumOf(h nethttp.Header) int64 {
	n, err := strconv.ParseInt(h.Get("Block-Size-Minimum"), 10, 64)
	if err != nil || n < 1 || n > preferred || n&(n-1) != 0 {
		return 0
	}
	return n
}

// unchanged asks the origin whether it still has the version that was opened, and
// says which host answered.
func (f *File) unchanged(ctx context.Context) (host string, err error) {
	a, err := f.send(ctx, ask{method: nethttp.MethodHead, at: &f.origin, unchanged: true})
	if err != nil {
		return "", err
	}
	defer a.end()
	if a.StatusCode != nethttp.StatusOK {
		return "", statusError(a.StatusCode)
	}
	if err := f.validator.check(a.Header); err != nil {
		return "", err
	}
	if a.ContentLength >= 0 && a.ContentLength != f.size {
		return "", fmt.Errorf("%w: the file has %d bytes and had %d", storage.ErrChanged, a.ContentLength, f.size)
	}
	return a.from.url.Host, nil
}
