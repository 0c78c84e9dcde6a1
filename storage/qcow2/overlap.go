package qcow2

import (
	"context"
	"fmt"
	"sync"

	"github.com/extentd/extentd/storage"
)

// A metadataKind is what a cluster of metadata is.
type metadataKind uint8

const (
	metaHeader metadataKind = iota
	metaL1
	metaL2
	metaRefcountTable
	metaRefcountBlock
	metaSnapshots // the snapshot table, and the L1 tables of snapshots
	metaBitmaps   // the bitmap directory, and bitmap tables
	noMetadata    // data in the image's file
	externalData  // data in the external data file
)

func (k metadataKind) String() string {
	return [...]string{
		metaHeader:        "the header",
		metaL1:            "the l1 table",
		metaL2:            "an l2 table",
		metaRefcountTable: "the refcount table",
		metaRefcountBlock: "a refcount block",
		metaSnapshots:     "a snapshot's table",
		metaBitmaps:       "a bitmap's table",
		noMetadata:        "data",
		externalData:      "external data",
	}[k]
}

// metadata is where metadata are, of the kinds before noMetadata: nothing else
// may be written there. L2 tables that only snapshots refer to are not among
// them, as in QEMU; their refcounts protect them.
type metadata struct {
	mu    sync.RWMutex // protects all below
	kinds [noMetadata]runs
}

func (m *metadata) add(r run, kind metadataKind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kinds[kind].add(r)
}

func (m *metadata) remove(r run, kind metadataKind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kinds[kind].remove(r)
}

// overlap is the kind of metadata that r overlaps, but for one kind; noMetadata
// where there is none.
func (m *metadata) overlap(r run, except metadataKind) metadataKind {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for kind := range m.kinds {
		if k := metadataKind(kind); k != except && m.kinds[kind].overlaps(r) {
			return k
		}
	}
	return noMetadata
}

// overlapError is what is wrong with writing n bytes of a kind at the offset, or
// nil.
func (w *writer) overlapError(at, n int64, kind metadataKind) error {
	if n <= 0 {
		return nil
	}
	first := at >> w.clusterBits
	r := run{first, (at+n-1)>>w.clusterBits - first + 1}
	other := w.metadata.overlap(r, kind)
	if other == noMetadata {
		return nil
	}
	return corrupt("a write of %d bytes of %v at %#x would overwrite %v", n, kind, at, other)
}

// checkOverlap is asked before n bytes of a kind are written at the offset: where
// they would overwrite anything else that is metadata, a table or a refcount is
// wrong. The image is marked corrupt then. w.mu must be held.
func (w *writer) checkOverlap(ctx context.Context, at, n int64, kind metadataKind) error {
	if err := w.overlapError(at, n, kind); err != nil {
		return w.corrupted(ctx, err)
	}
	return nil
}

// CheckWrite is asked before data are written: to the external data file
// anywhere, else never over metadata. It takes no lock that is held during I/O.
func (i *Image) CheckWrite(ctx context.Context, node *storage.Node, off, n int64) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	switch {
	case off < 0 || n < 0 || off > storage.MaxSize-n:
		return fmt.Errorf("qcow2: %w: a write of %d bytes at %d", storage.ErrOutOfRange, n, off)
	case node != w.data:
		return fmt.Errorf("qcow2: %w: a write of data to another node", storage.ErrConflict)
	case w.data != w.node:
		return nil
	}
	if err = w.overlapError(off, n, noMetadata); err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.corrupted(ctx, err)
}
