package service

import (
	"context"

	"github.com/extentd/extentd/storage/qcow2"
)

// qcow2Snapshots are the internal snapshots of a qcow2 image.
type qcow2Snapshots struct{ i *qcow2.Image }

var _ SnapshotKeeper = qcow2Snapshots{}

func snapshotOf(s *qcow2.Snapshot) Snapshot {
	return Snapshot{
		ID: s.ID, Name: s.Name, Created: s.Date, Size: s.DiskSize, VMStateSize: s.VMStateSize, VMClock: s.VMClock, ICount: s.ICount,
	}
}

func (q qcow2Snapshots) List(ctx context.Context) ([]Snapshot, error) {
	all, err := q.i.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Snapshot, len(all))
	for n := range all {
		list[n] = snapshotOf(&all[n])
	}
	return list, nil
}

func (q qcow2Snapshots) Create(ctx context.Context, name string) (Snapshot, error) {
	s, err := q.i.CreateSnapshot(ctx, qcow2.SnapshotOptions{Name: name})
	return snapshotOf(&s), err
}

func (q qcow2Snapshots) Delete(ctx context.Context, id string) error {
	return q.i.DeleteSnapshot(ctx, id)
}

func (q qcow2Snapshots) Revert(ctx context.Context, id string) error { return q.i.RevertTo(ctx, id) }

func (q qcow2Snapshots) Open(ctx context.Context, id string, cacheSize int64) (SnapshotMapper, error) {
	m, err := q.i.OpenSnapshot(ctx, id, cacheSize)
	if err != nil {
		return nil, err // not a nil in an interface
	}
	return m, nil
}
