package qcow2

import (
	"bytes"
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

var (
	_ storage.Differ = (*Image)(nil)
	_ storage.Differ = (*SnapshotMapper)(nil)
)

// Changes compares the image as it is with one of its snapshots, by the tables
// alone: a cluster that both have in common has not been written to since. What is
// written meanwhile may be seen or not.
func (i *Image) Changes(ctx context.Context, since storage.Mapper, off, n int64, visit func(off, n int64, changed bool) error) error {
	return changes(ctx, i, i, since, off, n, visit)
}

// Changes compares two snapshots of an image likewise.
func (m *SnapshotMapper) Changes(ctx context.Context, since storage.Mapper, off, n int64, visit func(off, n int64, changed bool) error) error {
	if err := m.usable(); err != nil {
		return err
	}
	return m.failed(changes(ctx, m.of, m.view, since, off, n, visit))
}

func changes(ctx context.Context, of, now *Image, since storage.Mapper, off, n int64, visit func(off, n int64, changed bool) error) error {
	then, ok := since.(*SnapshotMapper)
	if !ok || then.of != of {
		return fmt.Errorf("qcow2: %w", invalid("since", "is no snapshot of this image"))
	}
	if err := of.checkOpen(); err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, now.Size()); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	c := pairing{now: now, then: then.view, still: now != of, end: guestOffset(off + n), from: guestOffset(off), at: guestOffset(off), visit: visit}
	return then.failed(c.run(ctx))
}

// A pairing goes through two trees side by side.
type pairing struct {
	now, then *Image
	still     bool   // now is a snapshot too: nobody changes its tables
	raw       []byte // of tables
	end       guestOffset
	from, at  guestOffset // what was found last, and not told yet
	changed   bool        // of it
	visit     func(off, n int64, changed bool) error
}

// found tells of what was found before it, if this is otherwise.
func (c *pairing) found(to guestOffset, changed bool) error {
	to = min(to, c.end)
	if changed != c.changed && c.at > c.from {
		if err := c.visit(int64(c.from), int64(c.at-c.from), c.changed); err != nil {
			return err
		}
		c.from = c.at
	}
	c.changed, c.at = changed, max(c.at, to)
	return nil
}

func (c *pairing) run(ctx context.Context) error {
	for c.at < c.end {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := c.at>>c.now.tableSpanBits<<c.now.tableSpanBits + 1<<c.now.tableSpanBits
		a, err := c.now.tableAt(ctx, c.at)
		if err != nil {
			return err
		}
		b, err := c.then.tableAt(ctx, c.at)
		if err != nil {
			return err
		}
		end := min(next, c.end)
		switch {
		case a == b && end <= guestOffset(c.then.Size()): // the same table, or neither has one
			err = c.found(next, false)
		case c.still && a != 0 && b != 0 && end-c.at >= 1<<c.now.tableSpanBits/2:
			err = c.tables(ctx, a, b, end)
		default:
			err = c.slices(ctx, end)
		}
		if err != nil {
			return err
		}
	}
	if c.at == c.from {
		return nil
	}
	return c.visit(int64(c.from), int64(c.at-c.from), c.changed)
}

// tableAt is where the L2 table for an offset is, 0 where there is none.
func (i *Image) tableAt(ctx context.Context, at guestOffset) (hostOffset, error) {
	if at >= guestOffset(i.Size()) {
		return 0, nil
	}
	page, err := i.l1At(ctx, at)
	if err != nil {
		return 0, err
	}
	return i.l2Table(page, at)
}

// slices compares slice by slice up to an offset in the same table.
func (c *pairing) slices(ctx context.Context, end guestOffset) error {
	for c.at < end {
		key := int64(c.at >> c.now.sliceSpanBits)
		a, err := c.now.entriesAt(ctx, key)
		if err != nil {
			return err
		}
		b, err := c.then.entriesAt(ctx, key)
		if err != nil {
			return err
		}
		base := guestOffset(key) << c.now.sliceSpanBits
		if err := c.entries(a, b, base, min(end, base+1<<c.now.sliceSpanBits)); err != nil {
			return err
		}
	}
	return nil
}

