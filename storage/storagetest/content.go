package storagetest

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// A Range is a part of a file or image, bytes.
type Range struct{ Offset, Length int64 }

// A layout is content with holes, which are zeros.
type layout struct {
	name    string
	content []byte
	holes   []Range
}

// layouts have sizes and holes that are multiples of unit.
func layouts(t *testing.T, unit int64) []layout {
	t.Helper()
	const kib = 1 << 10
	seed := rand.Uint64()
	t.Logf("content of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	return []layout{
		newLayout(random, "empty", 0, unit),
		newLayout(random, "one unit", 1, unit),
		newLayout(random, "all data", 200*kib+77, unit),
		newLayout(random, "all hole", 300*kib+1, unit, Range{0, 300*kib + 1}),
		newLayout(random, "hole at both ends", 512*kib+511, unit, Range{0, 128 * kib}, Range{256 * kib, 256*kib + 511}),
		newLayout(random, "holes at blocks", 1024*kib, unit,
			Range{64 * kib, 4 * kib}, Range{128 * kib, 64 * kib}, Range{256 * kib, 8 * kib}, Range{320 * kib, 192 * kib}),
		newLayout(random, "holes inside blocks", 256*kib+300, unit, // nothing need be a hole of what is not a block
			Range{1, 4 * kib}, Range{16*kib - 512, 1024}, Range{64*kib + 5, 128*kib + 7}, Range{256*kib + 100, 200}),
	}
}

func newLayout(random *rand.Rand, name string, size, unit int64, holes ...Range) layout {
	round := func(n int64) int64 { return (n + unit - 1) / unit * unit }
	l := layout{name: name, content: make([]byte, round(size))}
	var word uint64
	for i := range l.content {
		if i%8 == 0 {
			word = random.Uint64()
		}
		l.content[i] = 1 | byte(word>>(i%8*8)) // zeros are in holes only
	}
	for _, h := range holes {
		h = Range{round(h.Offset), round(h.Length)}
		h.Length = min(h.Length, l.size()-h.Offset)
		if h.Length > 0 {
			clear(l.content[h.Offset : h.Offset+h.Length])
			l.holes = append(l.holes, h)
		}
	}
	return l
}

func (l *layout) size() int64 { return int64(len(l.content)) }

// tailLayouts have sizes that are no multiples of unit, which is more than 1, and
// holes that are, but where the file ends.
func tailLayouts(t *testing.T, unit int64) []layout {
	t.Helper()
	all := layouts(t, unit)
	for i := range all {
		l := &all[i]
		l.name += " and a tail"
		tail := []int64{1, unit / 2, unit - 1}[i%3]
		l.content = append(l.content, bytes.Repeat([]byte{0x77}, int(tail))...)
		if i%2 == 1 {
			clear(l.content[l.size()-tail:])
			l.holes = append(l.holes, Range{l.size() - tail, tail})
		}
	}
	return all
}

// points are the offsets worth asking at: beginnings, ends, what is beside them.
func (l *layout) points(unit int64) []int64 {
	edges := []int64{0, 512, 4 << 10, 64 << 10, l.size() / 2, l.size()}
	for _, h := range l.holes {
		edges = append(edges, h.Offset, h.Offset+h.Length)
	}
	var points []int64
	for _, e := range edges {
		e -= e % unit
		for _, p := range []int64{e - unit, e, e + unit} {
			if p >= 0 && p < l.size() {
				points = append(points, p)
			}
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// lengths are those worth asking for at an offset.
func (l *layout) lengths(off, unit int64) []int64 {
	left := l.size() - off
	lengths := []int64{unit, left, left / 2}
	for _, n := range []int64{4 << 10, 64<<10 + 1} {
		lengths = append(lengths, min(left, n))
	}
	for i, n := range lengths {
		lengths[i] = max(unit, n-n%unit)
		if n == left || lengths[i] > left { // whatever it is a multiple of
			lengths[i] = left
		}
	}
	slices.Sort(lengths)
	return slices.Compact(lengths)
}

var zeros [64 << 10]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
