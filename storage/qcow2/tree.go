package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// A tree is an L1 table, the active one or a snapshot's, with all that it refers
// to, as it is on disk. The writer's mu is held by who walks it, and nothing is
// dirty.
type tree struct {
	*writer
	at      hostOffset
	entries int64
}

// active is the tree of the image itself.
func (w *writer) active() tree {
	h := &w.state.Load().header
	return tree{w, hostOffset(h.l1Offset), int64(h.l1Size)}
}

// l1Clusters is how many clusters the L1 table takes.
func (t *tree) l1Clusters() int64 { return ceilDiv(t.entries*l1EntrySize, t.clusterSize()) }

// eachTable calls fn for every L2 table: with its number in the L1 table, and its
// entry there.
func (t *tree) eachTable(ctx context.Context, fn func(number int64, entry uint64) error) error {
	l1 := window{source: t.src}
	for number := range t.entries {
		b, err := l1.at(ctx, t.at, number*l1EntrySize, l1EntrySize)
		if err != nil {
			return fmt.Errorf("qcow2: l1 table at %#x: %w", int64(t.at), err)
		}
		entry := binary.BigEndian.Uint64(b)
		at := entry & l1OffsetMask
		if at == 0 {
			continue
		}
		if at&uint64(t.clusterSize()-1) != 0 {
			return t.corrupted(ctx, corrupt("l1 table at %#x: entry %d is %#x: the offset of the l2 table must be a multiple of the cluster size %d",
				int64(t.at), number, entry, t.clusterSize()))
		}
		if err := fn(number, entry); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// eachReference calls fn for every run of clusters that an L2 table refers to,
// and, after those of a table, for the table. Host clusters of several compressed
// clusters come several times.
func (t *tree) eachReference(ctx context.Context, fn func(r run, kind metadataKind) error) error {
	buf := make([]byte, t.clusterSize())
	return t.eachTable(ctx, func(number int64, entry uint64) error {
		table := hostOffset(entry & l1OffsetMask)
		if err := t.src.read(ctx, buf, table); err != nil {
			return fmt.Errorf("qcow2: l2 table at %#x: %w", int64(table), err)
		}
		if err := t.eachData(ctx, buf, table, guestOffset(number)<<t.tableSpanBits, fn); err != nil {
			return err
		}
		return fn(run{int64(table) >> t.clusterBits, 1}, metaL2)
	})
}

// eachData calls fn for the runs of data clusters of an L2 table, which begins to
// map at base.
func (t *tree) eachData(ctx context.Context, table []byte, at hostOffset, base guestOffset, fn func(r run, kind metadataKind) error) error {
	step := t.entryBytes()
	var r run
	for k := 0; k < len(table)/step; k++ {
		word, bitmap := binary.BigEndian.Uint64(table[k*step:]), uint64(0)
		if word == 0 {
			continue
		}
		if t.extended {
			bitmap = binary.BigEndian.Uint64(table[k*step+8:])
		}
		if problem := t.problem(word, bitmap, base+guestOffset(k)<<t.clusterBits); problem != "" {
			return t.corrupted(ctx, corrupt("l2 table at %#x: entry %d is %#x: %s", int64(at), k, word, problem))
		}
		kind := t.kindOf(word)
		next, _ := t.hostClusters(kind, word)
		if next.count == 0 {
			continue
		}
		if next.start == r.end() && kind != kindCompressed {
			r.count += next.count
			continue
		}
		if r.count > 0 {
			if err := fn(r, noMetadata); err != nil {
				return err
			}
		}
		r = next
	}
	if r.count == 0 {
		return nil
	}
	return fn(r, noMetadata)
}

// entryBytes is the size of an L2 entry.
func (g *geometry) entryBytes() int {
	if g.extended {
		return 16
	}
	return 8
}

// copyL1 writes the L1 table to new clusters of a kind, with zeros after it, and
// without the bits to drop.
func (t *tree) copyL1(ctx context.Context, to hostOffset, clusters int64, kind metadataKind, drop uint64) error {
	if err := t.checkOverlap(ctx, int64(to), clusters<<t.clusterBits, kind); err != nil {
		return err
	}
	b := make([]byte, min(clusters<<t.clusterBits, checkRead))
	used := t.entries * l1EntrySize
	for at := int64(0); at < clusters<<t.clusterBits; at += int64(len(b)) {
		b = b[:min(int64(len(b)), clusters<<t.clusterBits-at)]
		clear(b)
		if n := min(int64(len(b)), used-at); n > 0 {
			if err := t.src.read(ctx, b[:n], t.at+hostOffset(at)); err != nil {
				return fmt.Errorf("qcow2: l1 table at %#x: %w", int64(t.at), err)
			}
		}
		for k := 0; k < len(b) && drop != 0; k += l1EntrySize {
			binary.BigEndian.PutUint64(b[k:], binary.BigEndian.Uint64(b[k:])&^drop)
		}
		if err := t.write(ctx, b, to+hostOffset(at)); err != nil {
			return err
		}
	}
	return nil
}

// raiseAll adds a reference to everything that the tree refers to, all or
// nothing: it fails with storage.ErrUnsupported, before anything is changed,
// where a refcount has its largest value.
func (t *tree) raiseAll(ctx context.Context) error {
	most := t.table.most()
	check := func(_ *refcountBlock, _ int, n uint64) error {
		if n >= most {
			return unsupported("more than %d references to a cluster", n)
		}
		return nil
	}
	// A cluster that several references lead to gains as many.
	err := t.eachReference(ctx, func(r run, _ metadataKind) error {
		_, err := t.eachRefcount(ctx, r, check)
		return err
	})
	if err != nil {
		return err
	}
	done := 0
	err = t.eachReference(ctx, func(r run, _ metadataKind) error {
		err := t.raise(ctx, r)
		if err == nil {
			done++
		}
		return err
	})
	if err == nil || t.failure.Load() != nil {
		return err
	}
	return t.lowerFirst(ctx, done, err)
}

// errEnough ends a walk.
type errEnough struct{}

func (errEnough) Error() string { return "enough" }

// lowerFirst takes back the first references of raiseAll, all of them if count is
// negative, after an error.
func (t *tree) lowerFirst(ctx context.Context, count int, cause error) error {
	ctx = context.WithoutCancel(ctx)
	err := t.eachReference(ctx, func(r run, _ metadataKind) error {
		if count == 0 {
			return errEnough{}
		}
		count--
		return t.lower(ctx, r)
	})
	if _, enough := err.(errEnough); enough || err == nil { //nolint:errorlint // it is returned bare, by a walk that wraps nothing
		return cause
	}
	return fmt.Errorf("%w; and clusters have leaked: %w", cause, err)
}

// freeAll takes a reference away from everything that the tree refers to, and from
// the clusters of its L1 table, of the kind given. Nothing on disk refers to it
// anymore.
func (t *tree) freeAll(ctx context.Context, kind metadataKind) error {
	err := t.eachReference(ctx, func(r run, kind metadataKind) error {
		t.free(r, kind)
		if !t.tooMuchFreed() {
			return nil
		}
		return t.writeBack(ctx)
	})
	if n := t.l1Clusters(); n > 0 && err == nil {
		t.free(run{int64(t.at) >> t.clusterBits, n}, kind)
	}
	return err
}
