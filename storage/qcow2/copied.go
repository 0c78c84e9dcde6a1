package qcow2

import "context"

// The COPIED flag of an entry says that nothing else refers to what the entry
// does: it may be written to in place. A snapshot that is taken makes that untrue
// of everything, and one that is deleted may make it true again. Nobody writes in
// place over an entry without the flag, so it is cleared before refcounts rise,
// and set after they have fallen; where that is cut off, the image is as good as
// before, but not as fast. The checks of refcounts call it a corruption all the
// same: meanwhile the image is marked dirty, where its version can say so.

// share clears the flag of all entries of the active tables. Nobody may be writing
// in place. w.commit and w.mu must be held, and nothing be dirty.
func (w *writer) share(ctx context.Context) error {
	t := w.active()
	var tables []int64
	err := t.eachTable(ctx, func(number int64, entry uint64) error {
		if entry&l2Copied == 0 { // shared already, and what it refers to as well
			return nil
		}
		tables = append(tables, number)
		return w.flagTable(ctx, number, false)
	})
	if err == nil {
		err = w.writeBack(ctx)
	}
	if err != nil {
		return err
	}
	for _, number := range tables {
		if err := w.flagL1(ctx, number, false); err != nil {
			return err
		}
	}
	return w.writeBack(ctx)
}

// unshare sets the flag of all entries of the active tables that alone refer to
// what they do. Locks as for share.
func (w *writer) unshare(ctx context.Context) error {
	t := w.active()
	err := t.eachTable(ctx, func(number int64, entry uint64) error {
		n, err := w.refcountOf(ctx, int64(entry&l1OffsetMask)>>w.clusterBits)
		if err != nil || n != 1 {
			return err
		}
		if entry&l2Copied == 0 {
			if err := w.flagL1(ctx, number, true); err != nil {
				return err
			}
		}
		return w.flagTable(ctx, number, true)
	})
	if err != nil {
		return err
	}
	return w.writeBack(ctx)
}

func (w *writer) flagL1(ctx context.Context, number int64, set bool) error {
	page, err := w.l1Page.get(ctx, number>>w.pageBits)
	if err != nil {
		return err
	}
	entry := page.entries[number&(1<<w.pageBits-1)] &^ l2Copied
	if set {
		entry |= l2Copied
	}
	return w.setL1(ctx, number, entry)
}

// flagTable sets or clears the flag in the entries of an L2 table that nothing
// else refers to.
func (w *writer) flagTable(ctx context.Context, number int64, set bool) error {
	perTable := w.clusterSize() / w.pieceSize
	for key := number * perTable; key < (number+1)*perTable; key++ {
		if err := w.flagSlice(ctx, key, set); err != nil {
			return err
		}
	}
	if !w.full() {
		return nil
	}
	return w.writeBack(ctx)
}

func (w *writer) flagSlice(ctx context.Context, key int64, set bool) error {
	s, err := w.l2.get(ctx, key)
	if err != nil {
		return err
	}
	var changed *slice
	for k := 0; k < len(s.entries); k += w.entryBytes() / 8 {
		e := s.entries[k]
		if kind := w.kindOf(e); kind != kindData && kind != kindZeroAlloc || e&l2Copied != 0 == set {
			continue
		}
		if set {
			n, err := w.refcountOf(ctx, int64(e&l2OffsetMask)>>w.clusterBits)
			if err != nil {
				return err
			}
			if n != 1 {
				continue
			}
		}
		if changed == nil {
			changed = &slice{key: key, at: s.at, entries: w.cloneEntries(s)}
		}
		changed.entries[k] = e ^ l2Copied
	}
	if changed != nil {
		w.l2.replace(changed)
	}
	return nil
}

// doubtful marks the image dirty on disk, so that whoever opens it after a crash
// repairs it, and returns what takes the mark away. Version 2 has no such mark.
func (w *writer) doubtful(ctx context.Context) (clean func() error, err error) {
	if w.info.Version < 3 || w.marked {
		return func() error { return nil }, nil
	}
	mark := func(h *header) { h.incompatible |= incompatDirty }
	if err := w.writeHeaderFields(ctx, mark); err != nil {
		return nil, err
	}
	return func() error {
		if err := w.failure.Load(); err != nil {
			return *err
		}
		err := w.writeHeaderFields(ctx, func(h *header) { h.incompatible &^= incompatDirty })
		if err == nil {
			w.marked = false // a commit meanwhile may have relied on the mark
			err = w.sync(ctx)
		}
		return err
	}, w.sync(ctx)
}
