package storagetest

import (
	"fmt"
	"math/rand/v2"
	"sort"
)

// sectorSize is what a disk writes wholly or not at all, bytes.
const sectorSize = 512

// CutOptions say what a crash does to events that no flush covers. The zero
// value loses none.
type CutOptions struct {
	// Seed decides what is lost. One seed always gives the same. Seed 0 loses
	// all that may be lost.
	Seed uint64
	// Drop loses events: each, all but one, one, or some, as the seed says.
	Drop bool
	// Tear loses sectors of writes, and the end of what is zeroed or trimmed.
	Tear bool
}

// Cut returns the files by their names, as they are after a crash at the
// position at, from 0 to Len: see [Journal]. They are the caller's, and recorded
// no more. Cuts at rising positions are fast: the memory and the time that one
// takes are for what happened since the last flush.
func (j *Journal) Cut(at int, opt CutOptions) map[string]*MemFile {
	names, plans := j.plan(at)
	random := rand.New(rand.NewPCG(opt.Seed, 0))
	files := make(map[string]*MemFile, len(plans))
	for i, p := range plans {
		keep := keeper(random, opt, len(p.unsure))
		for k, c := range p.unsure {
			if !keep(k) {
				continue
			}
			if opt.Tear && c.n > sectorSize && random.IntN(2) == 0 {
				tear(random, p.file, c)
			} else {
				p.file.apply(c)
			}
		}
		files[names[i]] = p.file
	}
	return files
}

// A plan is a file with all that is durable, and what may have happened as well.
type plan struct {
	file   *MemFile
	unsure []change
}

// plan is what is known of the files at a position, sorted by name.
func (j *Journal) plan(at int) ([]string, []plan) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at < 0 || at > len(j.events) {
		panic(fmt.Sprintf("storagetest: a cut at %d of %d events", at, len(j.events)))
	}
	names := make([]string, 0, len(j.files))
	for name := range j.files {
		names = append(names, name)
	}
	sort.Strings(names)
	plans := make([]plan, len(names))
	for i, name := range names {
		h := j.files[name]
		durable := h.durable(at)
		j.advance(h, durable)
		plans[i].file = h.base.Clone()
		for _, e := range j.events[durable:at] {
			if e.of == h && e.kind != OpFlush {
				plans[i].unsure = append(plans[i].unsure, e.change)
			}
		}
	}
	return names, plans
}

// durable is the position before which everything is durable in a cut.
func (h *history) durable(at int) int {
	k := sort.Search(len(h.flushes), func(k int) bool { return h.flushes[k].at >= at })
	if k == 0 {
		return 0
	}
	return h.flushes[k-1].covers
}

// advance brings the base to a position, from the beginning where it is beyond.
// j.mu must be held.
func (j *Journal) advance(h *history, to int) {
	if to < h.next {
		h.base, h.next = h.initial.Clone(), 0
	}
	for ; h.next < to; h.next++ {
		if e := j.events[h.next]; e.of == h {
			h.base.apply(e.change)
		}
	}
}

// keeper decides which of n events have happened.
func keeper(random *rand.Rand, opt CutOptions, n int) func(k int) bool {
	if !opt.Drop || n == 0 {
		return func(int) bool { return true }
	}
	if opt.Seed == 0 {
		return func(int) bool { return false }
	}
	one, chance := random.IntN(n), random.Float64()
	switch random.IntN(4) {
	case 0:
		return func(k int) bool { return k == one }
	case 1:
		return func(k int) bool { return k != one }
	case 2:
		chance = 0.5
	}
	return func(int) bool { return random.Float64() < chance }
}

// tear makes a part of a change.
func tear(random *rand.Rand, m *MemFile, c change) {
	if c.kind != OpWrite {
		c.n -= min(c.n, random.Int64N(c.n/sectorSize+1)*sectorSize)
		m.apply(c)
		return
	}
	for at := int64(0); at < c.n; {
		end := min(c.n, at+sectorSize-(c.off+at)%sectorSize)
		if random.IntN(2) == 0 {
			m.put(c.data[at:end], c.off+at)
		}
		at = end
	}
}
