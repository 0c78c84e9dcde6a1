package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Bits of an entry of a bitmap table.
const (
	bitmapOffsetMask = 0x00fffffffffffe00
	bitmapAllOnes    = 1 << 0
	bitmapReserved   = 0xff000000000001fe
)

// countBitmaps counts the bitmap directory, the tables, and the data.
func (c *checker) countBitmaps(ctx context.Context) error {
	directory := c.state.Load().bitmaps
	if directory.count == 0 {
		return nil
	}
	if err := c.countMetadata(uint64(directory.offset), directory.size); err != nil {
		return err
	}
	w := &window{source: c.src}
	var at int64
	for number := range directory.count {
		e, _, err := c.readBitmapEntry(ctx, w, &directory, at)
		if err != nil {
			return fmt.Errorf("qcow2: bitmap directory: entry %d: %w", number, err)
		}
		if err := c.countBitmap(ctx, e); err != nil {
			return err
		}
		at += e.length()
	}
	return nil
}

func (c *checker) countBitmap(ctx context.Context, e *bitmapEntry) error {
	if err := c.countMetadata(e.tableOffset, int64(e.tableSize)*8); err != nil {
		return err
	}
	return c.walkL1(ctx, e.tableOffset, e.tableSize, func(table []uint64, first int64) error {
		for k, entry := range table {
			off := entry & bitmapOffsetMask
			if c.badTableEntry(entry) {
				c.corruption("bitmap table at %#x: entry %d is %#x, which cannot be", e.tableOffset, first+int64(k), entry)
				continue
			}
			if off == 0 {
				continue
			}
			if err := c.countMetadata(off, c.clusterSize()); err != nil {
				return err
			}
		}
		return nil
	})
}

// countEncryption counts the header of LUKS.
func (c *checker) countEncryption(ctx context.Context) error {
	if c.header.cryptMethod != cryptLUKS {
		return nil
	}
	w := &window{source: c.src}
	for at, end := int64(c.header.length), c.header.extensionsEnd(); at < end; {
		b, err := w.at(ctx, 0, at, 8)
		if err != nil {
			return fmt.Errorf("qcow2: header extension at %#x: %w", at, err)
		}
		kind, length := binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint32(b[4:]))
		if kind == extensionEnd {
			break
		}
		if kind != extensionCrypto {
			at += 8 + (length+7)&^7
			continue
		}
		b, err = w.at(ctx, 0, at+8, cryptoLength)
		if err != nil {
			return fmt.Errorf("qcow2: header extension at %#x: %w", at, err)
		}
		off, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
		return c.countMetadata(off, clamp(n))
	}
	return nil
}
