package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
)

// Enabled bitmaps are in memory while an image is written to. On disk they are in
// use, which is to say inconsistent, from before the first change that they record
// until they are stored: when the image is closed, or when ChangeBitmaps stores
// them. An image that is opened for writing and not written to stays as it is.

// What the bitmaps that are in memory may take, bytes; each counts as leastBitmap at
// least.
const (
	maxBitmapMemory = 64 << 20
	leastBitmap     = 4 << 10
)

// A recording is all enabled bitmaps. It is replaced, not changed, but for the bits.
type recording struct {
	live   []*live
	marked atomic.Bool // all of them are in use on disk, durably
}

// A live bitmap is one that records.
type live struct {
	*bitset
	name   string
	at     int64 // of its entry in the directory on disk
	marked bool  // it is in use on disk; the writer's mu protects it
}

// find is the bitmap of the name, nil if it does not record.
func (r *recording) find(name string) *live {
	if r == nil {
		return nil
	}
	if k := slices.IndexFunc(r.live, func(l *live) bool { return l.name == name }); k >= 0 {
		return r.live[k]
	}
	return nil
}

// newRecording is nil for no bitmaps.
func newRecording(list []*live) *recording {
	if len(list) == 0 {
		return nil
	}
	r := &recording{live: list}
	r.marked.Store(!slices.ContainsFunc(list, func(l *live) bool { return !l.marked }))
	return r
}

// Record is as in [storage.Recorder]. The first change that it records since the
// bitmaps were stored waits for a sync.
func (i *Image) Record(ctx context.Context, off, n int64) error {
	r := i.recording.Load()
	if r == nil {
		return nil
	}
	if !r.marked.Load() {
		if r.covers(off, n) { // on disk too
			return nil
		}
		if err := i.markInUse(ctx); err != nil {
			return err
		}
	}
	for _, l := range r.live {
		l.set(off, n)
	}
	return nil
}

func (r *recording) covers(off, n int64) bool {
	return !slices.ContainsFunc(r.live, func(l *live) bool { return !l.covers(off, n) })
}

// markInUse says on disk that the bitmaps are in use.
func (i *Image) markInUse(ctx context.Context) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	if err := w.lock(); err != nil {
		return err
	}
	defer w.mu.Unlock()
	return w.markLive(ctx)
}

// markLive is markInUse. w.mu must be held. Until the sync nothing has been written
// that a bitmap lacks: those that are marked by then are inconsistent after a crash,
// the others are right.
func (w *writer) markLive(ctx context.Context) error {
	r := w.recording.Load()
	if r == nil || r.marked.Load() {
		return nil
	}
	for _, l := range r.live {
		if l.marked {
			continue
		}
		l.marked = true // also if it fails: then nobody knows
		if err := w.writeFlags(ctx, l.at, bitmapInUse|bitmapAuto); err != nil {
			return err
		}
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	r.marked.Store(true)
	return nil
}

// writeFlags changes the flags of an entry of the directory in place: in one sector,
// since entries begin at multiples of 8. w.mu must be held.
func (w *writer) writeFlags(ctx context.Context, entry int64, flags uint32) error {
	at := int64(w.state.Load().bitmaps.offset) + entry + 12
	if err := w.checkOverlap(ctx, at, 4, metaBitmaps); err != nil {
		return err
	}
	if err := w.write(ctx, binary.BigEndian.AppendUint32(nil, flags), hostOffset(at)); err != nil {
		return fmt.Errorf("qcow2: bitmap directory: %w", err)
	}
	return nil
}

// loadEnabled reads the enabled bitmaps that are consistent. w.mu must be held.
func (w *writer) loadEnabled(ctx context.Context) (*recording, error) {
	list, err := w.readDirectory(ctx)
	if err != nil {
		return nil, err
	}
	var enabled []*live
	var memory bitmapMemory
	for _, m := range list {
		if m.entry.flags != bitmapAuto { // one that is in use is lost
			continue
		}
		b, err := w.loadBitmap(ctx, m, &memory)
		if err != nil {
			return nil, err
		}
		enabled = append(enabled, &live{bitset: b, name: m.name, at: m.at})
	}
	return newRecording(enabled), nil
}

// loadBitmap reads the content of a bitmap that is consistent.
func (w *writer) loadBitmap(ctx context.Context, m *member, memory *bitmapMemory) (*bitset, error) {
	if err := memory.take(m.name, w.Size(), m.entry.granularity); err != nil {
		return nil, err
	}
	b := newBitset(w.Size(), m.entry.granularity)
	tables := window{source: w.src}
	perCluster := w.clusterSize() / 8 // words
	var buf []byte
	if err := w.inFile(ctx, m.entry.tableOffset, int64(m.entry.tableSize)*8); err != nil {
		return nil, fmt.Errorf("qcow2: bitmap %q: %w", m.name, err)
	}
	for k := range int64(m.entry.tableSize) {
		ones, at, err := w.readTableEntry(ctx, &tables, &m.entry, k)
		words := b.words[min(k*perCluster, int64(len(b.words))):min((k+1)*perCluster, int64(len(b.words)))]
		if err == nil && at != 0 {
			buf = slices.Grow(buf[:0], 8*len(words))[:8*len(words)]
			if err = w.inFile(ctx, uint64(at), int64(len(buf))); err == nil {
				err = w.overlapError(int64(at), w.clusterSize(), metaBitmaps)
			}
			if err == nil {
				err = w.src.read(ctx, buf, at)
			}
			b.decode(k*perCluster, buf)
		}
		if err != nil {
			return nil, fmt.Errorf("qcow2: bitmap %q: %w", m.name, err)
		}
		for j := range words {
			if ones {
				words[j] = ^uint64(0)
			}
		}
	}
	b.trim()
	return b, nil
}

// A bitmapMemory counts what bitmaps take.
type bitmapMemory int64

// take fails where the bitmap would be too much.
func (m *bitmapMemory) take(name string, size int64, shift uint8) error {
	*m += bitmapMemory(max(bitsetBytes(size, shift), leastBitmap))
	if *m > maxBitmapMemory {
		return unsupported("bitmap %q: more than %d MiB of memory for bitmaps: a larger granularity needs less", name, maxBitmapMemory>>20)
	}
	return nil
}
