package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// dirtyPiece is how much of a bitmap is read at once, bytes.
const dirtyPiece = 32 << 10

// Dirty is as in [storage.BitmapKeeper]: from memory while the bitmap is recorded
// in, else from its table. It fails with [storage.ErrCorrupt] where that is
// malformed.
func (i *Image) Dirty(ctx context.Context, name string, off, n int64, visit func(off, n int64, dirty bool) error) error {
	if err := i.checkOpen(); err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, i.Size()); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	d := bitmapReader{Image: i, name: name, out: runsOf{visit: visit, from: off, at: off, end: off + n}}
	if err := d.open(ctx); err != nil { // also where there is nothing to visit
		return err
	}
	for d.out.at < d.out.end {
		if err := d.next(ctx); err != nil {
			return err
		}
	}
	return d.out.flush()
}

// A bitmapReader goes through a bitmap.
type bitmapReader struct {
	*Image
	out   runsOf
	name  string
	live  *live // nil: it is on disk
	entry bitmapEntry
	moved uint64 // what bitmapsMoved was when it was found
	table window
	buf   []byte
	bits  bitset // what is in buf
}

// open finds the bitmap.
func (d *bitmapReader) open(ctx context.Context) error {
	defer d.Unpin(d.Pin())
	return d.find(ctx)
}

// A bitmapPiece is granules [first, end) of a bitmap on disk: in buf, which begins with
// granule base, unless all of them are alike.
type bitmapPiece struct {
	first, end, base int64
	alike, dirty     bool
}

// next adds the next piece.
func (d *bitmapReader) next(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := d.load(ctx)
	switch {
	case err != nil:
		return err
	case d.live != nil:
		b := d.live.bitset
		first, last := b.reach(d.out.at, d.out.end-d.out.at)
		if err := d.out.words(b.words, 0, first, last+1, b.shift); err != nil {
			return err
		}
		return d.out.add(d.out.end, true) // where the image has grown since
	case p.alike:
		return d.out.add(p.end<<d.entry.granularity, p.dirty)
	}
	return d.out.words(d.bits.words, p.base, p.first, p.end, d.entry.granularity)
}

// load finds and reads the next piece of a bitmap on disk. Nothing is visited while
// it has its pin.
func (d *bitmapReader) load(ctx context.Context) (p bitmapPiece, err error) {
	defer d.Unpin(d.Pin()) // what is replaced is not used for something else meanwhile
	if d.moved != d.bitmapsMoved.Load() {
		if err := d.find(ctx); err != nil {
			return p, err
		}
	}
	if d.live != nil {
		return p, nil
	}
	shift := d.entry.granularity
	p.first = d.out.at >> shift
	p.end = (d.out.end-1)>>shift + 1
	perCluster := d.clusterSize() * 8
	k := p.first / perCluster
	if k >= int64(d.entry.tableSize) { // the image is growing
		p.alike, p.dirty = true, true
		return p, nil
	}
	p.end = min(p.end, (k+1)*perCluster)
	dirty, at, err := d.readTableEntry(ctx, &d.table, &d.entry, k)
	if err == nil && at != 0 {
		p.base = max(p.first&^(dirtyPiece*8-1), k*perCluster)
		p.end = min(p.end, p.first&^(dirtyPiece*8-1)+dirtyPiece*8)
		err = d.fill(ctx, at+hostOffset((p.base-k*perCluster)/8), ceilDiv(p.end-p.base, 64)*8)
	}
	if err != nil {
		return p, fmt.Errorf("qcow2: bitmap %q: %w", d.name, err)
	}
	p.alike, p.dirty = at == 0, dirty
	return p, nil
}

// fill reads n bytes of bits.
func (d *bitmapReader) fill(ctx context.Context, at hostOffset, n int64) error {
	if d.buf == nil {
		d.buf, d.bits.words = make([]byte, dirtyPiece), make([]uint64, dirtyPiece/8)
	}
	if err := d.inFile(ctx, uint64(at), n); err != nil {
		return err
	}
	if err := d.src.read(ctx, d.buf[:n], at); err != nil {
		return err
	}
	d.bits.decode(0, d.buf[:n])
	return nil
}

// find finds the bitmap: in memory first, since one that is recorded in is
// inconsistent on disk. The caller has a pin.
func (d *bitmapReader) find(ctx context.Context) error {
	for try := 0; ; try++ {
		d.moved = d.bitmapsMoved.Load()
		if d.live = d.recording.Load().find(d.name); d.live != nil {
			return nil
		}
		e, err := d.findEntry(ctx, d.name)
		if err != nil {
			return err
		}
		if e.flags&bitmapInUse != 0 {
			if try == 0 { // it may have been enabled, and recorded in, since
				continue
			}
			return errInconsistent(d.name)
		}
		d.entry = *e
		d.table = window{source: d.src}
		if err := d.inFile(ctx, e.tableOffset, int64(e.tableSize)*8); err != nil {
			return fmt.Errorf("qcow2: bitmap %q: %w", d.name, err)
		}
		return nil
	}
}

// findEntry is the first consistent entry of the name, else an inconsistent one.
func (i *Image) findEntry(ctx context.Context, name string) (*bitmapEntry, error) {
	var found *bitmapEntry
	err := i.walkBitmaps(ctx, &window{source: i.src}, func(_ int64, e *bitmapEntry, n []byte) {
		if string(n) == name && (found == nil || found.flags&bitmapInUse != 0) {
			found = e
		}
	})
	if err == nil && found == nil {
		err = errNoBitmap(name)
	}
	return found, err
}

func errNoBitmap(name string) error {
	return fmt.Errorf("qcow2: bitmap %q: %w", name, storage.ErrNotFound)
}

func errInconsistent(name string) error {
	return fmt.Errorf("qcow2: bitmap %q: %w: it is inconsistent: it was not stored when the image was last written to", name, storage.ErrConflict)
}

// inFile checks that metadata lie inside the file: what is past its end would read
// as if nothing were dirty.
func (i *Image) inFile(ctx context.Context, at uint64, n int64) error {
	size, err := i.node.Size(ctx)
	if err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	if at > hostEnd || int64(at) > size-n {
		return malformed("%d bytes of it at %#x lie past the end of the file, %d", n, at, size)
	}
	return nil
}

// readTableEntry is entry k of the table of a bitmap: where the cluster is, or 0 if
// all of its bits are alike.
func (i *Image) readTableEntry(ctx context.Context, w *window, e *bitmapEntry, k int64) (ones bool, at hostOffset, err error) {
	b, err := w.at(ctx, hostOffset(e.tableOffset), k*8, 8)
	if err != nil {
		return false, 0, err
	}
	word := binary.BigEndian.Uint64(b)
	if off := word & bitmapOffsetMask; i.badTableEntry(word) {
		return false, 0, malformed("table at %#x: entry %d is %#x, which cannot be", e.tableOffset, k, word)
	} else if off != 0 {
		return false, hostOffset(off), nil
	}
	return word&bitmapAllOnes != 0, 0, nil
}

// badTableEntry reports whether an entry of a bitmap table cannot be.
func (i *Image) badTableEntry(entry uint64) bool {
	off := entry & bitmapOffsetMask
	return entry&bitmapReserved != 0 || off&uint64(i.clusterSize()-1) != 0 || off != 0 && entry&bitmapAllOnes != 0
}
