package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A share is something of which there is so much, and that is taken and put back:
// with one atomic operation while there is enough.
type share struct {
	free    atomic.Int64
	waiting atomic.Int64 // len(queue)

	mu    sync.Mutex // protects all below
	queue []*waiter  // those who wait, the first first
}

type waiter struct {
	n, leave int64
	forever  bool
	served   bool
	ready    chan struct{} // closed when it has its share
}

// try takes n if as much as leave is left then.
func (s *share) try(n, leave int64) bool {
	for {
		free := s.free.Load()
		if free-n < leave {
			return false
		}
		if s.free.CompareAndSwap(free, free-n) {
			return true
		}
	}
}

// forever is a patience that does not end.
const forever = -1

// take waits for n for a while, or as long as the context lives, and reports
// whether it has them. Who can be served is served in the order of arrival, and
// nobody is held up by one who asks for more and waits for a while alone.
func (s *share) take(ctx context.Context, n, leave int64, patience time.Duration) bool {
	w := &waiter{n: n, leave: leave, forever: patience < 0, ready: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, w)
	s.waiting.Add(1) // before the look: who puts back looks after it
	s.serve()
	s.mu.Unlock()
	var late <-chan time.Time // nil: never
	if patience >= 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-w.ready:
		return true
	case <-ctx.Done():
	case <-late:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.served { // meanwhile
		return true
	}
	for i, o := range s.queue {
		if o == w {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			s.waiting.Add(-1)
			break
		}
	}
	return false
}

// put gives n back.
func (s *share) put(n int64) {
	s.free.Add(n)
	if s.waiting.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve()
}

// serve is called with mu held.
func (s *share) serve() {
	kept := s.queue[:0]
	held := false // by one who waits for ever, and must get its turn
	for _, w := range s.queue {
		if held || !s.try(w.n, w.leave) {
			kept = append(kept, w)
			held = held || w.forever
			continue
		}
		w.served = true
		close(w.ready)
	}
	clear(s.queue[len(kept):])
	s.queue = kept
	s.waiting.Store(int64(len(kept)))
}
