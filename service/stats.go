package service

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Stats is what a service has counted since it was made, and what there is now.
type Stats struct {
	OpenImages   int64 // names that are open, each of which counts against MaxOpen
	MaxOpen      int64
	WaitingOpens int64 // opens that wait until another image is closed
	Writing      int64 // images that were upgraded for writing

	Opens         uint64 // of images that succeeded
	OpenFailures  uint64 // those that failed, but for images that there are not
	LockConflicts uint64 // opens, also for writing, that met another process
	OutOfService  uint64 // images that a failed write took out of service

	MetadataHits, MetadataMisses uint64 // of the caches of qcow2 tables
	UnpackedHits, UnpackedMisses uint64 // of the caches of decompressed clusters
	CacheBytes, MaxCacheBytes    int64  // of memory: what open images may fill, and all there is for it

	Allocations    int64 // there are now
	AllocatedBytes int64 // that they hold, and that nothing has mapped

	Checks                        uint64 // that were done
	Leaks, LeaksFixed             uint64 // clusters that checks have found, and repaired
	Corruptions, CorruptionsFixed uint64 // likewise
	LeakedClusters                int64  // that the last check of each image has left

	// Filters are the sums of what all filters and nodes of a kind have counted,
	// but for histograms.
	Filters map[FilterCounter]int64
}

// A FilterCounter is a counter of a kind of filter.
type FilterCounter struct{ Kind, Name string }

// tally is what a service counts itself.
type tally struct {
	opens, openFailures, lockConflicts, outOfService atomic.Uint64
	checks, leaks, leaksFixed                        atomic.Uint64
	corruptions, corruptionsFixed                    atomic.Uint64

	mu      sync.Mutex // protects all below; not held during I/O
	images  map[*image]struct{}
	graphs  map[*openGraph]struct{}
	cache   cacheCounts // of images that are closed
	filters map[FilterCounter]int64
	leaked  map[string]int64 // by image, as of its last check; none where it is 0
}

// cacheCounts are what the caches of images count.
type cacheCounts struct{ metadataHits, metadataMisses, unpackedHits, unpackedMisses uint64 }

// A cacheCounter is a mapper that counts how its cache does.
type cacheCounter interface {
	CacheStats() (hits, misses uint64)
}

// Stats are of one moment each, not all of the same.
func (s *Service) Stats() Stats {
	c := &s.tally
	st := Stats{
		OpenImages: int64(len(s.tokens)), MaxOpen: int64(s.opt.MaxOpen), WaitingOpens: int64(s.hungry.Load()),
		Opens: c.opens.Load(), OpenFailures: c.openFailures.Load(),
		LockConflicts: c.lockConflicts.Load(), OutOfService: c.outOfService.Load(),
		CacheBytes: s.opt.CacheSize - s.caches.left(), MaxCacheBytes: s.opt.CacheSize,
		Checks: c.checks.Load(), Leaks: c.leaks.Load(), LeaksFixed: c.leaksFixed.Load(),
		Corruptions: c.corruptions.Load(), CorruptionsFixed: c.corruptionsFixed.Load(),
		Filters: map[FilterCounter]int64{},
	}
	c.fill(&st)
	st.Allocations, st.AllocatedBytes = s.ledger.sums()
	return st
}

// fill adds up what is open and what was closed: under one lock, so that nothing
// is ever missing, and a sum never goes down.
func (c *tally) fill(st *Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.cache
	for i := range c.images {
		sum.add(i)
		if i.writing.Load() {
			st.Writing++
		}
	}
	st.MetadataHits, st.MetadataMisses = sum.metadataHits, sum.metadataMisses
	st.UnpackedHits, st.UnpackedMisses = sum.unpackedHits, sum.unpackedMisses
	for key, n := range c.filters {
		st.Filters[key] = n
	}
	for g := range c.graphs {
		g.count(st.Filters, true)
	}
	for _, n := range c.leaked {
		st.LeakedClusters += n
	}
}

func (n *cacheCounts) add(i *image) {
	for k := range i.chain.layers {
		if m, counts := i.chain.layers[k].Mapper.(cacheCounter); counts {
			hits, misses := m.CacheStats()
			n.metadataHits += hits
			n.metadataMisses += misses
		}
	}
	hits, misses := i.device.UnpackedStats()
	n.unpackedHits += hits
	n.unpackedMisses += misses
}

// cachedBytes is the one counter that says how much there is now.
const cachedBytes = "cached_bytes"

// count adds what the graph's nodes have counted; open: also what there is now.
func (g *openGraph) count(to map[FilterCounter]int64, open bool) {
	for _, n := range g.nodes {
		f, counts := n.File().(filter.Counting)
		if !counts {
			continue
		}
		for _, c := range f.Counters() {
			if strings.Contains(c.Name, "_us_le_") || c.Name == cachedBytes && !open {
				continue
			}
			to[FilterCounter{n.kind, c.Name}] += c.Value
		}
	}
}

// enter counts with an image that was opened.
func (c *tally) enter(i *image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[i] = struct{}{}
}

// leave keeps what an image has counted that is closed.
func (c *tally) leave(i *image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, entered := c.images[i]; entered {
		delete(c.images, i)
		c.cache.add(i)
	}
}

// enterGraph and leaveGraph do so for graphs.
func (c *tally) enterGraph(g *openGraph) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.graphs[g] = struct{}{}
}

func (c *tally) leaveGraph(g *openGraph) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, entered := c.graphs[g]; entered {
		delete(c.graphs, g)
		g.count(c.filters, false)
	}
}

// opened counts how an open ended.
func (c *tally) opened(err error) {
	switch {
	case err == nil:
		c.opens.Add(1)
	case !errors.Is(err, storage.ErrNotFound):
		c.openFailures.Add(1)
		c.met(err)
	}
}

// met counts another process that had the lock.
func (c *tally) met(err error) {
	if errors.Is(err, storage.ErrBusy) {
		c.lockConflicts.Add(1)
	}
}

// checked counts what a check has found.
func (c *tally) checked(image string, r *CheckReport) {
	c.checks.Add(1)
	c.leaks.Add(uint64(r.Leaks + r.LeaksFixed))
	c.leaksFixed.Add(uint64(r.LeaksFixed))
	c.corruptions.Add(uint64(r.Corruptions + r.CorruptionsFixed))
	c.corruptionsFixed.Add(uint64(r.CorruptionsFixed))
	c.setLeaked(image, r.Leaks)
}

// setLeaked says how many clusters of an image have leaked.
func (c *tally) setLeaked(image string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 {
		c.leaked[image] = n
	} else {
		delete(c.leaked, image)
	}
}

// left is how much of the budget is free, bytes.
func (b *budget) left() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

// sums are how many allocations there are, and how many bytes they hold that
// nothing has mapped.
func (l *ledger) sums() (n, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.byID {
		bytes += a.Length
		for _, part := range a.Spent {
			bytes -= part.Length
		}
	}
	return int64(len(l.byID)), bytes
}
