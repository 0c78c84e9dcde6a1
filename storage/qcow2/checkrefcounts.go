package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// perBlock is how many clusters a refcount block has the refcounts of.
func (c *checker) perBlock() int64 {
	return int64(1) << (c.header.clusterBits + 3 - c.header.refcountOrder)
}

// countRefcounts counts the refcount table and its blocks.
func (c *checker) countRefcounts(ctx context.Context) error {
	h := &c.header
	bytes := int64(h.refcountTableClusters) << h.clusterBits
	first := int64(h.refcountTableOffset) >> h.clusterBits
	if c.opt.Repair == RepairAll && c.counts.used(first, first+int64(h.refcountTableClusters)) {
		c.rebuild = true // elsewhere it is safe from what else believes to be there
	}
	if err := c.countMetadata(h.refcountTableOffset, bytes); err != nil {
		return err
	}
	if err := c.readRefcountTable(ctx, bytes); err != nil {
		return err
	}
	if bytes == 0 {
		c.rebuild = true
	}
	for number, entry := range c.table {
		off := entry &^ refcountReserved
		switch {
		case entry == 0:
			continue
		case entry&refcountReserved != 0:
			c.corruption("refcount table: entry %d is %#x: reserved bits are set", number, entry)
			c.rebuild = true
			continue
		case off&uint64(c.clusterSize()-1) != 0:
			c.corruption("refcount table: entry %d is %#x: the block is not aligned to a cluster", number, entry)
			c.rebuild = true
			continue
		case off>>c.clusterBits >= uint64(c.end):
			c.corruption("refcount table: entry %d is %#x: the block is past the end of the file at %#x", number, entry, c.fileEnd)
			c.rebuild = true
			continue
		}
		if err := c.countMetadata(off, c.clusterSize()); err != nil {
			return err
		}
		cluster := int64(off) >> c.clusterBits
		c.rebuild = c.rebuild || c.counts.get(cluster) != 1
		if c.counts.refcount(cluster) != 1 {
			c.corruption("refcount table: entry %d is %#x: there are %d references to the block", number, entry, c.counts.get(cluster))
		}
	}
	return nil
}

// readRefcountTable reads all of the refcount table, which is 8 MiB at most.
func (c *checker) readRefcountTable(ctx context.Context, bytes int64) error {
	b := make([]byte, bytes)
	if c.header.refcountTableOffset < uint64(c.fileEnd) {
		if err := c.src.read(ctx, b, hostOffset(c.header.refcountTableOffset)); err != nil {
			return fmt.Errorf("qcow2: refcount table at %#x: %w", c.header.refcountTableOffset, err)
		}
	}
	c.table = decodeEntries(b)
	return nil
}

// block is where the refcount block of a number is, 0 where there is none, and
// whether it can be read.
func (c *checker) block(number int64) (at uint64, ok bool) {
	if number >= int64(len(c.table)) {
		return 0, true
	}
	at = c.table[number] &^ refcountReserved
	return at, at&uint64(c.clusterSize()-1) == 0 && at <= uint64(maxTableEnd-c.clusterSize())
}

// compare compares the refcounts on disk with what was counted, up to the end.
// It repairs what fix says, in place. With take, counts are what the disk says
// afterwards.
func (c *checker) compare(ctx context.Context, fix Repair, take bool) error {
	c.unusable = runs{}
	b := make([]byte, c.clusterSize())
	per := c.perBlock()
	highest := int64(0) // the header
	for first := int64(0); first < c.end; first += per {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, ok := c.block(first / per)
		last := min(first+per, c.end)
		switch {
		case !ok:
			c.res.CheckErrors += last - first
			c.describe("the refcounts of the clusters %d to %d cannot be read", first, last-1)
			c.unusable.add(run{first, last - first})
			continue
		case at == 0 && !c.counts.used(first, last):
			continue
		case at == 0 || at >= uint64(c.fileEnd):
			clear(b)
		default:
			if err := c.src.read(ctx, b, hostOffset(at)); err != nil {
				return fmt.Errorf("qcow2: refcount block at %#x: %w", at, err)
			}
		}
		d := comparison{checker: c, b: b, first: first, fix: fix, take: take, highest: highest, missing: at == 0}
		if err := d.compare(last); err != nil {
			return err
		}
		highest = d.highest
		if d.changed {
			if err := c.write(ctx, b, at); err != nil {
				return err
			}
		}
	}
	c.res.ImageEnd = (highest + 1) << c.clusterBits
	return nil
}

// A comparison compares a refcount block with what was counted.
type comparison struct {
	*checker
	b       []byte // the block
	first   int64  // the cluster that it begins with
	fix     Repair
	take    bool
	missing bool // there is no block
	changed bool
	highest int64 // the last cluster that is in use
}

func (d *comparison) compare(last int64) error {
	order := d.header.refcountOrder
	for at := d.first; at < last; {
		end := min(last, (at>>countPageBits+1)<<countPageBits)
		p := d.counts.peek(at)
		if p == nil && d.empty(at, end) {
			at = end
			continue
		}
		for ; at < end; at++ {
			var stored, counted uint64
			if order == 4 {
				stored = uint64(binary.BigEndian.Uint16(d.b[2*(at-d.first):]))
			} else {
				stored = refcount(d.b, order, int(at-d.first))
			}
			if p != nil {
				counted = uint64(min(p.at(at), d.counts.most))
			}
			if stored|counted != 0 {
				d.highest = at
			}
			if stored != counted {
				if err := d.differ(at, stored, counted); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// empty reports whether the refcounts of the clusters in [from, to) are all 0.
// Where they do not fill bytes it says no.
func (d *comparison) empty(from, to int64) bool {
	order := d.header.refcountOrder
	lo, hi := (from-d.first)<<order, (to-d.first)<<order
	if (lo|hi)&7 != 0 {
		return false
	}
	for _, b := range d.b[lo>>3 : hi>>3] {
		if b != 0 {
			return false
		}
	}
	return true
}

// differ handles a cluster whose refcount is not what it must be.
func (d *comparison) differ(cluster int64, stored, counted uint64) error {
	leaked := stored > counted
	fixed := leaked && d.fix != RepairNone || !leaked && d.fix == RepairAll && !d.missing
	if leaked {
		d.describe("cluster %d is leaked: its refcount is %d, with %d references", cluster, stored, counted)
	} else {
		d.describe("cluster %d has the refcount %d, with %d references", cluster, stored, counted)
	}
	switch {
	case fixed && leaked:
		d.res.LeaksFixed++
	case fixed:
		d.res.CorruptionsFixed++
	case leaked:
		d.res.Leaks++
	default:
		d.res.Corruptions++
		d.rebuild = d.rebuild || d.missing
	}
	if fixed {
		d.changed = true
		setRefcount(d.b, d.header.refcountOrder, int(cluster-d.first), counted)
		return nil
	}
	if d.take {
		return d.counts.set(cluster, stored)
	}
	return nil
}
