package readahead

import (
	"io"

	"github.com/extentd/extentd/storage"
)

// A stream is a reader that may be sequential.
type stream struct {
	next   int64 // where it goes on if it is
	ahead  int64 // up to where was read ahead for it
	window int64 // how much at once; 0: it was not sequential yet
	last   int64 // when it was seen: the filter's clock
}

// note takes down that [off, end) is read, and if that is sequential, begins to
// read on. minimum and most are the node's limits.
func (f *Filter) note(off, end, minimum, most int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock++
	s := f.stream(off)
	if s.next != off || s.last == 0 {
		*s = stream{next: end, last: f.clock}
		return
	}
	s.next, s.last = end, f.clock
	if s.window == 0 {
		s.window = minSize / 2
	}
	if s.ahead-end >= s.window || end&(minimum-1) != 0 { // enough for now, or the end of the node
		return
	}
	s.ahead = max(s.ahead, end)
	s.window = min(2*s.window, f.size, most)
	n := min(s.window, storage.MaxSize-s.ahead)
	w, hi := f.find(s.ahead, s.ahead+n)
	switch {
	case w != nil: // somebody else's
		s.ahead = w.hi
	case s.ahead < hi && f.begin(s.ahead, hi):
		s.ahead = hi
	}
}

// stream is the one that goes on at off, or else the one that was not seen for
// longest. f.mu must be held.
func (f *Filter) stream(off int64) *stream {
	oldest := &f.streams[0]
	for i := range f.streams {
		s := &f.streams[i]
		if s.next == off && s.last > 0 {
			return s
		}
		if s.last < oldest.last {
			oldest = s
		}
	}
	return oldest
}

// begin begins to read [lo, hi), of which nothing is there yet, if there is a
// window to spare. f.mu must be held.
func (f *Filter) begin(lo, hi int64) bool {
	if f.closed {
		return false
	}
	w := f.spare()
	if w == nil {
		return false
	}
	if n := hi - lo; int64(cap(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	w.lo, w.hi, w.buf, w.got = lo, hi, w.buf[:hi-lo], 0
	w.done, w.pending = make(chan struct{}), true
	w.seen, w.last = lo, f.clock
	w.dropped.Store(false)
	f.reads.Go(func() { f.read(w) })
	return true
}

// read reads a window. What goes wrong is for who wants the bytes to find out.
func (f *Filter) read(w *window) {
	n, known := 0, false
	if size, err := f.next.Size(f.ctx); err == nil && w.lo < size {
		n, err = f.next.ReadAt(f.ctx, w.buf, w.lo)
		known = n == len(w.buf) || err == io.EOF //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.got = int64(n)
	f.prefetched += w.got
	if !known || w.dropped.Load() {
		f.wasted += w.got
		w.dropped.Store(true)
	}
	w.pending = false
	close(w.done)
}
