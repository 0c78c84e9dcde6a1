package service

import (
	"errors"
	"sync/atomic"
	"time"
)

// idleSweeps is how many sweeps in a row must find a handle unused before it is
// closed. A sweep reads a flag: no request looks at the clock for it.
const idleSweeps = 4

// janitor closes what is idle, until the service is closed.
func (s *Service) janitor() {
	ticker := time.NewTicker(max(s.opt.Idle/idleSweeps, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.sweep()
		case <-s.ctx.Done():
			return
		}
	}
}

// sweep closes the handles that were not used for idleSweeps sweeps, and flushes
// the images that were not written to for one.
func (s *Service) sweep() {
	var idle []*Handle
	s.mu.Lock()
	for _, o := range s.shared {
		if i := o.image; i != nil && i.wantsFlush() {
			i.refs++
			s.work.Go(func() { s.flush(i) })
		}
	}
	for name, h := range s.open {
		if h.used.Swap(false) || h.refs.Load() > 1 {
			h.quiet = 0
			continue
		}
		if h.quiet++; h.quiet >= idleSweeps {
			delete(s.open, name)
			idle = append(idle, h)
		}
	}
	s.mu.Unlock()
	for _, h := range idle {
		h.Release()
	}
}

// A flushState says what of an image's changes is known to be durable.
type flushState struct {
	busy           atomic.Bool
	swept, durable atomic.Uint64 // data generations: at the last sweep, and at the last flush
}

// wantsFlush reports whether the image was written to, but not since the last
// sweep, so that a crash long after a write loses little.
func (i *image) wantsFlush() bool {
	if !i.writing.Load() {
		return false
	}
	now := i.counts.data.n.Load()
	quiet := i.flushed.swept.Swap(now) == now
	return quiet && now != i.flushed.durable.Load() && !i.broken.Load() && i.flushed.busy.CompareAndSwap(false, true)
}

// flush makes what was written to the image durable, and gives a reference back.
func (s *Service) flush(i *image) {
	now := i.counts.data.n.Load()
	err := i.device.Flush(s.always) // the service waits for it
	switch {
	case err == nil:
		i.flushed.durable.Store(now)
	case outOfService(err):
		i.lose()
	}
	i.flushed.busy.Store(false)
	s.report(i.name, errors.Join(err, s.putImage(i)))
}

// evictIdlest closes the handle that is unused longest, if any is unused.
func (s *Service) evictIdlest() {
	var idlest *Handle
	s.mu.Lock()
	for _, h := range s.open {
		if h.refs.Load() == 1 && (idlest == nil || h.quiet > idlest.quiet) {
			idlest = h
		}
	}
	if idlest != nil {
		delete(s.open, idlest.name)
	}
	s.mu.Unlock()
	if idlest != nil {
		idlest.Release()
	}
}

// evict no longer hands out h. It is closed once its users have released it.
func (s *Service) evict(h *Handle) {
	s.mu.Lock()
	kept := s.open[h.name] == h
	if kept {
		delete(s.open, h.name)
	}
	s.mu.Unlock()
	if kept {
		h.Release()
	}
}
