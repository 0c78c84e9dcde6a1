package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// A writer is what is upgraded in place, from a reader: files, mappers and
// devices.
type writer interface {
	StartWriting(ctx context.Context) error
}

// ReadOnly reports whether the image is never written to here: the server, how
// it was named, or the format does not allow it. Whether its files allow it
// shows at the first write.
func (h *Handle) ReadOnly() bool {
	if h.s.opt.ReadOnly || h.top.readOnly() {
		return true
	}
	_, can := h.chain.layers[0].Mapper.(storage.WritableMapper)
	return !can
}

// Writable reports whether the image has been upgraded: AcquireWritable has
// returned one of its handles.
func (h *Handle) Writable() bool { return h.writing.Load() && !h.ReadOnly() }

// Report tells the service how an operation on the image failed. After a failure
// that took it out of service, or where a remote file has changed, the handle is
// not handed out anymore: who comes next gets one that was opened from disk.
func (h *Handle) Report(err error) {
	if errors.Is(err, storage.ErrChanged) {
		h.retire()
		return
	}
	if !h.writing.Load() {
		return
	}
	if errors.Is(err, storage.ErrCorrupt) { // perhaps of what was read: asking for nothing tells
		top := &h.chain.layers[0]
		if w, can := top.Mapper.(storage.WritableMapper); can {
			err = w.CheckWrite(h.s.always, top.node, 0, 0)
		}
	}
	if outOfService(err) {
		h.lose()
	}
}

// AcquireWritable is Acquire for who wants to write: the image is upgraded in
// place at the first time, and readers go on meanwhile. The error wraps
// storage.ErrReadOnly where that is not allowed, storage.ErrConflict where
// another image needs one of its files, storage.ErrBusy where another process
// does, storage.ErrCorrupt where the image is.
func (s *Service) AcquireWritable(ctx context.Context, name string) (*Handle, error) {
	for range maxTries {
		h, err := s.Acquire(ctx, name)
		if err != nil {
			return nil, err
		}
		if h.Writable() {
			return h, nil
		}
		starting, end := s.trace(ctx, "start writing", name)
		again, err := h.upgrade(starting)
		end(err)
		if err == nil && !again {
			return h, nil
		}
		s.evictIf(again || h.isBroken(), h)
		h.Release()
		if err != nil {
			s.tally.met(err)
			return nil, named(name, err)
		}
	}
	return nil, fmt.Errorf("image %q: %w: it changes again and again", name, storage.ErrBusy)
}

func (s *Service) evictIf(when bool, h *Handle) {
	if when {
		s.evict(h)
	}
}

// upgrade makes the image writable, once for all its handles. again: its files
// have changed, or it failed, since it was acquired.
func (h *Handle) upgrade(ctx context.Context) (again bool, err error) {
	if h.ReadOnly() {
		return false, storage.ErrReadOnly
	}
	if err := h.takeTurn(ctx); err != nil {
		return false, err
	}
	defer h.giveTurn()
	switch {
	case h.isBroken():
		return true, nil
	case h.writing.Load():
		return false, nil
	}
	files := h.written()
	if err := h.s.claim(ctx, h, files); err != nil {
		return false, err
	}
	if h.s.files.spent(files) { // by an image before this one
		h.fail()
		return true, nil
	}
	if again, err = h.startWriting(ctx); again || err != nil {
		h.s.files.release(h.image, files)
		return again, err
	}
	h.writing.Store(true)
	return false, nil
}

func (i *image) takeTurn(ctx context.Context) error {
	select {
	case i.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *image) giveTurn() { <-i.turn }

// startWriting upgrades nodes, layer and device, in this order. When that ends
// half-way the image is opened anew for whatever comes next.
func (h *Handle) startWriting(ctx context.Context) (again bool, err error) {
	for n, b := range h.targets() {
		if err := b.node().StartWriting(ctx); err != nil {
			h.breakIf(n > 0)
			return false, err
		}
	}
	// Nobody writes anymore. Who did, before we had the lock?
	if !h.unchanged() {
		h.breakIf(true)
		return true, nil
	}
	if err := startWriting(ctx, h.chain.layers[0].Mapper); err != nil {
		h.breakIf(true)
		return false, err
	}
	if err := startWriting(ctx, h.device); err != nil {
		h.breakIf(true)
		return false, err
	}
	if err := h.s.resume(ctx, h); err != nil {
		h.breakIf(true)
		return false, err
	}
	return false, nil
}

func (i *image) breakIf(when bool) {
	if when {
		i.fail()
	}
}

func startWriting(ctx context.Context, what any) error {
	w, can := what.(writer)
	if !can {
		return storage.ErrReadOnly
	}
	return w.StartWriting(ctx)
}

// outOfService reports whether an error says that an image must be opened anew.
func outOfService(err error) bool { return errors.Is(err, storage.ErrOutOfService) }
