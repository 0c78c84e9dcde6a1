package service

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/raw"
)

// RawDriver opens raw images.
func RawDriver() Driver {
	return Driver{
		Extensions: []string{".raw", ".img"},
		Open: func(ctx context.Context, node *storage.Node, _ DriverOptions) (Layer, error) {
			i, err := raw.New(ctx, node)
			if err != nil {
				return Layer{}, err
			}
			return Layer{Mapper: i}, nil
		},
		Create: createRaw,
	}
}

// createRaw sets the size, and reserves storage if that is asked for.
func createRaw(ctx context.Context, node *storage.Node, opt CreateOptions) error {
	if err := checkRaw(&opt.CreateRequest); err != nil {
		return err
	}
	if err := node.Truncate(ctx, opt.Size); err != nil {
		return err
	}
	l, err := node.Limits(ctx)
	if err != nil {
		return err
	}
	const piece = 4 << 20
	most := min(piece, l.MaxData)
	var fill func(off, n int64) error
	switch opt.Preallocation {
	case "falloc":
		most = l.MaxZero
		fill = func(off, n int64) error { return node.Zero(ctx, off, n, true) }
	case "full":
		zeros := make([]byte, min(most, opt.Size))
		fill = func(off, n int64) error {
			_, err := node.WriteAt(ctx, zeros[:n], off)
			return err
		}
	default:
		return nil
	}
	for off := int64(0); off < opt.Size; off += most {
		if err := fill(off, min(most, opt.Size-off)); err != nil {
			return err
		}
	}
	return nil
}

// checkRaw refuses what a raw image does not have.
func checkRaw(r *CreateRequest) error {
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"cluster_size", r.ClusterSize != 0},
		{"refcount_bits", r.RefcountBits != 0},
		{"compat", r.Compat != ""},
		{"compression_type", r.CompressionType != ""},
		{"backing", r.Backing != ""},
		{"backing_format", r.BackingFormat != ""},
		{"data_file", r.DataFile != ""},
		{"data_file_raw", r.DataFileRaw},
		{"extended_l2", r.ExtendedL2},
		{"lazy_refcounts", r.LazyRefcounts},
	} {
		if f.given {
			return &storage.InvalidError{Field: f.name, Detail: "is not for format raw"}
		}
	}
	switch r.Preallocation {
	case "", "off", "falloc", "full":
		return nil
	}
	return &storage.InvalidError{Field: "preallocation", Detail: fmt.Sprintf("is %q, must be off, falloc or full for format raw", r.Preallocation)}
}
