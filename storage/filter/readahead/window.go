package readahead

import (
	"math"
	"sync/atomic"
)

// A window is a range that was read ahead, or is being read. The filter's mu
// protects it. While it is pending, buf and got belong to who reads ahead; once
// done is closed they stay as they are for as long as there are readers.
type window struct {
	lo, hi  int64         // what is read; nothing is if they are the same
	buf     []byte        // of its own, used again
	got     int64         // how much of it was read: less than all where the node ends
	done    chan struct{} // closed when it has been read
	pending bool          // until then
	dropped atomic.Bool   // nobody may use it any more; also read without mu
	readers int           // who wait for it, or copy from it
	seen    int64         // up to where somebody has read it
	last    int64         // when it was used: the filter's clock
}

// short reports whether the node ended in the window, which is done.
func (w *window) short() bool { return w.lo+w.got < w.hi }

// end is up to where it can be used.
func (w *window) end() int64 {
	if w.pending {
		return w.hi
	}
	return w.lo + w.got
}

// live reports whether it holds anything that somebody may use.
func (w *window) live() bool { return w.lo < w.end() && !w.dropped.Load() }

// depends reports whether it says anything of [lo, hi): where the node ended in
// it, or may have, it says so of all that follows.
func (w *window) depends(lo, hi int64) bool {
	end := w.hi
	if w.pending || w.short() {
		end = math.MaxInt64
	}
	return w.lo < hi && lo < end
}

// find is the window that holds off, or nil, and then where the next one behind
// it begins, hi at most. f.mu must be held.
func (f *Filter) find(off, hi int64) (*window, int64) {
	for i := range f.windows {
		w := &f.windows[i]
		switch {
		case !w.live() || w.end() <= off || w.lo >= hi:
		case w.lo <= off:
			return w, 0
		default:
			hi = w.lo
		}
	}
	return nil, hi
}

// patience is after how many reads by others a stream that does not go on is given
// up, and a window that nobody has used. Less would let more readers than there are
// windows take them from each other.
const patience = 16 * maxStreams

// spare is a window that can become another, dropped: one that is of no use any
// more, or that nobody has wanted for long. There may be none. f.mu must be held.
func (f *Filter) spare() *window {
	for i := range f.windows {
		w := &f.windows[i]
		if w.pending || w.readers > 0 {
			continue
		}
		if !w.live() || w.seen >= w.end() || !f.wanted(w) {
			f.drop(w)
			return w
		}
	}
	return nil
}

// wanted reports whether somebody reads the window, or is on the way to it. f.mu
// must be held.
func (f *Filter) wanted(w *window) bool {
	since := f.clock - patience
	if w.last >= since {
		return true
	}
	for i := range f.streams {
		if s := &f.streams[i]; s.last > 0 && s.last >= since && s.next < w.hi && w.lo < s.ahead {
			return true
		}
	}
	return false
}

// drop makes a window one that nobody may use. f.mu must be held.
func (f *Filter) drop(w *window) {
	if !w.dropped.Swap(true) && !w.pending {
		f.wasted += max(0, w.end()-max(w.seen, w.lo))
	}
}

// forget drops what was read ahead of [off, off+n), and what is being read.
func (f *Filter) forget(off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.windows {
		if w := &f.windows[i]; w.depends(off, off+n) {
			f.drop(w)
		}
	}
}
