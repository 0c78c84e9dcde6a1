package qcow2

import (
	"math/rand/v2"
	"sync/atomic"
)

// tallyShards is how many cores can count at once without getting into each
// other's way.
const tallyShards = 8

// A tally counts what happens often on all cores: a counter that they share
// would cost more than what is counted.
type tally [tallyShards]struct {
	n atomic.Uint64
	_ [56]byte // the rest of a cache line
}

func (t *tally) add() { t[rand.Uint32()%tallyShards].n.Add(1) }

func (t *tally) sum() (n uint64) {
	for i := range t {
		n += t[i].n.Load()
	}
	return n
}

// CacheStats counts, since the image was opened, how often a slice of an L2 table
// that was needed was in memory, and how many pieces of L1 and L2 tables were read
// from the image because they were not.
func (i *Image) CacheStats() (hits, misses uint64) { return i.hits.sum(), i.misses.Load() }
