package qcow2

import (
	"context"
	"errors"
	"fmt"
)

// A sizing takes the bitmaps along when the image gets another size. In one that
// records, what is new is dirty, otherwise than in QEMU: who shrinks an image and lets
// it grow again changes what it reads as. One that is frozen has nothing dirty there,
// but perhaps what was dirty before the image shrank.
//
// A table has to fit the size unless its bitmap is in use. So those that record are
// marked, and so are frozen ones whose tables need another length; these are stored
// anew when the size is there.
type sizing struct {
	*writer
	frozen []*member // that are marked, with their bits
}

// beginSizing prepares the bitmaps for another size: after that they must be finished.
// It fails with [storage.ErrUnsupported] where they cannot have it. w.commit and w.mu
// must be held.
func (w *writer) beginSizing(ctx context.Context, size int64) (*sizing, error) {
	s := &sizing{writer: w}
	list, err := w.readDirectory(ctx)
	if err != nil || len(list) == 0 {
		return s, err
	}
	var records, loaded bitmapMemory
	for _, m := range list {
		need := ceilDiv(bitsetBytes(size, m.entry.granularity), w.clusterSize())
		switch {
		case m.inconsistent():
		case need == 0 || need<<w.clusterBits > maxBitmapBytes:
			return nil, unsupported("%d bytes in an image with bitmap %q", size, m.name)
		case m.live != nil:
			err = records.take(m.name, size, m.entry.granularity)
		case need != int64(m.entry.tableSize):
			if err = loaded.take(m.name, size, m.entry.granularity); err == nil {
				m.bits, err = w.loadBitmap(ctx, m, new(bitmapMemory))
			}
			s.frozen = append(s.frozen, m)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, s.mark(ctx)
}

// mark says on disk that the bitmaps are in use.
func (s *sizing) mark(ctx context.Context) error {
	for _, m := range s.frozen {
		if err := s.writeFlags(ctx, m.at, bitmapInUse); err != nil {
			return err
		}
	}
	if err := s.markLive(ctx); err != nil {
		return err
	}
	if len(s.frozen) == 0 {
		return nil
	}
	return s.sync(ctx)
}

// finish gives the bitmaps the size that the image has now, after the resize has
// failed with cause, if at all. Where frozen bitmaps cannot be stored they stay in use,
// and are inconsistent; that is an error only if the image is out of service.
func (s *sizing) finish(ctx context.Context, old int64, cause error) error {
	if s.failure.Load() != nil {
		return cause
	}
	ctx = context.WithoutCancel(ctx)
	size := s.Size()
	if r := s.recording.Load(); r != nil && size != old {
		next := make([]*live, len(r.live))
		for k, l := range r.live {
			next[k] = &live{bitset: l.resized(size, true), name: l.name, at: l.at, marked: l.marked}
		}
		s.recording.Store(newRecording(next))
		s.bitmapsMoved.Add(1)
	}
	if len(s.frozen) == 0 {
		return cause
	}
	var err error
	if size == old {
		err = s.unmark(ctx)
	} else {
		err = s.store(ctx, size)
	}
	if err != nil && s.failure.Load() != nil {
		return errors.Join(cause, err)
	}
	return cause
}

// unmark makes the frozen bitmaps what they were: their tables are.
func (s *sizing) unmark(ctx context.Context) error {
	for _, m := range s.frozen {
		if err := s.writeFlags(ctx, m.at, 0); err != nil {
			return err
		}
	}
	return s.sync(ctx)
}

// store stores the frozen bitmaps in another size.
func (s *sizing) store(ctx context.Context, size int64) error {
	list, err := s.readDirectory(ctx)
	if err != nil {
		return err
	}
	for _, m := range s.frozen {
		for _, now := range list {
			if now.at == m.at {
				now.bits, now.store = m.bits.resized(size, false), true
			}
		}
	}
	return s.replaceDirectory(ctx, list, nil, nil)
}

// storeRecorded stores the bitmaps that have recorded something, and says that they
// are no longer in use. Nothing may be dirty. w.commit and w.mu must be held.
func (w *writer) storeRecorded(ctx context.Context) error {
	list, err := w.readDirectory(ctx)
	if err != nil {
		return err
	}
	some := false
	for _, m := range list {
		m.store = m.live != nil && m.live.marked
		some = some || m.store
	}
	if !some {
		return nil
	}
	if err := w.replaceDirectory(ctx, list, nil, nil); err != nil {
		return fmt.Errorf("qcow2: the bitmaps could not be stored: %w", err)
	}
	return nil
}

// recordRevert records where the image is going to differ when it is reverted to a
// snapshot.
func (i *Image) recordRevert(ctx context.Context, id string) error {
	if i.recording.Load() == nil {
		return nil
	}
	m, err := i.OpenSnapshot(ctx, id, 0)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() //nolint:contextcheck // a view has nothing to write
	return i.Changes(ctx, m, 0, i.Size(), func(off, n int64, changed bool) error {
		if !changed {
			return nil
		}
		return i.Record(ctx, off, n)
	})
}
