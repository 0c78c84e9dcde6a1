package qcow2

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
)

// A writer is what an image has once it can be written to. Its locks are taken
// in this order: commit, mu, metadata.mu, those of the caches. None of them is
// held while a caller's data are read or written.
type writer struct {
	*Image
	limit int // dirty slices, refcount blocks beyond which they are written back

	flushes flushes    // callers of Flush, who share syncs
	commit  sync.Mutex // held while metadata are written back, so that one at a time does
	failure atomic.Pointer[error]

	mu       sync.Mutex // protects all below, and what the metadata in memory say
	stopped  bool       // closed
	table    refcountTable
	reserved runs  // clusters handed out by Alloc and not mapped yet
	hint     int64 // no cluster below it is free
	high     int64 // no cluster at or above it was ever in use
	mapped   int64 // no cluster at or above it has been mapped since the file was last found to be long enough
	marked   bool  // the dirty bit is on disk
	freed    frees
	edit     edit // scratch memory of update

	metadata metadata // where it is, for the overlap check
}

// writing is the writer of an image that can be written to.
func (i *Image) writing() (*writer, error) {
	w := i.writer.Load()
	if w == nil {
		if err := i.checkOpen(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("qcow2: %w: writing has not been started", storage.ErrReadOnly)
	}
	return w, w.usable()
}

// usable is an error once the image is out of service or closed.
func (w *writer) usable() error {
	if err := w.failure.Load(); err != nil {
		return *err
	}
	return w.checkOpen()
}

// Failed reports whether a failed write of metadata or a failed sync, or the
// discovery of corruption, has taken the image out of service. It costs two
// atomic loads.
func (i *Image) Failed() bool {
	w := i.writer.Load()
	return w != nil && w.failure.Load() != nil
}

// lock takes w.mu, unless the image is out of service or closed.
func (w *writer) lock() error {
	w.mu.Lock()
	err := w.usable()
	if err == nil && w.stopped {
		err = fmt.Errorf("qcow2: %w", storage.ErrClosed)
	}
	if err != nil {
		w.mu.Unlock()
	}
	return err
}

// fail takes the image out of service for everything that writes: what is in
// memory and what is on disk may differ in ways that nobody knows. Where there
// is no space nothing is lost: what could not be written is still dirty.
func (w *writer) fail(err error) error {
	if err == nil || errors.Is(err, storage.ErrNoSpace) {
		return err
	}
	return w.outOfService(err)
}

// outOfService is fail for what cannot be tried again even where there was no
// space.
func (w *writer) outOfService(err error) error {
	failed := fmt.Errorf("qcow2: %w: %s", storage.ErrOutOfService, err.Error())
	if !w.failure.CompareAndSwap(nil, &failed) {
		return *w.failure.Load()
	}
	return failed
}

// corrupted marks the image corrupt on disk, where its version can say so, and
// takes it out of service. cause wraps [storage.ErrCorrupt] and is returned.
// w.mu must be held.
func (w *writer) corrupted(ctx context.Context, cause error) error {
	if w.failure.Load() != nil {
		return cause
	}
	if w.info.Version >= 3 {
		err := w.writeHeaderFields(ctx, func(h *header) { h.incompatible |= incompatCorrupt })
		if err == nil {
			err = w.sync(ctx)
		}
		if err != nil {
			cause = errors.Join(cause, err)
		}
	}
	failed := fmt.Errorf("qcow2: %w: it was found to be corrupt", storage.ErrOutOfService)
	w.failure.CompareAndSwap(nil, &failed)
	return cause
}

// sync makes everything written to the image's own file durable. A failure takes
// the image out of service: what the kernel could not write it may have dropped,
// and the next sync would succeed all the same.
func (w *writer) sync(ctx context.Context) error {
	err := w.node.Flush(context.WithoutCancel(ctx))
	if err != nil {
		return w.outOfService(err)
	}
	return nil
}

// write writes metadata. A failure takes the image out of service, but for a
// lack of space. It is not given up when ctx ends: half of a table would be
// written. w.mu must be held.
func (w *writer) write(ctx context.Context, p []byte, at hostOffset) error {
	return w.fail(w.src.write(context.WithoutCancel(ctx), p, at))
}

// quiesced calls fn while nothing is dirty or waits to be freed, and nobody else
// can change the metadata: what is on disk is what is in memory, and clusters
// that nothing refers to are free or reserved. fn may change metadata through
// the writer's methods, and end with writeBack. It waits for readers that have
// pins.
func (i *Image) quiesced(ctx context.Context, fn func(w *writer) error) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	for {
		done, err := w.tryQuiesced(ctx, fn)
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryQuiesced is quiesced where no reader has a pin that matters.
func (w *writer) tryQuiesced(ctx context.Context, fn func(w *writer) error) (done bool, err error) {
	w.commit.Lock()
	defer w.commit.Unlock()
	if err := w.commitAll(ctx); err != nil { // most of it, without the lock
		return false, err
	}
	if err := w.lock(); err != nil {
		return false, err
	}
	defer w.mu.Unlock()
	if err := w.writeBack(ctx); err != nil {
		return false, err
	}
	if len(w.freed.durable) > 0 {
		return false, nil
	}
	return true, fn(w)
}
