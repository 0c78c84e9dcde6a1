package qcow2

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// A bitset is the content of a dirty bitmap in memory. Its bits are set and read
// without a lock; its length never changes.
type bitset struct {
	words    []uint64 // those of granules past the end are 0
	granules int64
	size     int64 // of the image, bytes
	shift    uint8 // a granule has so many bits
}

// bitsetBytes is what a bitmap of an image takes on disk, bytes: words of 64 bits.
func bitsetBytes(size int64, shift uint8) int64 {
	return ceilDiv(ceilDiv(size, 1<<shift), 64) * 8
}

// newBitset is an empty one for an image of so many bytes.
func newBitset(size int64, shift uint8) *bitset {
	return &bitset{words: make([]uint64, bitsetBytes(size, shift)/8), granules: ceilDiv(size, 1<<shift), size: size, shift: shift}
}

// reach is the granules [first, last] that [off, off+n) touches. There are none
// where last is less.
func (b *bitset) reach(off, n int64) (first, last int64) {
	if n <= 0 || off >= b.size {
		return 0, -1
	}
	return off >> b.shift, min(off+n-1, b.size-1) >> b.shift
}

// mask is the bits of the word that hold granules from first to last.
func mask(word, first, last int64) uint64 {
	m := ^uint64(0)
	if first>>6 == word {
		m <<= uint(first & 63)
	}
	if last>>6 == word {
		m &= ^uint64(0) >> uint(63-last&63)
	}
	return m
}

// set makes [off, off+n) dirty.
func (b *bitset) set(off, n int64) {
	first, last := b.reach(off, n)
	for k := first >> 6; k <= last>>6 && first <= last; k++ {
		m := mask(k, first, last)
		if atomic.LoadUint64(&b.words[k])&m != m { // it is most of the time: the line stays shared
			atomic.OrUint64(&b.words[k], m)
		}
	}
}

// covers reports whether all of [off, off+n) is dirty.
func (b *bitset) covers(off, n int64) bool {
	first, last := b.reach(off, n)
	for k := first >> 6; k <= last>>6 && first <= last; k++ {
		m := mask(k, first, last)
		if atomic.LoadUint64(&b.words[k])&m != m {
			return false
		}
	}
	return true
}

// count is how many bytes of the image are dirty.
func (b *bitset) count() int64 {
	var n int64
	for k := range b.words {
		n += int64(bits.OnesCount64(atomic.LoadUint64(&b.words[k])))
	}
	n <<= b.shift
	if tail := b.size & (1<<b.shift - 1); tail != 0 && b.covers(b.size-1, 1) {
		n -= 1<<b.shift - tail
	}
	return n
}

// resized is a copy for another size. What is new is dirty where grown says so.
func (b *bitset) resized(size int64, grown bool) *bitset {
	c := newBitset(size, b.shift)
	for k := range min(len(b.words), len(c.words)) {
		c.words[k] = atomic.LoadUint64(&b.words[k])
	}
	c.trim()
	if grown && size > b.size {
		c.set(b.size, size-b.size)
	}
	return c
}

// trim clears the bits past the end.
func (b *bitset) trim() {
	if tail := uint(b.granules & 63); tail != 0 {
		b.words[len(b.words)-1] &= 1<<tail - 1
	}
}

// merge makes dirty what is dirty in other.
func (b *bitset) merge(other *bitset) {
	r := runsOf{visit: func(off, n int64, dirty bool) error {
		if dirty {
			b.set(off, n)
		}
		return nil
	}, end: min(b.size, other.size)}
	_ = r.words(other.words, 0, 0, other.granules, other.shift) // visit has no errors
	_ = r.flush()
}

// decode fills words from b, as the format has them.
func (b *bitset) decode(first int64, p []byte) {
	for k := 0; k < len(p)/8 && first+int64(k) < int64(len(b.words)); k++ {
		b.words[first+int64(k)] = binary.LittleEndian.Uint64(p[8*k:])
	}
}

// encode is decode undone: what there is beyond the words is 0.
func (b *bitset) encode(first int64, p []byte) {
	clear(p)
	for k := 0; k < len(p)/8 && first+int64(k) < int64(len(b.words)); k++ {
		binary.LittleEndian.PutUint64(p[8*k:], atomic.LoadUint64(&b.words[first+int64(k)]))
	}
}

// runsOf makes runs of what is dirty and what is not, and tells of each.
type runsOf struct {
	visit    func(off, n int64, dirty bool) error
	from, at int64 // what was found last, and not told yet
	dirty    bool  // of it
	end      int64
}

// add tells of what was found before it, if this is otherwise: all up to an offset.
func (r *runsOf) add(to int64, dirty bool) error {
	to = min(to, r.end)
	if to <= r.at {
		return nil
	}
	if dirty != r.dirty {
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.dirty, r.at = dirty, to
	return nil
}

// flush tells of what has not been told.
func (r *runsOf) flush() error {
	from := r.from
	r.from = r.at
	if from == r.at {
		return nil
	}
	return r.visit(from, r.at-from, r.dirty)
}

// words adds granules [first, last) of words, which begin with granule base.
func (r *runsOf) words(words []uint64, base, first, last int64, shift uint8) error {
	for g := first; g < last; {
		word := atomic.LoadUint64(&words[(g-base)>>6]) >> uint(g&63)
		dirty := word&1 != 0
		if dirty {
			word = ^word
		}
		n := min(int64(bits.TrailingZeros64(word)), 64-g&63, last-g)
		if err := r.add((g+n)<<shift, dirty); err != nil {
			return err
		}
		g += n
	}
	return nil
}
