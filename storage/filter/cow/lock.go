package cow

import (
	"context"
	"slices"
	"sync"
)

// A rangeLock is a lock on ranges of blocks, shared or exclusive, first come
// first served: a request waits for every earlier one, held or waiting, that
// overlaps it, unless both are shared. The zero value is free.
type rangeLock struct {
	mu    sync.Mutex // protects all below; never held while anything blocks
	queue []*hold    // held or waiting, in the order in which they came
	spare []*hold    // used again
}

// A hold is a request for the blocks [lo, hi), and then the right to them.
type hold struct {
	lo, hi    int64
	exclusive bool
	blockers  int           // earlier requests that it waits for; 0: it is held
	granted   chan struct{} // closed when the last blocker goes; nil if there was none
}

func (h *hold) conflicts(o *hold) bool {
	return h.lo < o.hi && o.lo < h.hi && (h.exclusive || o.exclusive)
}

// lock waits for the blocks [lo, hi). Who gets a hold must unlock it.
func (l *rangeLock) lock(ctx context.Context, lo, hi int64, exclusive bool) (*hold, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := l.request(lo, hi, exclusive)
	if h.granted == nil {
		return h, nil
	}
	select {
	case <-h.granted:
		return h, nil
	case <-ctx.Done():
		l.unlock(h) // granted or not
		return nil, ctx.Err()
	}
}

// request puts a request at the end of the queue. It has a channel exactly if it
// must wait.
func (l *rangeLock) request(lo, hi int64, exclusive bool) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h *hold
	if last := len(l.spare) - 1; last >= 0 {
		h, l.spare = l.spare[last], l.spare[:last]
	} else {
		h = new(hold)
	}
	*h = hold{lo: lo, hi: hi, exclusive: exclusive}
	for _, o := range l.queue {
		if h.conflicts(o) {
			h.blockers++
		}
	}
	if h.blockers > 0 {
		h.granted = make(chan struct{})
	}
	l.queue = append(l.queue, h)
	return h
}

// maxSpare is how many holds are kept for the next requests.
const maxSpare = 64

// unlock takes a request out of the queue, held or not, and grants what waited
// for it alone. The hold must not be used after it.
func (l *rangeLock) unlock(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.queue, h)
	for _, o := range l.queue[at+1:] {
		if o.conflicts(h) {
			if o.blockers--; o.blockers == 0 {
				close(o.granted)
			}
		}
	}
	l.queue = slices.Delete(l.queue, at, at+1)
	if len(l.spare) < maxSpare {
		l.spare = append(l.spare, h)
	}
}
