package qcow2

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

var (
	_ storage.WritableMapper = (*Image)(nil)
	_ storage.Pinner         = (*Image)(nil)
	_ storage.Adopter        = (*Image)(nil)
)

// maxTaken is the most clusters that one Alloc reserves where it may reserve
// less: other callers wait for so long.
const maxTaken = 1 << 16

// Units are the cluster and the subcluster. They are fixed with an external data
// file.
func (i *Image) Units() storage.Units {
	return storage.Units{Alloc: i.clusterSize(), Data: 1 << i.subclusterBits, Fixed: i.info.HasDataFile}
}

// Alloc reserves the first clusters that are free, with a refcount of 1 from
// then on. With an external data file there is nothing to reserve: it says where
// the data belong.
func (i *Image) Alloc(ctx context.Context, n int64, opt storage.AllocOptions) (storage.Blocks, error) {
	w, err := i.writing()
	if err != nil {
		return storage.Blocks{}, err
	}
	if n <= 0 || n > storage.MaxSize {
		return storage.Blocks{}, fmt.Errorf("qcow2: %w: allocation of %d bytes", storage.ErrOutOfRange, n)
	}
	if err := w.lock(); err != nil {
		return storage.Blocks{}, err
	}
	defer w.mu.Unlock()
	clusters := ceilDiv(n, w.clusterSize())
	if w.info.HasDataFile {
		return w.allocFixed(opt.Guest, clusters)
	}
	if !opt.Contiguous {
		clusters = min(clusters, maxTaken)
	}
	fresh := w.high
	r, err := w.take(ctx, clusters, opt.Contiguous)
	if err != nil {
		return storage.Blocks{}, err
	}
	w.reserved.add(r)
	return storage.Blocks{
		Node:   w.node,
		Offset: r.start << w.clusterBits,
		Length: r.count << w.clusterBits,
		Zeroed: r.start >= fresh, // the file grows by zeros
	}, nil
}

// allocFixed is where the guest's clusters belong in the external data file.
// They are trimmed no more, if they were about to be.
func (w *writer) allocFixed(guest, clusters int64) (storage.Blocks, error) {
	if guest < 0 || guest&(w.clusterSize()-1) != 0 {
		return storage.Blocks{}, w.misaligned(guest, clusters<<w.clusterBits, w.clusterSize())
	}
	if err := storage.CheckRange(guest, 0, w.Size()); err != nil {
		return storage.Blocks{}, fmt.Errorf("qcow2: %w", err)
	}
	clusters = min(clusters, ceilDiv(w.Size()-guest, w.clusterSize()))
	w.keepExternal(run{guest >> w.clusterBits, clusters})
	return storage.Blocks{Node: w.data, Offset: guest, Length: clusters << w.clusterBits}, nil
}

// keepExternal takes r out of what waits to be trimmed in the external data
// file.
func (w *writer) keepExternal(r run) {
	f := &w.freed
	for _, list := range []*[]freed{&f.pending, &f.committing, &f.durable} {
		var kept []freed
		changed := false
		for _, old := range *list {
			from, to := max(old.start, r.start), min(old.end(), r.end())
			if old.kind != externalData || from >= to {
				kept = append(kept, old)
				continue
			}
			changed = true
			f.clusters -= to - from
			before, after := old, old
			before.count = from - old.start
			after.run = run{to, old.end() - to}
			for _, part := range []freed{before, after} {
				if part.count > 0 {
					kept = append(kept, part)
				}
			}
		}
		if changed {
			*list = kept
		}
	}
}

// Free gives clusters back that were reserved and not mapped. Nothing ever
// referred to them, so they are free at once; where refcounts cannot be read it
// fails, and they are free after a later commit.
func (i *Image) Free(ctx context.Context, b storage.Blocks) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	if (b.Offset|b.Length)&(w.clusterSize()-1) != 0 || b.Offset < 0 || b.Length < 0 || b.Offset > storage.MaxSize-b.Length {
		return w.misaligned(b.Offset, b.Length, w.clusterSize())
	}
	if b.Node != w.data {
		return fmt.Errorf("qcow2: %w: blocks of another node", storage.ErrConflict)
	}
	if w.info.HasDataFile || b.Length == 0 {
		return nil
	}
	r := run{b.Offset >> w.clusterBits, b.Length >> w.clusterBits}
	if err := w.checkReserved(r); err != nil {
		return err
	}
	w.trimRun(ctx, w.node, r) // while they are still reserved for the caller
	if err := w.lock(); err != nil {
		return err
	}
	defer w.mu.Unlock()
	if !w.reserved.contains(r) {
		return w.notReserved(r)
	}
	w.reserved.remove(r)
	return w.lower(ctx, r)
}

func (w *writer) checkReserved(r run) error {
	if err := w.lock(); err != nil {
		return err
	}
	defer w.mu.Unlock()
	if !w.reserved.contains(r) {
		return w.notReserved(r)
	}
	return nil
}

func (w *writer) notReserved(r run) error {
	return fmt.Errorf("qcow2: %w: %d clusters at %#x are not reserved", storage.ErrConflict, r.count, r.start<<w.clusterBits)
}

func (w *writer) misaligned(off, n, unit int64) error {
	return fmt.Errorf("qcow2: %w", &storage.MisalignedError{Minimum: unit, Offset: off, Length: n})
}
