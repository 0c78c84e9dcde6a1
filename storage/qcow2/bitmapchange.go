package qcow2

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/extentd/extentd/storage"
)

const defaultGranularity = 64 << 10

// ChangeBitmaps is as in [storage.BitmapKeeper]. Version 2 has no bitmaps, nor has an
// image of 0 bytes. What the changed bitmaps, and those that record afterwards, take
// in memory is bounded to 64 MiB each: 32 TiB at 64 KiB, say, together. After a crash
// the image has the bitmaps from before or those from after, but for headers in which
// the extension lies across two sectors: there it may have none.
func (i *Image) ChangeBitmaps(ctx context.Context, changes []storage.BitmapChange) error {
	return i.ChangeBitmapsWith(ctx, changes, func(context.Context) error { return nil })
}

// ChangeBitmapsWith is as in [storage.BitmapJoiner].
func (i *Image) ChangeBitmapsWith(ctx context.Context, changes []storage.BitmapChange, also func(context.Context) error) error {
	return i.quiesced(ctx, func(w *writer) error {
		c := &bitmapChange{writer: w}
		var err error
		if c.list, err = w.readDirectory(ctx); err != nil {
			return err
		}
		for k := range changes {
			if err := c.apply(ctx, &changes[k]); err != nil {
				return err
			}
		}
		if err := c.finish(); err != nil {
			return err
		}
		if !c.changed {
			return also(ctx)
		}
		return w.replaceDirectory(ctx, c.list, c.gone, also)
	})
}

// A bitmapChange is what the bitmaps are going to be.
type bitmapChange struct {
	*writer
	list    []*member
	gone    []bitmapEntry
	memory  bitmapMemory // of contents made on the way
	changed bool
}

func (c *bitmapChange) apply(ctx context.Context, b *storage.BitmapChange) error {
	if b.Kind == storage.BitmapCreate {
		return c.create(b)
	}
	m, err := c.find(b.Name)
	if err != nil {
		return err
	}
	if m.inconsistent() && b.Kind != storage.BitmapDelete {
		return errInconsistent(m.name)
	}
	switch b.Kind {
	case storage.BitmapDelete:
		c.remove(m)
		return nil
	case storage.BitmapClear:
		if err := c.memory.take(m.name, c.Size(), m.entry.granularity); err != nil {
			return err
		}
		m.bits, m.store, c.changed = newBitset(c.Size(), m.entry.granularity), true, true
		return nil
	case storage.BitmapEnable:
		return c.enable(ctx, m)
	case storage.BitmapDisable:
		c.disable(m)
		return nil
	case storage.BitmapMerge:
		return c.merge(ctx, m, b.From)
	}
	return fmt.Errorf("qcow2: bitmap %q: %w", b.Name, invalid("kind", "is an %v", b.Kind))
}

// find is the bitmap of the name: a consistent one, where there are two.
func (c *bitmapChange) find(name string) (*member, error) {
	var found *member
	for _, m := range c.list {
		if m.name == name && (found == nil || found.inconsistent()) {
			found = m
		}
	}
	if found == nil {
		return nil, errNoBitmap(name)
	}
	return found, nil
}

