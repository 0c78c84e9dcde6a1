package block

import (
	"container/list"
	"sync"
)

// unitKey names a compressed unit: the layer and where its packed bytes begin.
type unitKey struct {
	depth int16
	off   int64
}

// A unit is one decompressed cluster. Its data does not change while it is
// pinned.
type unit struct {
	key    unitKey
	data   []byte
	pins   int           // readers that copy from it; guarded by unitCache.mu
	cached *list.Element // its place in the cache, nil when it is in none
}

// A unitCache keeps the last used decompressed clusters, so that small reads
// in one cluster decompress it once. Buffers of evicted units are used again.
type unitCache struct {
	most int64 // bytes

	mu    sync.Mutex // protects all below; never held while data is read or unpacked
	used  int64      // bytes in the cache
	units map[unitKey]*unit
	order *list.List // of *unit, the last used first
	spare [][]byte   // a few buffers of evicted units
}

// spareUnits is how many buffers are kept for the next miss.
const spareUnits = 4

func newUnitCache(most int64) *unitCache {
	return &unitCache{most: most, units: make(map[unitKey]*unit), order: list.New()}
}

// get returns the pinned unit of the key and true; or false and an empty unit
// of size bytes, to be filled and added, and released in any case.
func (c *unitCache) get(key unitKey, size int64) (*unit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.units[key]; u != nil && int64(len(u.data)) == size {
		u.pins++
		c.order.MoveToFront(u.cached)
		return u, true
	}
	for i, b := range c.spare {
		if int64(len(b)) == size {
			last := len(c.spare) - 1
			c.spare[i] = c.spare[last]
			c.spare = c.spare[:last]
			return &unit{key: key, data: b, pins: 1}, false
		}
	}
	return &unit{key: key, data: make([]byte, size), pins: 1}, false
}

// add puts a filled unit, still pinned, into the cache. When another reader was
// faster, theirs stays and this one lives until it is released.
func (c *unitCache) add(u *unit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.units[u.key] != nil {
		return
	}
	c.units[u.key] = u
	u.cached = c.order.PushFront(u)
	c.used += int64(len(u.data))
	for c.used > c.most && c.order.Len() > 1 {
		old := c.order.Back().Value.(*unit)
		c.order.Remove(old.cached)
		old.cached = nil
		delete(c.units, old.key)
		c.used -= int64(len(old.data))
		c.reuse(old)
	}
}

// release unpins u.
func (c *unitCache) release(u *unit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u.pins--
	c.reuse(u)
}

// reuse keeps the buffer of a unit that nobody can reach any more.
func (c *unitCache) reuse(u *unit) {
	if u.cached == nil && u.pins == 0 && len(c.spare) < spareUnits {
		c.spare = append(c.spare, u.data)
		u.data = nil
	}
}
