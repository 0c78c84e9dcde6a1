package block

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// unitKey names a compressed unit: the layer and the guest offset.
type unitKey struct {
	depth int16
	off   int64
}

// A unit is one decompressed cluster. Its data does not change while it is
// pinned.
type unit struct {
	key    unitKey
	at     int64 // where its packed bytes begin
	data   []byte
	pins   int           // readers that copy from it; guarded by unitCache.mu
	cached *list.Element // its place in the cache, nil when it is in none
}

// A unitCache keeps the last used decompressed clusters, so that small reads
// in one cluster decompress it once. Buffers of evicted units are used again.
//
// A unit is found only by who has a mapping to the same packed bytes for the
// same guest range. When such a mapping goes, its unit is dropped before the
// range can get another one; and a reader that still has the old mapping cannot
// put it back: it knows from before its fetch how often units had gone.
type unitCache struct {
	most int64         // bytes
	gone atomic.Uint64 // calls of drop; changed with mu held

	mu    sync.Mutex // protects all below; never held while data is read or unpacked
	used  int64      // bytes in the cache
	units map[unitKey]*unit
	order *list.List // of *unit, the last used first
	spare [][]byte   // a few buffers of evicted units

	hits, misses uint64 // of get
}

// spareUnits is how many buffers are kept for the next miss.
const spareUnits = 4

func newUnitCache(most int64) *unitCache {
	return &unitCache{most: most, units: make(map[unitKey]*unit), order: list.New()}
}

// get returns the pinned unit of the key, packed at the offset, and true; or
// false and an empty unit of size bytes, to be filled and added, and released in
// any case.
func (c *unitCache) get(key unitKey, at, size int64) (*unit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.find(key, at, size); u != nil {
		return u, true
	}
	c.misses++
	for i, b := range c.spare {
		if int64(len(b)) == size {
			last := len(c.spare) - 1
			c.spare[i] = c.spare[last]
			c.spare = c.spare[:last]
			return &unit{key: key, at: at, data: b, pins: 1}, false
		}
	}
	return &unit{key: key, at: at, data: make([]byte, size), pins: 1}, false
}

// pin returns the pinned unit of the key, or nil.
func (c *unitCache) pin(key unitKey, at, size int64) *unit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(key, at, size)
}

// find is called with mu held.
func (c *unitCache) find(key unitKey, at, size int64) *unit {
	u := c.units[key]
	if u == nil || u.at != at || int64(len(u.data)) != size {
		return nil
	}
	u.pins++
	c.order.MoveToFront(u.cached)
	c.hits++
	return u
}

// stats are how often get has found a unit, and how often not.
func (c *unitCache) stats() (hits, misses uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits, c.misses
}

// add puts a filled unit, still pinned, into the cache. When another reader was
// faster, theirs stays and this one lives until it is released; likewise when
// units have gone since gone was read.
func (c *unitCache) add(u *unit, gone uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.units[u.key] != nil || c.gone.Load() != gone {
		return
	}
	c.units[u.key] = u
	u.cached = c.order.PushFront(u)
	c.used += int64(len(u.data))
	for c.used > c.most && c.order.Len() > 1 {
		c.evict(c.order.Back().Value.(*unit))
	}
}

// drop forgets the top layer's units, of the given size, that overlap
// [off, off+n): its mappings to them are gone.
func (c *unitCache) drop(off, n, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone.Add(1)
	first, end := off&^(size-1), off+n
	if (end-first)/size > int64(len(c.units)) {
		for _, u := range c.units {
			if u.key.depth == 0 && first <= u.key.off && u.key.off < end {
				c.evict(u)
			}
		}
		return
	}
	for at := first; at < end; at += size {
		if u := c.units[unitKey{0, at}]; u != nil {
			c.evict(u)
		}
	}
}

// evict takes u out of the cache. c.mu must be held.
func (c *unitCache) evict(u *unit) {
	c.order.Remove(u.cached)
	u.cached = nil
	delete(c.units, u.key)
	c.used -= int64(len(u.data))
	c.reuse(u)
}

// release unpins u.
func (c *unitCache) release(u *unit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u.pins--
	c.reuse(u)
}

// reuse keeps the buffer of a unit that nobody can reach any more, but of large
// ones a single one.
func (c *unitCache) reuse(u *unit) {
	most := max(1, min(spareUnits, c.most/int64(len(u.data))/4))
	if u.cached == nil && u.pins == 0 && int64(len(c.spare)) < most {
		c.spare = append(c.spare, u.data)
		u.data = nil
	}
}