// tables compares two L2 tables that nobody changes, up to an offset in what they
// map. Both are read whole: most of what they say is the same, and pieces that are
// need not be decoded.
func (c *pairing) tables(ctx context.Context, a, b hostOffset, end guestOffset) error {
	size := c.now.clusterSize()
	if c.raw == nil {
		c.raw = make([]byte, 2*size) // 4 MiB at most
	}
	x, y := c.raw[:size], c.raw[size:]
	if err := c.readTable(ctx, x, a); err != nil {
		return err
	}
	if err := c.readTable(ctx, y, b); err != nil {
		return err
	}
	for c.at < end {
		base := c.at >> c.now.sliceSpanBits << c.now.sliceSpanBits
		stop := min(end, base+1<<c.now.sliceSpanBits)
		from := int64(c.now.sliceInTable(base))
		p, q := x[from:from+c.now.pieceSize], y[from:from+c.now.pieceSize]
		var err error
		if bytes.Equal(p, q) && c.now.Size() == c.then.Size() {
			err = c.found(stop, false)
		} else {
			err = c.entries(decodeEntries(p), decodeEntries(q), base, stop)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *pairing) readTable(ctx context.Context, into []byte, at hostOffset) error {
	if err := c.now.src.read(ctx, into, at); err != nil {
		return fmt.Errorf("qcow2: l2 table at %#x: %w", int64(at), err)
	}
	return nil
}

// entries compares those of a slice that begins to map at base, up to an offset.
func (c *pairing) entries(a, b []uint64, base, stop guestOffset) error {
	for c.at < stop {
		k := int((c.at - base) >> c.now.clusterBits)
		guest := base + guestOffset(k)<<c.now.clusterBits
		if err := c.found(guest+guestOffset(c.now.clusterSize()), !c.same(a, b, k, guest)); err != nil {
			return err
		}
	}
	return nil
}

// entriesAt are the entries of a slice, nil where there is no table.
func (i *Image) entriesAt(ctx context.Context, key int64) ([]uint64, error) {
	at := guestOffset(key) << i.sliceSpanBits
	if at >= guestOffset(i.Size()) {
		return nil, nil
	}
	if s := i.l2.lookup(key); s != nil {
		return s.entries, nil
	}
	table, err := i.tableAt(ctx, at)
	if err != nil || table == 0 {
		return nil, err
	}
	s, err := i.l2.get(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.entries, nil
}

// same reports whether the cluster at guest, entry k of both, reads alike.
func (c *pairing) same(a, b []uint64, k int, guest guestOffset) bool {
	now, then := c.now.entryOf(a, k), c.then.entryOf(b, k)
	if up := guest + guestOffset(c.now.clusterSize()); up > guestOffset(c.then.Size()) && c.now.Size() != c.then.Size() {
		return guest >= guestOffset(c.then.Size()) && c.now.readsZero(now) // of what was not there
	}
	return now == then || c.now.readsZero(now) && c.now.readsZero(then)
}

// entryOf is entry k without its COPIED flag.
func (i *Image) entryOf(entries []uint64, k int) entry {
	switch {
	case entries == nil:
		return entry{}
	case i.extended:
		return entry{entries[2*k] &^ l2Copied, entries[2*k+1]}
	}
	return entry{word: entries[k] &^ l2Copied}
}

// readsZero reports whether a whole cluster is known to read as zeros.
func (i *Image) readsZero(e entry) bool {
	backed := i.opt.Backed || i.info.BackingFile != ""
	switch kind := i.kindOf(e.word); {
	case kind == kindZeroPlain, kind == kindZeroAlloc:
		return true
	case kind == kindCompressed:
		return false
	case i.extended && uint32(e.bitmap>>32) == 1<<32-1:
		return true
	case i.extended:
		return uint32(e.bitmap) == 0 && !backed
	default:
		return kind == kindUnallocated && !backed
	}
}
