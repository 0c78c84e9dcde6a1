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
// was not used since the clock came by. It is bounded by its slots.
type cache struct {
	slots []atomic.Pointer[slice] // ways for each set
	shift uint                    // log2 of the number of sets
	load  func(ctx context.Context, at hostOffset) ([]uint64, error)

	mu      sync.Mutex         // protects all below, and the stores to slots; not held while a slice is loaded
	loading map[int64]*loading // by key
}

// A loading slice: one caller reads it, the others wait for done.
type loading struct {
	done  chan struct{}
	slice *slice
	err   error
}

// newCache has slots for all of a table of so many slices, or for most of
// them: at least one set.
func newCache(table, most int64, load func(context.Context, hostOffset) ([]uint64, error)) *cache {
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

// lookup is the slice of the key if it is there, else nil. It takes no lock.
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

// get is the slice of the key, which is read from the offset if it is not
// there. Callers that miss the same slice wait for the one that reads it; where
// that one gives up, another takes over.
func (c *cache) get(ctx context.Context, key int64, at hostOffset) (*slice, error) {
	for {
		if s := c.lookup(key); s != nil {
			return s, nil
		}
		l, mine := c.begin(key)
		if mine {
			c.fill(ctx, l, key, at)
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

// begin is the loading of the key, and whether it is the caller's to do.
func (c *cache) begin(key int64) (l *loading, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.loading[key]; l != nil {
		return l, false
	}
	l = &loading{done: make(chan struct{})}
	c.loading[key] = l
	return l, true
}

// fill loads the slice and ends the loading.
func (c *cache) fill(ctx context.Context, l *loading, key int64, at hostOffset) {
	defer close(l.done)
	if s := c.lookup(key); s != nil { // it came between the caller's lookup and begin
		l.slice = s
	} else if entries, err := c.load(ctx, at); err != nil {
		l.err = err
	} else {
		l.slice = &slice{key: key, at: at, entries: entries}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.err == nil {
		c.insert(l.slice)
	}
	delete(c.loading, key)
}

// insert puts s into its set. c.mu must be held.
func (c *cache) insert(s *slice) {
	first, way := c.set(s.key)
	set := c.slots[first : first+ways]
	for i := range ways {
		slot := (way + i) & (ways - 1)
		if old := set[slot].Load(); old == nil || old.key == s.key {
			set[slot].Store(s)
			return
		}
	}
	for range ways { // a full round, with every slot used, ends where it began
		if !set[way].Load().used.Swap(false) {
			break
		}
		way = (way + 1) & (ways - 1)
	}
	set[way].Store(s)
}

// clear drops everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		c.slots[i].Store(nil)
	}
}
