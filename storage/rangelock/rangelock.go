// Package rangelock is a lock on ranges: of bytes, or of blocks. It orders what
// changes one range, and lets disjoint ranges go on side by side.
package rangelock

import (
	"context"
	"math"
	"sync"
)

// A Lock is a lock on byte ranges, shared or exclusive, first come first
// served: a request waits for every earlier one, held or waiting, that overlaps
// it, unless both are shared; so nobody starves. The zero value is free. Each
// request looks at all that are held or wait: dozens, not thousands.
type Lock struct {
	mu          sync.Mutex // protects all below; never held while anything blocks
	first, last *Hold      // held or waiting, in the order in which they came
	spare       *Hold      // used again, linked by next
	spares      int
}

// spareHolds is how many holds are kept for the next requests.
const spareHolds = 64

// A Hold is a request for a range, and then the right to it.
type Hold struct {
	prev, next *Hold
	lo, hi     int64
	exclusive  bool
	blockers   int           // earlier requests that it waits for; 0: it is held
	granted    chan struct{} // one send, when the last blocker goes; nil until it has waited once
}

// conflicts reports whether one must wait for the other.
func (h *Hold) conflicts(o *Hold) bool {
	return h.lo < o.hi && o.lo < h.hi && (h.exclusive || o.exclusive)
}

// Everything is where a range ends that has no end.
const Everything = math.MaxInt64

// Share waits for [lo, hi) beside others who share it. Who gets a hold releases
// it. The error is the context's.
func (l *Lock) Share(ctx context.Context, lo, hi int64) (*Hold, error) {
	return l.lock(ctx, lo, hi, false)
}

// Exclude likewise waits for [lo, hi), beside nobody.
func (l *Lock) Exclude(ctx context.Context, lo, hi int64) (*Hold, error) {
	return l.lock(ctx, lo, hi, true)
}

func (l *Lock) lock(ctx context.Context, lo, hi int64, exclusive bool) (*Hold, error) {
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
		l.Release(h) // granted or not
		return nil, ctx.Err()
	}
}

// queue puts a request at the end. It has a channel exactly if it must wait.
func (l *Lock) queue(lo, hi int64, exclusive bool) *Hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.spare
	if h != nil {
		l.spare = h.next
		l.spares--
	} else {
		h = new(Hold)
	}
	*h = Hold{prev: l.last, lo: lo, hi: hi, exclusive: exclusive}
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

// Release takes a request out, held or not, and grants what waited for it alone.
// The hold must not be used after it. There is nothing to do for nil.
func (l *Lock) Release(h *Hold) {
	if h == nil {
		return
	}
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
