package service

import "sync"

// What caches of one image get, bytes: as much as they can use while there is
// plenty, and never so little that every read misses.
const (
	mostMetadata  = 32 << 20 // maps 256 GiB of a qcow2 image with clusters of 64 KiB
	leastMetadata = 256 << 10
	mostUnpacked  = 16 << 20
	leastUnpacked = 1 << 20
)

// A budget shares out memory for caches among the open images. It never makes
// one wait: when it is used up, everybody gets the least.
type budget struct {
	mu   sync.Mutex // protects all below
	free int64      // bytes; below zero when the least of many is more than there is

	least int64 // what nobody gets less of, where the least is more than that
}

const (
	// leastShare is the least that is of use, bytes.
	leastShare = 64 << 10
	// leastUnpack is what reads of any image get for decompressing, bytes: enough
	// for two of the largest clusters at a time.
	leastUnpack = 12 << 20
)

// newBudget shares n bytes among so many images: the least of all of them is in
// all no more than that again.
func newBudget(n int64, images int) budget {
	return budget{free: n, least: max(n/int64(2*images), leastShare)}
}

// take grants from least to most bytes, and leaves most of what is free to
// others.
func (b *budget) take(least, most int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	granted := max(min(least, b.least), min(most, b.free/4))
	b.free -= granted
	return granted
}

// put gives back what was taken.
func (b *budget) put(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
}
