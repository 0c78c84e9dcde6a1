package service

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// QCOW2Driver opens qcow2 images.
func QCOW2Driver() Driver {
	return Driver{
		Extensions: []string{".qcow2"},
		Children:   true,
		Unaligned:  true,
		Open: func(ctx context.Context, node *storage.Node, opt DriverOptions) (Layer, error) {
			i, err := qcow2.Open(ctx, node, qcow2.Options{OpenData: opt.OpenData, Backed: opt.Backed, CacheSize: opt.CacheSize})
			if err != nil {
				return Layer{}, err
			}
			info := i.Info()
			return Layer{
				Mapper:        i,
				Backing:       info.BackingFile,
				BackingFormat: info.BackingFormat,
				ClusterSize:   info.ClusterSize,
				Snapshots:     qcow2Snapshots{i},
				Describe:      func(ctx context.Context) (*QCOW2, error) { return describe(ctx, i) },
				Check: func(ctx context.Context, repair string) (*CheckReport, error) {
					return reportOf(i.Check(ctx, qcow2.CheckOptions{Repair: repairOf(repair)}))
				},
			}, nil
		},
		Peek:   peekQCOW2,
		Create: createQCOW2,
		Check: func(ctx context.Context, node *storage.Node, opt CheckOptions) (*CheckReport, error) {
			return reportOf(qcow2.Check(ctx, node, qcow2.CheckOptions{Repair: repairOf(opt.Repair), OpenData: opt.OpenData}))
		},
	}
}

// peekQCOW2 opens the image without its data file.
func peekQCOW2(ctx context.Context, node *storage.Node) (Names, error) {
	var names Names
	i, err := qcow2.Open(ctx, node, qcow2.Options{
		CacheSize: 1, // the least
		OpenData: func(_ context.Context, name string) (*storage.Node, error) {
			names.DataFile = name
			return node, nil // it is not read from
		},
	})
	if err != nil {
		return Names{}, err
	}
	info := i.Info()
	names.Backing, names.BackingFormat = info.BackingFile, info.BackingFormat
	return names, i.Close() //nolint:contextcheck // closing takes no context
}

func createQCOW2(ctx context.Context, node *storage.Node, opt CreateOptions) error {
	version := 0
	switch opt.Compat {
	case "":
	case "1.1":
		version = 3
	case "0.10":
		version = 2
	default:
		return &storage.InvalidError{Field: "compat", Detail: fmt.Sprintf("is %q, must be 1.1 or 0.10", opt.Compat)}
	}
	return qcow2.Create(ctx, node, qcow2.CreateOptions{
		Size:            opt.Size,
		ClusterSize:     opt.ClusterSize,
		RefcountBits:    opt.RefcountBits,
		Version:         version,
		ExtendedL2:      opt.ExtendedL2,
		LazyRefcounts:   opt.LazyRefcounts,
		CompressionType: opt.CompressionType,
		Backing:         opt.BackingFile,
		BackingFormat:   opt.BackingFormat,
		DataFile:        opt.DataFile,
		DataNode:        opt.DataNode,
		DataFileRaw:     opt.DataFileRaw,
		Preallocation:   opt.Preallocation,
	})
}

func repairOf(repair string) qcow2.Repair {
	switch repair {
	case RepairLeaks:
		return qcow2.RepairLeaks
	case RepairAll:
		return qcow2.RepairAll
	}
	return qcow2.RepairNone
}

func reportOf(r qcow2.CheckResult, err error) (*CheckReport, error) {
	if err != nil {
		return nil, err
	}
	return &CheckReport{
		Corruptions:        r.Corruptions,
		Leaks:              r.Leaks,
		CorruptionsFixed:   r.CorruptionsFixed,
		LeaksFixed:         r.LeaksFixed,
		Errors:             r.Errors,
		ImageEnd:           r.ImageEnd,
		AllocatedClusters:  r.AllocatedClusters,
		TotalClusters:      r.TotalClusters,
		FragmentedClusters: r.FragmentedClusters,
		CompressedClusters: r.CompressedClusters,
	}, nil
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
	var err error
	if q.Snapshots, err = (qcow2Snapshots{i}).List(ctx); err != nil {
		return nil, err
	}
	if q.Bitmaps, err = i.BitmapDirectory(ctx); err != nil {
		return nil, err
	}
	return q, nil
}
