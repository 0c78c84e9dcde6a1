package qcow2

import (
	"fmt"
	"math"

	"github.com/extentd/extentd/storage"
)

// Counts are kept in pages of so many clusters.
const (
	countPageBits = 10
	countPageSize = 1 << countPageBits
)

// maxCountBytes is how much memory the references of an image may take: enough
// for 64 TiB at the default cluster size. A sparse file with few entries far
// apart takes a page for each.
const maxCountBytes = 1 << 30

// counts is how often each cluster of a file is referred to. It takes memory
// for those pages that have a reference: a byte for each cluster, and five
// where one of the page has 256 or more.
type counts struct {
	pages []*countPage
	bytes int64  // that the pages take
	most  uint32 // what a refcount of the image can be
}

type countPage struct {
	narrow   [countPageSize]uint8
	wide     *[countPageSize]uint32 // instead of narrow, unless nil
	metadata [countPageSize / 64]uint64
}

func newCounts(refcountOrder uint32) *counts {
	return &counts{most: uint32(min(uint64(1)<<(1<<refcountOrder)-1, math.MaxUint32))}
}

// page is the page of a cluster, which is made where there is none.
func (c *counts) page(cluster int64) (*countPage, error) {
	number := cluster >> countPageBits
	if number < int64(len(c.pages)) {
		if p := c.pages[number]; p != nil {
			return p, nil
		}
	}
	if c.bytes += countPageSize; c.bytes > maxCountBytes || cluster > math.MaxInt32+int64(countPageSize) {
		return nil, fmt.Errorf("qcow2: %w: checking an image with so many clusters takes more than %d bytes of memory",
			storage.ErrUnsupported, maxCountBytes)
	}
	for number >= int64(len(c.pages)) {
		c.pages = append(c.pages, nil)
	}
	p := new(countPage)
	c.pages[number] = p
	return p, nil
}

// add counts a reference to a cluster. It reports false where there are more
// than a refcount can say.
func (c *counts) add(cluster int64) (bool, error) {
	p, err := c.page(cluster)
	if err != nil {
		return false, err
	}
	k := cluster & (countPageSize - 1)
	if p.wide == nil {
		if n := p.narrow[k]; n < math.MaxUint8 {
			p.narrow[k]++
			return uint32(n) < c.most, nil
		}
		if err := c.widen(p); err != nil {
			return false, err
		}
	}
	n := p.wide[k]
	if n < math.MaxUint32 {
		p.wide[k]++
	}
	return n < c.most, nil
}

func (c *counts) widen(p *countPage) error {
	if c.bytes += 4 * countPageSize; c.bytes > maxCountBytes {
		return fmt.Errorf("qcow2: %w: checking the image takes more than %d bytes of memory", storage.ErrUnsupported, maxCountBytes)
	}
	p.wide = new([countPageSize]uint32)
	for k, n := range p.narrow {
		p.wide[k] = uint32(n)
	}
	return nil
}

// peek is the page of a cluster, nil where nothing in it is referred to.
func (c *counts) peek(cluster int64) *countPage {
	if number := cluster >> countPageBits; number < int64(len(c.pages)) {
		return c.pages[number]
	}
	return nil
}

// refcount is what the refcount of a cluster should be.
func (c *counts) refcount(cluster int64) uint32 { return min(c.get(cluster), c.most) }

// get is how many references to a cluster there are.
func (c *counts) get(cluster int64) uint32 {
	p := c.peek(cluster)
	if p == nil {
		return 0
	}
	return p.at(cluster)
}

func (p *countPage) at(cluster int64) uint32 {
	k := cluster & (countPageSize - 1)
	if p.wide != nil {
		return p.wide[k]
	}
	return uint32(p.narrow[k])
}

// set makes n the count of a cluster; 255 stands for all that is more.
func (c *counts) set(cluster int64, n uint64) error {
	p, err := c.page(cluster)
	if err != nil {
		return err
	}
	n = min(n, math.MaxUint8)
	k := cluster & (countPageSize - 1)
	if p.wide != nil {
		p.wide[k] = uint32(n)
	} else {
		p.narrow[k] = uint8(n)
	}
	return nil
}

// mark notes that a cluster holds metadata other than an L2 table, or bitmap
// data.
func (c *counts) mark(cluster int64) error {
	p, err := c.page(cluster)
	if err != nil {
		return err
	}
	k := cluster & (countPageSize - 1)
	p.metadata[k/64] |= 1 << (k % 64)
	return nil
}

// marked reports whether a cluster was marked.
func (c *counts) marked(cluster int64) bool {
	p := c.peek(cluster)
	k := cluster & (countPageSize - 1)
	return p != nil && p.metadata[k/64]>>(k%64)&1 != 0
}

// used reports whether something refers to one of the clusters in [from, to).
func (c *counts) used(from, to int64) bool {
	for at := from; at < to; {
		end := min(to, (at>>countPageBits+1)<<countPageBits)
		if p := c.peek(at); p != nil {
			for ; at < end; at++ {
				if p.at(at) != 0 {
					return true
				}
			}
		}
		at = end
	}
	return false
}

// marks is counts with the same marks, and no references.
func (c *counts) marks() *counts {
	m := &counts{most: c.most, bytes: c.bytes, pages: make([]*countPage, len(c.pages))}
	for k, p := range c.pages {
		if p != nil {
			m.pages[k] = &countPage{metadata: p.metadata}
		}
	}
	return m
}

// end is after the last cluster that something refers to.
func (c *counts) end() int64 {
	for number := int64(len(c.pages)) - 1; number >= 0; number-- {
		if c.pages[number] == nil {
			continue
		}
		for k := int64(countPageSize) - 1; k >= 0; k-- {
			if c.pages[number].at(k) != 0 {
				return number<<countPageBits + k + 1
			}
		}
	}
	return 0
}
