package nbd

import (
	"context"
	"slices"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// orphan remembers a change whose caller has given it up, and which the server may
// still do: after what somebody else writes there meanwhile, and has been told is
// done.
func (f *File) orphan(r *request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.orphans = append(slices.DeleteFunc(f.orphans, (*request).over), r)
	f.orphaned.Store(int64(len(f.orphans)))
}

// settle waits, before something is changed, until no orphan there can be done any
// more, or its connection is lost.
func (f *File) settle(ctx context.Context, a *ask) error {
	if a.repeatable() || a.command == wire.CmdFlush {
		return nil
	}
	for f.orphaned.Load() > 0 {
		f.mu.Lock()
		f.orphans = slices.DeleteFunc(f.orphans, (*request).over)
		f.orphaned.Store(int64(len(f.orphans)))
		i := slices.IndexFunc(f.orphans, func(r *request) bool {
			return r.Offset < uint64(a.off+a.n) && uint64(a.off) < r.Offset+r.Length
		})
		var r *request
		if i >= 0 {
			r = f.orphans[i]
		}
		f.mu.Unlock()
		if r == nil {
			return nil
		}
		select {
		case err := <-r.done:
			r.done <- err // for who asks next
		case <-ctx.Done():
			return ctx.Err()
		case <-f.life.Done():
			return storage.ErrClosed
		}
	}
	return nil
}

// over reports whether a request that was given up has ended.
func (r *request) over() bool {
	select {
	case err := <-r.done:
		r.done <- err
		return true
	default:
		return false
	}
}
