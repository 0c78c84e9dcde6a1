package qcow2

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"
)

// maxSnapshotName is the longest name that is given, bytes: QEMU reads no more.
const maxSnapshotName = 255

// SnapshotOptions say what a new snapshot is called. Name is needed.
type SnapshotOptions struct {
	// Name is 1 to 255 bytes of UTF-8 without NUL. Several snapshots may have the
	// same.
	Name string
	// Date is when it is said to have been taken. Default: now.
	Date time.Time
}

// CreateSnapshot takes an internal snapshot of the image as it is, and returns it.
// The caller sees to it that nobody writes data meanwhile: not even in place, where
// no update follows. The error is an *[storage.InvalidError] for a name that cannot
// be; it wraps [storage.ErrUnsupported] for an image with an external data file, or
// whose refcounts are too narrow.
//
// After a crash there is the snapshot with all that it needs, or there is none. The
// worst that is left are leaks, and flags that cost time: the image is marked dirty
// while it is made, and whoever writes to it next repairs them.
func (i *Image) CreateSnapshot(ctx context.Context, opt SnapshotOptions) (Snapshot, error) {
	if opt.Name == "" || len(opt.Name) > maxSnapshotName || !utf8.ValidString(opt.Name) || hasNUL(opt.Name) {
		return Snapshot{}, fmt.Errorf("qcow2: %w", invalid("name", "must be 1 to %d bytes of UTF-8, without NUL", maxSnapshotName))
	}
	if i.info.HasDataFile {
		return Snapshot{}, unsupported("a snapshot of an image with an external data file")
	}
	if opt.Date.IsZero() {
		opt.Date = time.Now()
	}
	s := Snapshot{Name: opt.Name, Date: opt.Date.UTC(), ICount: -1}
	err := i.quiesced(ctx, func(w *writer) error { return w.takeSnapshot(ctx, &s) })
	return s, err
}

func hasNUL(s string) bool {
	for k := range len(s) {
		if s[k] == 0 {
			return true
		}
	}
	return false
}

// takeSnapshot does it: the new tables first, then the references, and last the
// header, which names the snapshot.
func (w *writer) takeSnapshot(ctx context.Context, s *Snapshot) error {
	all, err := w.Snapshots(ctx)
	if err != nil {
		return err
	}
	table, _, err := w.findSnapshot(ctx, "")
	if err != nil {
		return err
	}
	s.ID, s.DiskSize = nextID(all), w.Size()
	if len(all) >= maxSnapshots || len(table)+snapshotHeaderSize+knownExtra+len(s.ID)+len(s.Name)+7 > maxSnapshotTable {
		return unsupported("more than %d snapshots, or %d bytes of them", maxSnapshots, maxSnapshotTable)
	}
	from := w.active()
	to := tree{writer: w, entries: from.entries}
	clusters := max(from.l1Clusters(), 1)
	if to.at, err = w.allocMetadata(ctx, clusters, metaSnapshots); err != nil {
		return err
	}
	if err := from.copyL1(ctx, to.at, clusters, metaSnapshots, l2Copied); err != nil {
		return w.dropping(ctx, err, to.at, clusters, metaSnapshots)
	}
	grown := append(table, encodeSnapshot(s, &to)...)
	at, err := w.storeTable(ctx, grown)
	if err != nil {
		return w.dropping(ctx, err, to.at, clusters, metaSnapshots)
	}
	if err := w.linkSnapshot(ctx, at, uint32(len(all)+1), len(table)); err != nil {
		err = w.dropping(ctx, err, at, ceilDiv(int64(len(grown)), w.clusterSize()), metaSnapshots)
		return w.dropping(ctx, err, to.at, clusters, metaSnapshots)
	}
	return w.writeBack(ctx)
}

// linkSnapshot adds the references of a new snapshot, and makes the header name
// the table at the offset. On an error nothing refers to the table.
func (w *writer) linkSnapshot(ctx context.Context, at hostOffset, count uint32, oldBytes int) error {
	if err := w.writeBack(ctx); err != nil { // the refcounts of the new tables
		return err
	}
	clean, err := w.doubtful(ctx)
	if err != nil {
		return err
	}
	t := w.active()
	err = w.share(ctx)
	if err == nil {
		err = t.raiseAll(ctx)
	}
	if err != nil {
		return w.unlink(ctx, err, clean)
	}
	if err = w.writeBack(ctx); err == nil {
		err = w.useTable(ctx, at, count, oldBytes)
	}
	if err != nil {
		if w.failure.Load() == nil {
			err = t.lowerFirst(ctx, -1, err)
		}
		return w.unlink(ctx, err, clean)
	}
	return clean()
}

// unlink undoes what share did, after an error, as far as that is possible.
func (w *writer) unlink(ctx context.Context, cause error, clean func() error) error {
	if w.failure.Load() != nil {
		return cause
	}
	ctx = context.WithoutCancel(ctx)
	err := w.unshare(ctx)
	if err == nil {
		err = clean()
	}
	if err != nil {
		return fmt.Errorf("%w; and the image stays marked dirty: %w", cause, err)
	}
	return cause
}