func (c *bitmapChange) create(b *storage.BitmapChange) error {
	granularity := b.Granularity
	if granularity == 0 {
		granularity = defaultGranularity
	}
	switch {
	case b.Name == "" || len(b.Name) > maxBitmapName || !utf8.ValidString(b.Name) || hasNUL(b.Name):
		return fmt.Errorf("qcow2: bitmap: %w", invalid("name", "must be 1 to %d bytes of UTF-8, without NUL", maxBitmapName))
	case granularity < 1<<minGranularityBits || granularity > 1<<maxGranularityBits || granularity&(granularity-1) != 0:
		return fmt.Errorf("qcow2: bitmap %q: %w", b.Name, invalid("granularity", "is %d, must be a power of two from %d to %d",
			b.Granularity, 1<<minGranularityBits, int64(1)<<maxGranularityBits))
	case c.info.Version < 3:
		return unsupported("bitmaps in an image of version 2")
	case c.Size() == 0:
		return unsupported("a bitmap of an image of 0 bytes")
	case slices.ContainsFunc(c.list, func(m *member) bool { return m.name == b.Name }):
		return fmt.Errorf("qcow2: bitmap %q: %w", b.Name, storage.ErrExists)
	case len(c.list) >= maxBitmaps:
		return unsupported("more than %d bitmaps", maxBitmaps)
	}
	m := &member{name: b.Name, store: true, entry: bitmapEntry{
		kind: bitmapTypeDirty, granularity: granularityBits(granularity), nameLength: uint16(len(b.Name)),
	}}
	if b.Enabled {
		m.entry.flags = bitmapAuto
	}
	if err := c.memory.take(m.name, c.Size(), m.entry.granularity); err != nil {
		return err
	}
	m.bits = newBitset(c.Size(), m.entry.granularity)
	c.list, c.changed = append(c.list, m), true
	return nil
}

func (c *bitmapChange) remove(m *member) {
	c.list = slices.DeleteFunc(c.list, func(o *member) bool { return o == m })
	if m.entry.tableSize > 0 { // else it is as new
		c.gone = append(c.gone, m.entry)
	}
	c.changed = true
}

func (c *bitmapChange) enable(ctx context.Context, m *member) (err error) {
	if m.enabled() {
		return nil
	}
	if m.bits == nil && m.live == nil {
		if m.bits, err = c.loadBitmap(ctx, m, &c.memory); err != nil {
			return err
		}
	}
	m.entry.flags |= bitmapAuto
	c.changed = true
	return nil
}

func (c *bitmapChange) disable(m *member) {
	if m.enabled() {
		m.entry.flags &^= bitmapAuto
		c.changed = true
	}
}

// merge adds bitmaps to m.
func (c *bitmapChange) merge(ctx context.Context, m *member, from []string) error {
	if len(from) == 0 {
		return fmt.Errorf("qcow2: bitmap %q: %w", m.name, invalid("from", "names no bitmap to merge"))
	}
	old, err := c.content(ctx, m, &c.memory)
	if err != nil {
		return err
	}
	if err := c.memory.take(m.name, c.Size(), m.entry.granularity); err != nil {
		return err
	}
	merged := old.resized(c.Size(), false) // what records goes on until all is done
	for _, name := range from {
		o, err := c.find(name)
		if err != nil {
			return err
		}
		if o.inconsistent() {
			return errInconsistent(name)
		}
		var memory bitmapMemory // for this one, and for so long
		b, err := c.content(ctx, o, &memory)
		if err != nil {
			return err
		}
		merged.merge(b)
	}
	m.bits, m.store, c.changed = merged, true, true
	return nil
}

// content is what a bitmap contains by now.
func (c *bitmapChange) content(ctx context.Context, m *member, memory *bitmapMemory) (*bitset, error) {
	switch {
	case m.bits != nil:
		return m.bits, nil
	case m.live != nil:
		return m.live.bitset, nil
	}
	return c.loadBitmap(ctx, m, memory)
}

// finish decides what is to be stored, and checks that all of it is allowed.
func (c *bitmapChange) finish() error {
	var memory bitmapMemory
	size := int64(0)
	for _, m := range c.list {
		size += m.entry.length()
		switch {
		case !m.enabled() && m.live != nil && m.live.marked: // what it has recorded is in memory alone
			m.store = true
		case m.enabled() && (m.live != nil || m.bits != nil):
			if err := memory.take(m.name, c.Size(), m.entry.granularity); err != nil {
				return err
			}
		}
	}
	if size > maxDirectoryBytes {
		return unsupported("a bitmap directory of %d bytes, more than %d", size, maxDirectoryBytes)
	}
	return nil
}

func granularityBits(granularity int64) uint8 {
	return uint8(bits.TrailingZeros64(uint64(granularity)))
}
