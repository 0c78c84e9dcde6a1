package qcow2

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// A SnapshotMapper maps the image as it was when a snapshot was taken. It fails with
// [storage.ErrNotFound] once the snapshot has been deleted, and with
// [storage.ErrClosed] after the image has been closed. Safe for concurrent use.
type SnapshotMapper struct {
	of   *Image
	id   string
	info Snapshot
	view *Image // over the snapshot's L1 table, never written to
	gone atomic.Bool
}

var (
	_ storage.Mapper   = (*SnapshotMapper)(nil)
	_ storage.Unpacker = (*SnapshotMapper)(nil)
	_ storage.Pinner   = (*SnapshotMapper)(nil)
)

// views are the open mappers of snapshots.
type views struct {
	mu   sync.Mutex // protects open
	open map[*SnapshotMapper]struct{}
}

func (v *views) add(m *SnapshotMapper) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open == nil {
		v.open = make(map[*SnapshotMapper]struct{})
	}
	v.open[m] = struct{}{}
}

func (v *views) remove(m *SnapshotMapper) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.open, m)
}

// close makes the mappers of a snapshot that was deleted fail.
func (v *views) close(id string, l1 hostOffset) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for m := range v.open {
		if m.id == id && hostOffset(m.view.l1Offset.Load()) == l1 {
			m.gone.Store(true)
		}
	}
}

// OpenSnapshot opens the first snapshot with the id. It fails with
// [storage.ErrNotFound] where there is none. The mapper keeps up to cacheSize bytes
// of the tables (0: 1 MiB), and is closed before the image.
func (i *Image) OpenSnapshot(ctx context.Context, id string, cacheSize int64) (*SnapshotMapper, error) {
	if err := i.checkOpen(); err != nil {
		return nil, err
	}
	if w := i.writer.Load(); w != nil { // the table must not be replaced under the reader
		if err := w.lock(); err != nil {
			return nil, err
		}
		defer w.mu.Unlock()
	}
	_, s, err := (&writer{Image: i}).findSnapshot(ctx, id)
	if err == nil && s == nil {
		err = errNoSnapshot(id)
	}
	if err != nil {
		return nil, err
	}
	if cacheSize <= 0 {
		cacheSize = 1 << 20
	}
	m := &SnapshotMapper{of: i, id: id, info: s.Snapshot, view: i.viewOf(s, cacheSize)}
	i.views.add(m)
	return m, nil
}

// viewOf is an image that was opened with the snapshot's L1 table as its own.
func (i *Image) viewOf(s *found, cacheSize int64) *Image {
	v := &Image{geometry: i.geometry, node: i.node, data: i.data, src: i.src, info: i.info, opt: i.opt}
	v.opt.CacheSize = cacheSize
	state := *i.state.Load()
	state.header.l1Offset, state.header.l1Size = uint64(s.tree.at), uint32(s.tree.entries)
	state.header.size, state.header.snapshots = uint64(s.DiskSize), 0
	v.apply(&state)
	v.start()
	return v
}

// usable is an error once there is nothing to map anymore.
func (m *SnapshotMapper) usable() error {
	if m.gone.Load() {
		return errNoSnapshot(m.id)
	}
	return m.of.checkOpen()
}

// Snapshot describes the snapshot.
func (m *SnapshotMapper) Snapshot() Snapshot { return m.info }

// Identity tells the snapshot from all others that the image ever had: no two are
// taken in the same nanosecond.
func (m *SnapshotMapper) Identity() string {
	s, h := &m.info, &m.view.state.Load().header
	return fmt.Sprintf("%q %q %d %d %d %d", s.ID, s.Name, s.Date.UnixNano(), s.DiskSize, h.l1Offset, h.l1Size)
}

// Encryption is as that of [Image].
func (m *SnapshotMapper) Encryption() string { return m.view.Encryption() }

// failed is what an error means: once the snapshot is gone, its tables may be
// anything.
func (m *SnapshotMapper) failed(err error) error {
	if gone := m.usable(); gone != nil {
		return gone
	}
	return err
}

// Size is the virtual size when the snapshot was taken, bytes.
func (m *SnapshotMapper) Size() int64 { return m.view.Size() }

// Fetch is as that of [Image].
func (m *SnapshotMapper) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := m.usable(); err != nil {
		return err
	}
	if err := m.view.Fetch(ctx, off, n, into); err != nil {
		return m.failed(fmt.Errorf("snapshot %q: %w", m.id, err))
	}
	return m.usable()
}

// PackedUnit is the cluster size.
func (m *SnapshotMapper) PackedUnit() int64 { return m.view.PackedUnit() }

// Unpack is as that of [Image].
func (m *SnapshotMapper) Unpack(dst, src []byte) error { return m.view.Unpack(dst, src) }

// Pin keeps the blocks that mappings name from being reused.
func (m *SnapshotMapper) Pin() storage.Pin { return m.of.Pin() }

// Unpin returns a pin.
func (m *SnapshotMapper) Unpin(p storage.Pin) { m.of.Unpin(p) }

// Limit is as that of [Image].
func (m *SnapshotMapper) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	return m.view.Limit(ctx, which)
}

// Close releases what the mapper holds.
func (m *SnapshotMapper) Close() error {
	m.of.views.remove(m)
	return m.view.Close()
}
