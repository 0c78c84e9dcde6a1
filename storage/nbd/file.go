package nbd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// grace is how long Close waits for what is under way.
const grace = 5 * time.Second

// A File is an export of an NBD server. Safe for concurrent use.
type File struct {
	opt    Options
	target target
	export export // does not change

	life context.Context // ends when the file is closed
	end  context.CancelFunc
	wg   sync.WaitGroup // of every goroutine
	once sync.Once

	generation atomic.Int64 // changes when a flush begins
	orphaned   atomic.Int64 // how many orphans there are

	mu       sync.Mutex
	conns    []*conn       // those that live
	dialing  bool          // somebody makes one
	wake     chan struct{} // closed when something of this changes that others wait for
	failures int           // in a row
	retryAt  time.Time     // not before then is one made
	dialErr  error         // of the last attempt
	fatal    error         // of every request from now on
	flushed  int64         // everything of generations before it is durable
	losses   int           // how often something may have been lost that was not
	reported int           // how many of them a flush has told of
	orphans  []*request    // changes that were given up and may still be done
}

var (
	_ storage.File    = (*File)(nil)
	_ storage.Writer  = (*File)(nil)
	_ storage.Starter = (*File)(nil)
)

// Open makes the first connection, and is not tried again. The error is an
// *[storage.InvalidError], or wraps [storage.ErrNotFound] where the server has no
// such export; [storage.ErrRefused] where TLS is missing, its certificate is not
// good, or the server's policy is against it; [storage.ErrUnsupported] for a server
// that is too old, or an export that is too large; or it is one of I/O, and trying
// again may help.
func Open(ctx context.Context, opt Options) (*File, error) {
	t, err := opt.complete()
	if err != nil {
		return nil, err
	}
	f := &File{opt: opt, target: t, wake: make(chan struct{})}
	f.life, f.end = context.WithCancel(context.Background())
	nc, s, err := t.dial(ctx, opt.DialTimeout)
	if err != nil {
		f.end()
		if gaveUp := ctx.Err(); gaveUp != nil {
			return nil, gaveUp
		}
		return nil, fmt.Errorf("nbd: open %q: %w", Name(opt.URI), meaning(err))
	}
	f.export = s.export
	if !f.export.can(wire.CanMultiConn) {
		f.opt.Connections = 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(newConn(nc, s, opt.Timeout, &f.generation))
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

// Size is the size in bytes that the export had when it was opened, without what
// its minimum block size leaves over at the end.
func (f *File) Size(ctx context.Context) (int64, error) { return f.export.size, f.usable(ctx) }

// Limit answers with what the server says of its block sizes: at most 64 MiB of data
// at a time, and 32 MiB if it says nothing. What has no data has the defaults.
func (f *File) Limit(_ context.Context, which storage.Limit) (int64, error) {
	switch which {
	case storage.Minimum:
		return f.export.minimum, nil
	case storage.Preferred:
		return f.export.preferred, nil
	case storage.MaxData:
		return f.export.data, nil
	}
	return 0, nil
}

// Validator is empty: nothing in the protocol tells whether the content of an
// export is what it was the last time.
func (f *File) Validator() string { return "" }

// ReadOnly reports whether the server does not let the export be written to.
func (f *File) ReadOnly() bool { return f.export.can(wire.ReadOnly) }

// StartWriting has nothing to do; it fails with [storage.ErrReadOnly] where the
// server does not let the export be written to.
func (f *File) StartWriting(ctx context.Context) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if f.ReadOnly() {
		return storage.ErrReadOnly
	}
	return nil
}

// Close lets requests under way be answered, for a few seconds, takes leave of the
// server, and waits until nothing is left. It flushes nothing, and never fails.
func (f *File) Close() error {
	f.once.Do(func() {
		f.end()
		f.mu.Lock()
		conns := append([]*conn(nil), f.conns...)
		f.mu.Unlock()
		for _, c := range conns {
			c.drain(storage.ErrClosed)
		}
		late := time.NewTimer(grace)
		defer late.Stop()
		for _, c := range conns {
			select {
			case <-c.dead:
			case <-late.C:
				late.Reset(0)
				f.lost(c, storage.ErrClosed)
			}
		}
	})
	f.wg.Wait()
	return nil
}
