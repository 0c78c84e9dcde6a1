package qcow2

import (
	"context"
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
)

// A slice is a piece of a table, decoded. It never changes once it is in a
// cache, so that readers need no lock and copy nothing.
type slice struct {
	key     int64
	at      hostOffset
	entries []uint64
	used    atomic.Bool // since the replacement last passed by
}

// ways is the associativity of a cache.
const ways = 4

// A cache keeps slices of a table by their number. A set of ways slots holds
// what maps to it; the replacement among them is the clock's: the first that
// was not used since the clock came by. It is bounded by its slots, but for
// dirty slices: those stay until they are written.
type cache struct {
	slots []atomic.Pointer[slice] // ways for each set
	shift uint                    // log2 of the number of sets
	load  func(ctx context.Context, key int64) (*slice, error)

	mu      sync.Mutex         // protects all below, and the stores to slots; not held while a slice is loaded
	loading map[int64]*loading // by key
	dirty   map[int64]*slice   // by key: those that the file does not have yet; in a slot or not
}

// A loading slice: one caller reads it, the others wait for done.
type loading struct {
	done  chan struct{}
	slice *slice
	err   error
	newer *slice // what superseded it meanwhile; cache.mu protects it
}

// newCache has slots for all of a table of so many slices, or for most of
// them: at least one set.
func newCache(table, most int64, load func(ctx context.Context, key int64) (*slice, error)) *cache {
	need, fit := max(ceilDiv(table, ways), 1), max(most/ways, 1)
	shift := bits.Len64(uint64(need - 1)) // rounds up
	if need > fit {
		shift = bits.Len64(uint64(fit)) - 1 // rounds down
	}
	return &cache{
		slots:   make([]atomic.Pointer[slice], ways<<shift),
		shift:   uint(shift),
		load:    load,
		loading: make(map[int64]*loading),
		dirty:   make(map[int64]*slice),
	}
}

// set is where the set of a key begins, and the slot in it that is tried first.
// Folding the upper bits in spreads keys at a power of two apart; a table that
// fits gets a slot for every slice all the same.
func (c *cache) set(key int64) (first, way int) {
	high := key >> c.shift
	set := (key ^ high ^ high>>c.shift) & (1<<c.shift - 1)
	return int(set) * ways, int(high) & (ways - 1)
}

// lookup is the slice of the key if it is in a slot, else nil. It takes no lock.
func (c *cache) lookup(key int64) *slice {
	first, way := c.set(key)
	set := c.slots[first : first+ways : first+ways]
	for range ways {
		if s := set[way].Load(); s != nil && s.key == key {
			if !s.used.Load() { // a store each time would bounce the cache line between cores
				s.used.Store(true)
			}
			return s
		}
		way = (way + 1) & (ways - 1)
	}
	return nil
}

// get is the slice of the key, which is loaded if it is not there. Callers that
// miss the same slice wait for the one that reads it; where that one gives up,
// another takes over.
func (c *cache) get(ctx context.Context, key int64) (*slice, error) {
	for {
		if s := c.lookup(key); s != nil {
			return s, nil
		}
		s, l, mine := c.begin(key)
		if s != nil {
			return s, nil
		}
		if mine {
			c.fill(ctx, l, key)
			return l.slice, l.err
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if l.err == nil {
			return l.slice, nil
		}
		gaveUp := errors.Is(l.err, context.Canceled) || errors.Is(l.err, context.DeadlineExceeded)
		if !gaveUp || ctx.Err() != nil {
			return nil, l.err
		}
	}
}

// begin is the slice of the key where it is there after all, else its loading,
// and whether that is the caller's to do.
func (c *cache) begin(key int64) (s *slice, l *loading, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.dirty[key]; s != nil {
		c.insert(s)
		return s, nil, false
	}
	if l := c.loading[key]; l != nil {
		return nil, l, false
	}
	if s := c.lookup(key); s != nil { // it came since the caller looked
		return s, nil, false
	}
	l = &loading{done: make(chan struct{})}
	c.loading[key] = l
	return nil, l, true
}

// fill loads the slice and ends the loading. What was superseded meanwhile is
// not inserted: those who waited get what superseded it.
func (c *cache) fill(ctx context.Context, l *loading, key int64) {
	defer close(l.done)
	l.slice, l.err = c.load(ctx, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case l.newer != nil:
		l.slice, l.err = l.newer, nil
	case c.loading[key] != l: // cleared
	default:
		delete(c.loading, key)
		if l.err == nil {
			c.insert(l.slice)
		}
	}
}

// insert puts s into its set. c.mu must be held.
func (c *cache) insert(s *slice) {
	first, way := c.set(s.key)
	set := c.slots[first : first+ways]
	free := -1
	for i := range ways {
		slot := (way + i) & (ways - 1)
		switch old := set[slot].Load(); {
		case old == nil && free < 0:
			free = slot
		case old != nil && old.key == s.key:
			set[slot].Store(s)
			return
		}
	}
	if free >= 0 {
		set[free].Store(s)
		return
	}
	for range ways { // a full round, with every slot used, ends where it began
		if !set[way].Load().used.Swap(false) {
			break
		}
		way = (way + 1) & (ways - 1)
	}
	set[way].Store(s)
}

// replace makes s the slice of its key, for everyone who asks from now on, and
// keeps it until it is said to be clean. A loading that is under way is
// superseded: what it reads may be neither old nor new.
func (c *cache) replace(s *slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty[s.key] = s
	c.supersede(s)
}

// supersede makes s the slice of its key. c.mu must be held.
func (c *cache) supersede(s *slice) {
	c.insert(s)
	if l := c.loading[s.key]; l != nil {
		l.newer = s
		delete(c.loading, s.key)
	}
}

// dirtyCount is how many slices the file does not have yet.
func (c *cache) dirtyCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty)
}

// appendDirty appends the dirty slices.
func (c *cache) appendDirty(to []*slice) []*slice {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.dirty {
		to = append(to, s)
	}
	return to
}

// clean says that the file has these slices. One that has been replaced
// meanwhile stays dirty.
func (c *cache) clean(slices []*slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slices {
		if c.dirty[s.key] == s {
			delete(c.dirty, s.key)
		}
	}
}

// clear drops everything, and what is being loaded.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		c.slots[i].Store(nil)
	}
	clear(c.loading)
	clear(c.dirty)
}
