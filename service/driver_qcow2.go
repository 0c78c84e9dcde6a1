package service

import (
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// QCOW2Driver opens qcow2 images.
func QCOW2Driver() Driver {
	return Driver{
		Extensions: []string{".qcow2"},
		Children:   true,
		Open: func(ctx context.Context, node *storage.Node, opt DriverOptions) (Layer, error) {
			i, err := qcow2.Open(ctx, node, qcow2.Options{OpenData: opt.OpenData, CacheSize: opt.CacheSize})
			if err != nil {
				return Layer{}, err
			}
			info := i.Info()
			return Layer{
				Mapper:        i,
				Backing:       info.BackingFile,
				BackingFormat: info.BackingFormat,
				ClusterSize:   info.ClusterSize,
				Describe:      func(ctx context.Context) (*QCOW2, error) { return describe(ctx, i) },
			}, nil
		},
	}
}

// describe reads what is particular to the image.
func describe(ctx context.Context, i *qcow2.Image) (*QCOW2, error) {
	info := i.Info()
	q := &QCOW2{
		Version:         info.Version,
		ClusterSize:     info.ClusterSize,
		RefcountBits:    info.RefcountBits,
		CompressionType: info.CompressionType,
		ExtendedL2:      info.ExtendedL2,
		LazyRefcounts:   info.LazyRefcounts,
		Dirty:           info.Dirty,
		Corrupt:         info.Corrupt,
		DataFile:        info.DataFile,
		DataFileRaw:     info.DataFileRaw,
		Encryption:      info.Encryption,
	}
	snapshots, err := i.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		q.Snapshots = append(q.Snapshots, Snapshot{
			ID: s.ID, Name: s.Name, Created: s.Date, Size: s.DiskSize, VMStateSize: s.VMStateSize, VMClock: s.VMClock, ICount: s.ICount,
		})
	}
	bitmaps, err := i.Bitmaps(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range bitmaps {
		q.Bitmaps = append(q.Bitmaps, Bitmap{Name: b.Name, Granularity: b.Granularity, Enabled: b.Auto, InUse: b.InUse})
	}
	return q, nil
}
