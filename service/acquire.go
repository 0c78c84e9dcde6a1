package service

import (
	"context"
	"fmt"
	"time"

	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/storage"
)

// A flight is the opening of an image that all who want it wait for. Its fields
// are guarded by Service.mu until done is closed, and do not change after.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	landed  bool
	h       *Handle // holds a reference for each waiter
	err     error
}

// Acquire returns an open handle of the image as its files are now. The caller
// releases it. An error wraps one of the sentinels of package storage:
// ErrNotFound where there is no such image. A failure is not remembered.
func (s *Service) Acquire(ctx context.Context, name string) (*Handle, error) {
	for {
		if h := s.share(name); h != nil {
			if h.current() {
				return h, nil
			}
			s.evict(h)
			h.Release()
		}
		f, started, err := s.board(ctx, name)
		if err != nil {
			return nil, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			s.leave(name, f)
			return nil, ctx.Err()
		}
		if f.err != nil {
			return nil, f.err
		}
		if started || f.h.current() { // who joined may have come after a change
			return f.h, nil
		}
		s.evict(f.h)
		f.h.Release()
	}
}

// share takes a reference to the open handle of the name, if there is one.
func (s *Service) share(name string) *Handle {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := s.open[name]
	if h != nil {
		h.refs.Add(1) // the service's own keeps it above zero
	}
	return h
}

// board starts the opening of the image, or joins the one that is under way. What
// is opened is for all who wait, and does not end with the first's context.
func (s *Service) board(ctx context.Context, name string) (f *flight, started bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, fmt.Errorf("service: %w", storage.ErrClosed)
	}
	if f := s.flights[name]; f != nil {
		f.waiters++
		return f, false, nil
	}
	ctx, cancel := s.outlive(ctx)
	f = &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	s.flights[name] = f
	s.work.Go(func() {
		ctx, end := s.trace(ctx, "open", name)
		h, err := s.openWithin(ctx, name)
		end(err)
		s.tally.opened(err)
		s.land(name, f, h, err)
	})
	return f, true, nil
}

// leave is what a waiter does who no longer waits. The last one cancels.
func (s *Service) leave(name string, f *flight) {
	s.mu.Lock()
	landed := f.landed
	if !landed {
		f.waiters--
		if f.waiters == 0 { // who comes now starts anew
			delete(s.flights, name)
			f.cancel()
		}
	}
	s.mu.Unlock()
	if landed && f.h != nil {
		f.h.Release()
	}
}

// land hands what was opened to all who wait, and keeps it for others.
func (s *Service) land(name string, f *flight, h *Handle, err error) {
	f.cancel()
	s.mu.Lock()
	f.landed = true
	if s.flights[name] == f {
		delete(s.flights, name)
	}
	if err != nil && s.closed {
		err = fmt.Errorf("service: %w", storage.ErrClosed)
	}
	f.h, f.err = h, err
	abandoned := f.waiters == 0
	var before *Handle
	if h != nil && !abandoned {
		h.refs.Store(int32(f.waiters))
		if !s.closed {
			h.refs.Add(1)
			before = s.open[name]
			s.open[name] = h
		}
	}
	close(f.done)
	s.mu.Unlock()
	if before != nil {
		before.Release()
	}
	if h != nil && abandoned {
		s.report(name, h.close())
	}
}

// openWithin opens an image within the bound on open images.
func (s *Service) openWithin(ctx context.Context, name string) (*Handle, error) {
	if _, err := s.find(name); err != nil {
		return nil, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	h, err := s.openImage(ctx, name)
	if err != nil {
		<-s.tokens
		return nil, err
	}
	h.tokens = s.tokens
	return h, nil
}

// take takes a token. When there is none left, the image that is idle longest
// is closed for it; when none is idle, it waits for a while.
func (s *Service) take(ctx context.Context) error {
	select {
	case s.tokens <- struct{}{}:
		return nil
	default:
	}
	s.hungry.Add(1) // before the look for idle ones: Release looks after it
	defer s.hungry.Add(-1)
	s.evictIdlest()
	late := time.NewTimer(s.opt.OpenWait)
	defer late.Stop()
	select {
	case s.tokens <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("%w: %d images are open, and all of them in use", load.Busy(), s.opt.MaxOpen)
	}
}
