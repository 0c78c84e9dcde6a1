package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// An export is an image as one connection uses it. Each request acquires it anew,
// so that it is of the files as they are; between requests it is kept open,
// unless it was opened anew since, and nothing was written to it here: a file
// through which a write has failed can be written to again only when nobody has
// it open anymore.
//
// A connection that only reads goes on when the image must be opened anew. One
// that has written fails from there on: a flush of the new one would not cover
// what was written to the old one.
type export struct {
	s        *Server
	c        *conn
	name     string
	readOnly bool
	size     uint64 // as offered: a multiple of minimum
	// The limits as offered, bytes.
	minimum, preferred, maxData, maxCache uint64

	device atomic.Pointer[block.Device] // stored with mu held
	wrote  atomic.Bool                  // likewise; stays, as does device then
	lost   atomic.Bool                  // likewise: what was written may be

	mu   sync.Mutex      // protects held
	held *service.Handle // or nil

	quickly func() bool // whether zeros of whole blocks are a matter of the map
}

// openExport opens an image for a connection, and says what its format is.
func openExport(c *conn, name string) (*export, string, error) {
	s := c.s
	h, err := s.svc.Acquire(s.ctx, name)
	if err != nil {
		return nil, "", err
	}
	e := &export{s: s, c: c, name: name, held: h, readOnly: s.opt.ReadOnly || h.ReadOnly() || !c.caller.May(auth.Write, name)}
	e.device.Store(h.Device())
	if err := e.measure(); err != nil {
		h.Release()
		return nil, "", err
	}
	e.quickly = sync.OnceValue(e.zeroesQuickly)
	return e, h.LayerFormat(0), nil
}

// measure asks for the size and the limits. It fails where the image cannot be
// read.
func (e *export) measure() error {
	d := e.device.Load()
	if err := d.Check(e.s.ctx, 0, 0); err != nil {
		return err
	}
	l, err := d.Limits(e.s.ctx)
	if err != nil {
		return err
	}
	e.size = uint64(d.Size() &^ (l.Minimum - 1))
	e.minimum = uint64(l.Minimum)
	e.maxData = uint64(min(l.MaxData, maxData) &^ (l.Minimum - 1))
	e.preferred = uint64(min(l.Preferred, maxData))
	e.maxCache = uint64(max(l.MaxCache, int64(e.maxData)))
	return nil
}

// release lets the image go.
func (e *export) release() {
	e.s.mu.Lock()
	delete(e.s.exports, e)
	e.s.mu.Unlock()
	e.mu.Lock()
	held := e.held
	e.held = nil
	e.mu.Unlock()
	if held != nil {
		held.Release()
	}
}

// refresh lets the image go if it is open no more for others: who wants to write
// to what took its place would meet it.
func (e *export) refresh(ctx context.Context) {
	if h, err := e.acquire(ctx, false); err == nil {
		h.Release()
	}
}

// maxTries bounds how often an image may change while it is acquired.
const maxTries = 8

// acquire returns a handle for one request, which releases it.
func (e *export) acquire(ctx context.Context, writing bool) (*service.Handle, error) {
	get := e.s.svc.Acquire
	if writing {
		get = e.s.svc.AcquireWritable
	}
	for try := range maxTries {
		if e.lost.Load() {
			return nil, errLost
		}
		h, err := get(ctx, e.name)
		if writing && errors.Is(err, storage.ErrConflict) && try < maxTries-1 {
			if err := e.s.yield(ctx, try); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if e.device.Load() == h.Device() && (!writing || e.wrote.Load()) || e.adopt(h, writing) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("image %q: %w: it changes again and again", e.name, storage.ErrBusy)
}

// adopt takes note of who begins to write, and of an image that was opened anew.
// If it does not return true the caller tries again, without h.
func (e *export) adopt(h *service.Handle, writing bool) bool {
	e.mu.Lock()
	same, lost, kept := e.device.Load() == h.Device(), false, false
	var old *service.Handle
	if !same {
		old, e.held = e.held, nil
		if lost = e.wrote.Load(); lost {
			e.lost.Store(true)
		} else {
			e.device.Store(h.Device())
		}
	}
	if writing && !lost {
		e.wrote.Store(true)
		if kept = e.held == nil; kept {
			e.held = h
		}
	}
	e.mu.Unlock()
	if old != nil {
		old.Release()
	}
	if lost {
		h.Release()
	}
	return !lost && !kept
}

// yield lets the image go if nothing was written to it here.
func (e *export) yield() {
	e.mu.Lock()
	var held *service.Handle
	if !e.wrote.Load() {
		held, e.held = e.held, nil
	}
	e.mu.Unlock()
	if held != nil {
		held.Release()
	}
}

// zeroesQuickly reports whether the format can say that whole blocks are zeros,
// and need not write them.
func (e *export) zeroesQuickly() bool {
	h, err := e.s.svc.Acquire(e.s.ctx, e.name)
	if err != nil {
		return false
	}
	defer h.Release()
	if u := h.Device().Units(); u.Fixed || u.Alloc == 0 {
		return false
	}
	info, err := h.Info(e.s.ctx)
	return err == nil && (info.QCOW2 == nil || info.QCOW2.Version >= 3 && !info.QCOW2.DataFileRaw)
}
