package crash_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

const sector = int64(512)

// A change is one thing that was done to the disk's bytes.
type change struct {
	off    int64
	data   []byte // of every sector from off on; nil for zeros
	length int64
	begun  int // position of the journal before it
	order  int // when it was answered, on a clock of the history's; 0: never
}

// A flushing is a flush that was answered.
type flushing struct {
	called int // on the history's clock
	done   int // position of the journal afterwards
}

// A history is what was done to a disk, from which follows what may be on it
// after a crash.
type history struct {
	mu      sync.Mutex // protects all below
	initial []byte
	changes []*change
	flushes []flushing
	sizes   []*change // length is the size
	clock   int
}

func newHistory(initial []byte) *history {
	return &history{initial: initial, sizes: []*change{{length: int64(len(initial)), order: -1}}}
}

// begin notes a change that is about to be made.
func (h *history) begin(at int, off, length int64, data []byte) *change {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &change{off: off, length: length, data: data, begun: at}
	h.changes = append(h.changes, c)
	return c
}

// resizing notes a change of the size. What lies beyond the smaller of the two
// becomes zeros.
func (h *history) resizing(at int, from, to int64) (zeroed, size *change) {
	zeroed = h.begin(at, min(from, to), max(from, to)-min(from, to), nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	size = &change{length: to, begun: at}
	h.sizes = append(h.sizes, size)
	return zeroed, size
}

// answered notes that changes are made.
func (h *history) answered(changes ...*change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	for _, c := range changes {
		c.order = h.clock
	}
}

// now is the time, for a flush that is about to be called.
func (h *history) now() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// flushed notes a flush that was answered.
func (h *history) flushed(called, done int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushes = append(h.flushes, flushing{called, done})
}

// durable is the time before which everything that was answered is on disk in a
// crash at a position.
func (h *history) durable(at int) int {
	latest := 0
	for _, f := range h.flushes {
		if f.done <= at {
			latest = max(latest, f.called)
		}
	}
	return latest
}

// checkSize wants one of the sizes that there may be after a crash.
func (h *history) checkSize(size int64, at int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	durable := h.durable(at)
	var may []int64
	for _, c := range h.sizes {
		if c.begun > at {
			break
		}
		if c.order != 0 && c.order < durable {
			may = may[:0]
		}
		may = append(may, c.length)
	}
	for _, m := range may {
		if m == size {
			return nil
		}
	}
	return fmt.Errorf("the size is %d, and may be %v", size, may)
}

// check compares what is read after a crash at a position with what may be
// there: of each sector, what was there when the last flush was called, or what
// was written later.
func (h *history) check(got []byte, at int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	durable := h.durable(at)
	known := make([]bool, int64(len(got))/sector)  // sectors that are right
	for _, c := range slices.Backward(h.changes) { // most are what was done last
		if c.begun > at {
			continue
		}
		for i := c.off / sector; i < min((c.off+c.length)/sector, int64(len(known))); i++ {
			switch {
			case known[i]:
			case c.holds(i, got):
				known[i] = true
			case c.order != 0 && c.order < durable:
				return h.explain(i, got, at)
			}
		}
	}
	first := &change{data: h.initial, length: int64(len(h.initial))}
	for i, right := range known {
		if !right && !first.holds(int64(i), got) {
			return h.explain(int64(i), got, at)
		}
	}
	return nil
}

// content is what a change makes of a sector of the disk; nil for zeros.
func (c *change) content(i int64) []byte {
	if c.data == nil || i*sector >= c.off+c.length {
		return nil
	}
	return c.data[i*sector-c.off:][:sector]
}

// holds reports whether a sector of what was read is as the change made it.
func (c *change) holds(i int64, got []byte) bool {
	want := c.content(i)
	if want == nil {
		want = zeros[:]
	}
	return bytes.Equal(got[i*sector:(i+1)*sector], want)
}

var zeros [sector]byte

// explain tells what a sector holds, and what it may hold.
func (h *history) explain(i int64, got []byte, at int) error {
	may := []string{brief((&change{data: h.initial, length: int64(len(h.initial))}).content(i))}
	durable := h.durable(at)
	for _, c := range h.changes {
		if c.begun > at || i*sector < c.off || i*sector >= c.off+c.length {
			continue
		}
		if c.order != 0 && c.order < durable {
			may = may[:0]
		}
		may = append(may, brief(c.content(i)))
	}
	return fmt.Errorf("the sector at %d holds %s, and may hold %s", i*sector, brief(got[i*sector:]), may)
}

func brief(p []byte) string {
	if p == nil {
		return "zeros"
	}
	return fmt.Sprintf("%x", p[:min(16, len(p))])
}
