package storagetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/extentd/extentd/storage"
)

// An OpKind is what a MemFile is asked for.
type OpKind int

// The operations of a storage.File, and of a storage.Writer.
const (
	OpSize OpKind = iota
	OpRead
	OpExtents
	OpLimit
	OpWrite
	OpZero
	OpTrim
	OpTruncate
	OpFlush
)

// An Op is an operation that a MemFile is about to do.
type Op struct {
	Kind OpKind
	// Offset and Length of what has a range, bytes; the Offset of a truncate is
	// the new size. A hook may lower the Length of a read or write: that much
	// is read or written, and the hook's error, or nil, is returned with it.
	Offset, Length int64
}

// A Hook is called before every operation of a MemFile. Its error is the
// operation's. It may block, and must return when ctx ends. Called
// concurrently.
type Hook func(ctx context.Context, op *Op) error

// Hooks calls one after the other, up to the first error.
func Hooks(hooks ...Hook) Hook {
	return func(ctx context.Context, op *Op) error {
		for _, h := range hooks {
			if err := h(ctx, op); err != nil {
				return err
			}
		}
		return nil
	}
}

// FailNth fails the nth operation of a kind, counted from 1, and no other.
func FailNth(kind OpKind, nth int64, err error) Hook {
	var count atomic.Int64
	return func(_ context.Context, op *Op) error {
		if op.Kind == kind && count.Add(1) == nth {
			return err
		}
		return nil
	}
}

// ShortNth cuts the nth read or write, as the kind says, counted from 1, to
// length bytes, and returns err with them. With a nil err it breaks the contract
// of storage.File.
func ShortNth(kind OpKind, nth, length int64, err error) Hook {
	var count atomic.Int64
	return func(_ context.Context, op *Op) error {
		if op.Kind != kind || count.Add(1) != nth || op.Length <= length {
			return nil
		}
		op.Length = length
		return err
	}
}

// NoSpaceAfter fails writes with [storage.ErrNoSpace] once n bytes have been
// written, wherever: the write that goes beyond is cut. Nothing gives room back.
func NoSpaceAfter(n int64) Hook {
	var mu sync.Mutex // protects n
	return func(_ context.Context, op *Op) error {
		if op.Kind != OpWrite || op.Length == 0 {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if op.Length <= n {
			n -= op.Length
			return nil
		}
		op.Length, n = n, 0
		return fmt.Errorf("%w: %w", storage.ErrNoSpace, syscall.ENOSPC)
	}
}

// Delay makes every operation of a kind take so long, or until its context
// ends.
func Delay(kind OpKind, d time.Duration) Hook {
	return func(ctx context.Context, op *Op) error {
		if op.Kind != kind {
			return nil
		}
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
