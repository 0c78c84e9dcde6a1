package storage

import (
	"fmt"
	"math"
	"sort"
)

// MaxExtents is the most mappings that a list holds. Callers ask in windows
// that stay far below it; a driver that goes over it fails the fetch.
const MaxExtents = 1 << 20

// An ExtentList collects the mappings that a fetch answers with. It is
// append-only: each mapping begins where the one before ended, and neighbours
// that say the same become one. The zero value is empty and wants everything.
// Not safe for concurrent use.
type ExtentList struct {
	mappings []Mapping
	lo, hi   int64 // the window; hi 0 means no window
}

// Reset empties the list, keeps its memory, and wants everything that a fetch
// volunteers.
func (l *ExtentList) Reset() { *l = ExtentList{mappings: l.mappings[:0]} }

// ResetWindow empties the list and wants only what overlaps [lo, hi): a driver
// need not spend time on volunteering more. Mappings are not cut at its edges.
func (l *ExtentList) ResetWindow(lo, hi int64) {
	*l = ExtentList{mappings: l.mappings[:0], lo: lo, hi: hi}
}

// Window is the range outside of which nothing is wanted.
func (l *ExtentList) Window() (lo, hi int64) {
	if l.hi == 0 {
		return 0, math.MaxInt64
	}
	return l.lo, l.hi
}

// Add appends m. A mapping without length is ignored, one that lies wholly
// outside the window is dropped; one that does not begin where the list ends is
// an error that wraps [ErrContract].
func (l *ExtentList) Add(m Mapping) error {
	if m.Length <= 0 || m.Offset < 0 || m.Length > MaxSize-m.Offset {
		if m.Length == 0 && m.Offset >= 0 {
			return nil
		}
		return fmt.Errorf("%w: extent at %d with length %d", ErrContract, m.Offset, m.Length)
	}
	if l.hi != 0 && (m.Offset >= l.hi || m.End() <= l.lo) {
		return nil
	}
	last := len(l.mappings) - 1
	if last >= 0 {
		tail := &l.mappings[last]
		if tail.Continues(&m) {
			tail.Length += m.Length
			return nil
		}
		if tail.End() != m.Offset {
			return fmt.Errorf("%w: extent at %d does not follow %d", ErrContract, m.Offset, tail.End())
		}
		if len(l.mappings) >= MaxExtents {
			return fmt.Errorf("%w: more than %d extents", ErrContract, MaxExtents)
		}
	}
	l.mappings = append(l.mappings, m)
	return nil
}

// Len is the number of mappings.
func (l *ExtentList) Len() int { return len(l.mappings) }

// At is mapping i, valid until the list is reset. The caller must not change it.
func (l *ExtentList) At(i int) *Mapping { return &l.mappings[i] }

// Start is where the list begins, 0 when it is empty.
func (l *ExtentList) Start() int64 {
	if len(l.mappings) == 0 {
		return 0
	}
	return l.mappings[0].Offset
}

// End is the first offset after the list, 0 when it is empty.
func (l *ExtentList) End() int64 {
	if len(l.mappings) == 0 {
		return 0
	}
	return l.mappings[len(l.mappings)-1].End()
}

// Covers reports whether the list says something of every byte of [off, off+n).
func (l *ExtentList) Covers(off, n int64) bool {
	return len(l.mappings) > 0 && l.Start() <= off && off+n <= l.End()
}

// Find is the index of the mapping that holds off, or -1.
func (l *ExtentList) Find(off int64) int {
	i := sort.Search(len(l.mappings), func(i int) bool { return l.mappings[i].End() > off })
	if i == len(l.mappings) || l.mappings[i].Offset > off {
		return -1
	}
	return i
}

// A mark is a state of a list to which it can go back.
type mark struct {
	n    int
	tail int64 // the last mapping's length
}

func (l *ExtentList) mark() mark {
	m := mark{n: len(l.mappings)}
	if m.n > 0 {
		m.tail = l.mappings[m.n-1].Length
	}
	return m
}

func (l *ExtentList) rewind(m mark) {
	l.mappings = l.mappings[:m.n]
	if m.n > 0 {
		l.mappings[m.n-1].Length = m.tail
	}
}
