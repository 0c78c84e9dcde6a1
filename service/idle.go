package service

import "time"

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

// sweep closes the handles that were not used for idleSweeps sweeps.
func (s *Service) sweep() {
	var idle []*Handle
	s.mu.Lock()
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
