package http

import (
	"context"
	"fmt"
	"net"
	nethttp "net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
)

// preferred is worth its round trip on most networks.
const preferred = 64 << 10

// A File is one version of a file that a web server has, open for reading. Safe
// for concurrent use.
type File struct {
	origin    place
	header    nethttp.Header // for the origin's host alone; not changed any more
	transport *nethttp.Transport
	timeout   time.Duration
	size      int64
	minimum   int64 // 0 if the server says nothing of it
	validator validator

	target  atomic.Pointer[place]   // where the origin redirects to, nil if nowhere
	extents string                  // the path of the map, "" if the server is no extentd
	known   atomic.Pointer[mapPage] // what it said last, nil if nothing yet

	slots chan struct{}   // one held by each request under way, all by Close
	life  context.Context // ends when Close is called
	end   context.CancelFunc
	close sync.Once
}

var _ storage.File = (*File)(nil)

// Open asks for the size and the validator of the file. The error is an
// *[storage.InvalidError], or wraps [storage.ErrNotFound]; [storage.ErrRefused]
// for an address or a redirect that is not allowed, and for what the server or
// its certificate forbids; [storage.ErrUnsupported] for a server that serves no
// ranges, or has no validator; or it is one of I/O, and trying again may help.
func Open(ctx context.Context, opt Options) (*File, error) {
	dialer := new(net.Dialer)
	if !opt.AllowPrivate {
		dialer = guarded(public)
	}
	return open(ctx, opt, dialer)
}

func open(ctx context.Context, opt Options, dialer *net.Dialer) (*File, error) {
	origin, err := opt.complete()
	if err != nil {
		return nil, err
	}
	f := &File{
		origin: origin, header: opt.header(), timeout: opt.Timeout,
		slots: make(chan struct{}, opt.MaxConnections),
	}
	f.life, f.end = context.WithCancel(context.Background())
	f.transport = f.newTransport(&opt, dialer)
	if image, ok := extentdImage(origin.url.EscapedPath()); ok {
		f.extents = image + "/extents"
	}
	if err := f.probe(ctx); err != nil {
		_ = f.Close() // it never fails
		return nil, fmt.Errorf("http: open %q: %w", Name(opt.URL), err)
	}
	return f, nil
}

// usable reports why nothing can be asked of the file, if so.
func (f *File) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.life.Err() != nil {
		return storage.ErrClosed
	}
	return nil
}

// Size is the size in bytes that the file had when it was opened. The server is
// not asked: a file with another size is another file.
func (f *File) Size(ctx context.Context) (int64, error) { return f.size, f.usable(ctx) }

// Limit answers with what another extentd says of its minimum, and prefers 64
// KiB. The rest are the defaults.
func (f *File) Limit(_ context.Context, which storage.Limit) (int64, error) {
	switch which {
	case storage.Minimum:
		return f.minimum, nil
	case storage.Preferred:
		return preferred, nil
	}
	return 0, nil
}

// Validator is the size of the file and what tells its versions apart: files at
// one URL for which it is the same are one version. Opaque.
func (f *File) Validator() string {
	return strconv.FormatInt(f.size, 10) + " " + f.validator.String()
}

// Close closes the connections, and waits for the requests under way, which fail.
// It never fails.
func (f *File) Close() error {
	f.close.Do(func() {
		f.end()
		for range cap(f.slots) {
			f.slots <- struct{}{}
		}
		f.transport.CloseIdleConnections()
	})
	return nil
}
