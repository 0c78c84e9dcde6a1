package qcow2

import (
	"cmp"
	"context"
	"slices"

	"github.com/extentd/extentd/storage"
)

// frees are clusters that lost a reference and have not been given back yet. A
// cluster is free for something else only when
//
//   - what took the reference away is durable: until then the old table may come
//     back after a crash, and must find what it refers to;
//   - nobody reads or writes it any more through a mapping of the past: all pins
//     of that time have been returned;
//   - the host has been told that it is unused: a trim that came later would
//     destroy what was written by then.
//
// The writer's mu protects them.
type frees struct {
	pending    []freed // not durable yet
	committing []freed // by the commit that is under way
	durable    []freed // readers may still use them
	clusters   int64   // in all of them
}

// A freed run loses one reference to each of its clusters.
type freed struct {
	run
	epoch uint64 // when it was unlinked
	kind  metadataKind
}

// What may wait to be freed, before a commit is forced.
const (
	maxFreedBytes = 1 << 30
	maxFreedRuns  = 1 << 14
)

// free takes one reference away from every cluster of r, which nothing in memory
// refers to any more, once that is durable. It is called after what replaces the
// reference has been published: who saw it has a pin of this epoch at the
// latest. w.mu must be held.
func (w *writer) free(r run, kind metadataKind) {
	f := &w.freed
	f.clusters += r.count
	epoch := w.pins.epoch.Load()
	if n := len(f.pending); n > 0 {
		last := &f.pending[n-1]
		if last.epoch == epoch && last.kind == kind && last.end() == r.start {
			last.count += r.count
			return
		}
	}
	f.pending = append(f.pending, freed{run: r, epoch: epoch, kind: kind})
}

// freeMetadata is free for tables that allocMetadata gave, or that were there.
// w.mu must be held.
func (w *writer) freeMetadata(at hostOffset, clusters int64, kind metadataKind) {
	w.free(run{int64(at) >> w.clusterBits, clusters}, kind)
}

// tooMuchFreed reports whether it is time for a commit. w.mu must be held.
func (w *writer) tooMuchFreed() bool {
	f := &w.freed
	return f.clusters<<w.clusterBits > maxFreedBytes || len(f.pending)+len(f.committing)+len(f.durable) > maxFreedRuns
}

// reclaim gives back what is durably unlinked and used by nobody: in three
// steps, so that the host is told without the lock, unless release is false. For
// that long the clusters keep a refcount of 1. force does not ask for pins: at
// the end nothing is reused. What a failure keeps it from stays in the list, for
// the next time. commit and w.mu must be held.
func (w *writer) reclaim(ctx context.Context, release, force bool) error {
	w.pins.advance()
	ready := w.takeReady(force)
	if len(ready) == 0 {
		return nil
	}
	last, left, err := w.dropReferences(ctx, ready)
	if err != nil {
		w.putBack(append(last, left...))
		return err
	}
	slices.SortFunc(last, func(a, b freed) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.start, b.start))
	})
	if release {
		w.mu.Unlock()
	}
	w.trim(ctx, last)
	if release {
		w.mu.Lock()
	}
	for k, f := range last {
		if f.kind < noMetadata {
			w.metadata.remove(f.run, f.kind)
		}
		if err := w.lower(ctx, f.run); err != nil {
			w.putBack(last[k+1:])
			return err
		}
	}
	return nil
}

// takeReady removes and returns what can be given back.
func (w *writer) takeReady(force bool) []freed {
	f := &w.freed
	n := 0
	for n < len(f.durable) && (force || w.pins.passed(f.durable[n].epoch)) { // in the order of epochs
		f.clusters -= f.durable[n].count
		n++
	}
	ready := f.durable[:n:n]
	if f.durable = f.durable[n:]; len(f.durable) == 0 {
		f.durable = nil // not to keep the memory
	}
	return ready
}

// putBack is takeReady undone.
func (w *writer) putBack(ready []freed) {
	f := &w.freed
	for _, r := range ready {
		f.clusters += r.count
	}
	f.durable = append(ready, f.durable...)
}

// dropReferences takes a reference away where another one remains, trims what is
// in the external data file, and returns the clusters that were referred to once,
// and what a failure has left over.
func (w *writer) dropReferences(ctx context.Context, ready []freed) (last, left []freed, err error) {
	for k, f := range ready {
		if f.kind == externalData {
			// With the lock held: who is about to write there calls Alloc first.
			w.trimRun(ctx, w.data, f.run)
			continue
		}
		done, err := w.eachRefcount(ctx, f.run, func(b *refcountBlock, k int, n uint64) error {
			cluster := b.number<<w.table.perBits + int64(k)
			switch {
			case n == 0:
				return w.refcountMissing(ctx, cluster)
			case n > 1:
				w.set(b, k, n, n-1)
				return nil
			}
			if at := len(last) - 1; at >= 0 && last[at].end() == cluster && last[at].kind == f.kind {
				last[at].count++
				return nil
			}
			last = append(last, freed{run: run{cluster, 1}, kind: f.kind})
			return nil
		})
		if err != nil {
			left = slices.Clone(ready[k:])
			left[0].run = run{f.start + done, f.count - done}
			return last, left, err
		}
	}
	return last, nil, nil
}

// trim tells the host that data clusters are unused: sorted ones, those that
// follow each other at once.
func (w *writer) trim(ctx context.Context, sorted []freed) {
	var r run
	for _, f := range sorted {
		if f.kind != noMetadata {
			continue
		}
		if r.end() != f.start {
			w.trimRun(ctx, w.node, r)
			r = run{start: f.start}
		}
		r.count += f.count
	}
	w.trimRun(ctx, w.node, r)
}

// trimRun gives the storage of r back. That it may fail takes nothing away but
// the space.
func (w *writer) trimRun(ctx context.Context, node *storage.Node, r run) {
	ctx = context.WithoutCancel(ctx)
	l, err := node.Limits(ctx)
	if err != nil {
		return
	}
	at, n := r.start<<w.clusterBits, r.count<<w.clusterBits
	for n > 0 {
		part := min(n, l.MaxTrim)
		if node.Trim(ctx, at, part) != nil {
			return
		}
		at, n = at+part, n-part
	}
}
