package qcow2

import "github.com/extentd/extentd/storage"

// An entry is one of an L2 table; without extended L2 entries bitmap is 0.
type entry struct{ word, bitmap uint64 }

// next is what the entry for the cluster at guest becomes where [at, end) of it
// is changed, and takes note of what that links and frees.
func (w *writer) next(c *change, e *edit, old entry, guest, at, end guestOffset) (entry, error) {
	kind := w.kindOf(old.word)
	var next entry
	var err error
	frees := false
	switch c.kind {
	case storage.ToData:
		next, frees, err = w.nextData(c, e, old, kind, guest, at, end)
	case storage.ToUnmapped:
		next, frees = w.nextUnmapped(c, old, kind)
	case storage.ToZero:
		next, frees = w.nextZero(old, kind == kindData || kind == kindZeroAlloc || kind == kindCompressed)
	default:
		if kept := kind == kindData || kind == kindZeroAlloc; kept && w.info.Version < 3 {
			return old, unsupported("%v at %d: version 2 has no zero clusters", c.kind, int64(guest))
		}
		next, frees = w.nextZero(old, kind == kindCompressed)
	}
	if err != nil {
		return old, err
	}
	if frees && next != old {
		if r, what := w.hostClusters(kind, old.word); what != externalData || c.kind != storage.ToData && !w.info.DataFileRaw {
			e.addFreed(freed{run: r, kind: what})
		}
	}
	return next, nil
}

// addFreed appends f, to the run before it where it follows that.
func (e *edit) addFreed(f freed) {
	if n := len(e.freed); n > 0 && e.freed[n-1].end() == f.start && e.freed[n-1].kind == f.kind {
		e.freed[n-1].count += f.count
		return
	}
	e.freed = append(e.freed, f)
}

// nextUnmapped is as QEMU's discard leaves an entry: zeros where something was
// there or a backing would show, else unchanged.
func (w *writer) nextUnmapped(c *change, old entry, kind clusterKind) (entry, bool) {
	allocated := kind == kindData || kind == kindZeroAlloc || kind == kindCompressed
	switch {
	case !allocated && !c.backed:
		return old, false
	case w.extended:
		return entry{0, allZero}, allocated
	case w.info.Version < 3:
		return entry{}, allocated
	}
	return entry{l2Zero, 0}, allocated
}

// nextZero is as QEMU's write of zeros leaves an entry, with or without giving
// back what is there.
func (w *writer) nextZero(old entry, unmap bool) (entry, bool) {
	next := old
	if unmap {
		next = entry{}
	}
	switch {
	case w.extended:
		next.bitmap = allZero
	case w.info.Version >= 3:
		next.word |= l2Zero
	}
	return next, unmap
}

// nextData is an entry with data in the cluster that the change says: one that
// is reserved, or that the entry has, as its only owner.
func (w *writer) nextData(c *change, e *edit, old entry, kind clusterKind, guest, at, end guestOffset) (next entry, frees bool, err error) {
	host := int64(guest) + c.host
	next.word = uint64(host) | l2Copied
	covered := w.subclusterMask(guest, at, end)
	if (kind == kindData || kind == kindZeroAlloc) && int64(old.word&l2OffsetMask) == host {
		if old.word&l2Copied == 0 {
			return old, false, conflict(guest, "the cluster at %#x is shared with a snapshot", host)
		}
		if w.extended {
			next.bitmap = (old.bitmap | covered) &^ (covered << subclusters)
		}
		return next, false, nil
	}
	if !w.info.HasDataFile {
		if err := w.link(e, host>>w.clusterBits, guest); err != nil {
			return old, false, err
		}
	}
	if w.extended {
		// What a shrink has left beyond the size is nobody's.
		size := max(guest, guestOffset(w.Size())) // a resize maps what lies beyond it
		inside := w.subclusterMask(guest, guest, min(guest+guestOffset(w.clusterSize()), size))
		if lost := old.bitmap &^ covered & inside; covered&inside != inside && (lost != 0 || kind == kindCompressed) {
			return old, false, conflict(guest, "data of the cluster outside of the range would be lost")
		}
		next.bitmap = covered | old.bitmap&allZero&^(covered<<subclusters)
		if kind == kindCompressed {
			next.bitmap = covered
		}
	}
	return next, kind == kindData || kind == kindZeroAlloc || kind == kindCompressed, nil
}

// subclusterMask is the allocation bits of the subclusters of [at, end) in the
// cluster at guest.
func (w *writer) subclusterMask(guest, at, end guestOffset) uint64 {
	if !w.extended {
		return 0
	}
	from := uint((at - guest) >> w.subclusterBits)
	to := uint((end - guest + 1<<w.subclusterBits - 1) >> w.subclusterBits)
	return (1<<to - 1) &^ (1<<from - 1)
}

// link takes a cluster out of those that are reserved, once the edit is
// published.
func (w *writer) link(e *edit, cluster int64, guest guestOffset) error {
	if cluster < e.avail.start || cluster >= e.avail.end() {
		end := w.reserved.end(cluster)
		if end == 0 {
			return conflict(guest, "the cluster at %#x is not reserved", cluster<<w.clusterBits)
		}
		e.avail = run{cluster, end - cluster}
	}
	if n := len(e.linked); n > 0 && e.linked[n-1].end() == cluster {
		e.linked[n-1].count++
		return nil
	}
	e.linked = append(e.linked, run{cluster, 1})
	return nil
}
