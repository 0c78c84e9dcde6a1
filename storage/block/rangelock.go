package block

import (
	"context"
	"math"
	"sync"
)

// A rangeLock is a lock on byte ranges, shared or exclusive, first come first
// served: a request waits for every earlier one, held or waiting, that overlaps
// it, unless both are shared; so nobody starves. The zero value is free. Each
// request looks at all that are held or wait: dozens, not thousands.
type rangeLock struct {
	mu          sync.Mutex // protects all below; never held while anything blocks
	first, last *rangeHold // held or waiting, in the order in which they came
	spare       *rangeHold // used again, linked by next
	spares      int
}

// spareHolds is how many holds are kept for the next requests.
const spareHolds = 64

// A rangeHold is a request for a range, and then the right to it.
type rangeHold struct {
	prev, next *rangeHold
	lo, hi     int64
	exclusive  bool
	blockers   int           // earlier requests that it waits for; 0: it is held
	granted    chan struct{} // one send, when the last blocker goes; nil until it has waited once
}

// conflicts reports whether one must wait for the other.
func (h *rangeHold) conflicts(o *rangeHold) bool {
	return h.lo < o.hi && o.lo < h.hi && (h.exclusive || o.exclusive)
}

// everything is a range that overlaps every other.
const everything = math.MaxInt64

// share waits for a shared lock on [lo, hi): for who changes bytes, not the map.
func (l *rangeLock) share(ctx context.Context, lo, hi int64) (*rangeHold, error) {
	return l.lock(ctx, lo, hi, false)
}

// exclude waits for an exclusive lock on [lo, hi).
func (l *rangeLock) exclude(ctx context.Context, lo, hi int64) (*rangeHold, error) {
	return l.lock(ctx, lo, hi, true)
}

func (l *rangeLock) lock(ctx context.Context, lo, hi int64, exclusive bool) (*rangeHold, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := l.queue(lo, hi, exclusive)
	if h.granted == nil {
		return h, nil
	}
	select {
	case <-h.granted:
		h.granted = nil
		return h, nil
	case <-ctx.Done():
		l.unlock(h) // granted or not
		return nil, ctx.Err()
	}
}

// queue puts a request at the end. It has a channel exactly if it must wait.
func (l *rangeLock) queue(lo, hi int64, exclusive bool) *rangeHold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.spare
	if h != nil {
		l.spare = h.next
		l.spares--
	} else {
		h = new(rangeHold)
	}
	*h = rangeHold{prev: l.last, lo: lo, hi: hi, exclusive: exclusive}
	for o := l.first; o != nil; o = o.next {
		if h.conflicts(o) {
			h.blockers++
		}
	}
	if h.blockers > 0 {
		h.granted = make(chan struct{}, 1)
	}
	if l.last != nil {
		l.last.next = h
	} else {
		l.first = h
	}
	l.last = h
	return h
}

// unlock takes a request out, held or not, and grants what waited for it alone.
// The hold must not be used after it.
func (l *rangeLock) unlock(h *rangeHold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := h.next; o != nil; o = o.next {
		if o.conflicts(h) {
			if o.blockers--; o.blockers == 0 {
				o.granted <- struct{}{}
			}
		}
	}
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		l.first = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		l.last = h.prev
	}
	h.prev, h.next, h.granted = nil, nil, nil
	if l.spares < spareHolds {
		h.next, l.spare = l.spare, h
		l.spares++
	}
}
