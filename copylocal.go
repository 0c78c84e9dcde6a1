package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"

	"github.com/extentd/extentd/client/transfer"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// A localDisk is a file that is opened without a server.
type localDisk struct {
	svc    *service.Service
	handle *service.Handle
	device *block.Device
	limits transfer.Limits
	path   string
	tag    string
	loose  bool // it may change
}

// openLocal opens a file for reading.
func openLocal(ctx context.Context, path, format string, backingDirs []string, loose bool) (*localDisk, error) {
	return openDisk(ctx, path, format, backingDirs, loose, (*service.Service).Acquire)
}

// openLocalWritable opens a file for writing.
func openLocalWritable(ctx context.Context, path, format string) (*localDisk, error) {
	return openDisk(ctx, path, format, nil, true, (*service.Service).AcquireWritable)
}

func openDisk(ctx context.Context, path, format string, backingDirs []string, loose bool,
	acquire func(*service.Service, context.Context, string) (*service.Handle, error),
) (*localDisk, error) {
	f := localFlags{format: format, backingDirs: backingDirs}
	opt, err := f.fileOptions(path)
	if err != nil {
		return nil, err
	}
	opt.Recheck = -1 // whether it has changed is asked for a reason
	d := &localDisk{path: path, loose: loose}
	if d.svc, err = service.New(opt); err != nil {
		return nil, err
	}
	if d.handle, err = acquire(d.svc, ctx, localImage); err != nil {
		return nil, errors.Join(err, d.svc.Close())
	}
	d.device, d.tag = d.handle.Device(), d.handle.DataGeneration()
	limits, err := d.device.Limits(ctx)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.limits = transfer.Limits{Minimum: limits.Minimum, Preferred: limits.Preferred}
	if units := d.device.Units(); !units.Fixed && units.Alloc > 1 {
		d.limits.Hole = min(units.Alloc, transfer.Block)
	}
	return d, nil
}

// Size is what a guest sees, bytes.
func (d *localDisk) Size() int64 { return d.device.Size() }

// Limits are the device's.
func (d *localDisk) Limits() transfer.Limits { return d.limits }

// Extents walks the map.
func (d *localDisk) Extents(ctx context.Context, off, n int64) iter.Seq2[transfer.Extent, error] {
	return func(yield func(transfer.Extent, error) bool) {
		for m, err := range d.device.Walk(ctx, off, n, block.WalkOptions{}) {
			if err != nil {
				yield(transfer.Extent{}, d.failed("map", err))
				return
			}
			m.Clip(off, off+n)
			if !yield(transfer.Extent{Offset: m.Offset, Length: m.Length, Zero: m.Status.Has(storage.Zero)}, nil) {
				return
			}
		}
	}
}

// ReadAt reads what a guest would.
func (d *localDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.failed("read", d.device.ReadAt(ctx, p, off))
}

// Unchanged looks at the files.
func (d *localDisk) Unchanged(ctx context.Context) error {
	if d.loose {
		return nil
	}
	h, err := d.svc.Acquire(ctx, localImage)
	if err != nil {
		return d.failed("look at it again", err)
	}
	defer h.Release()
	if h.DataGeneration() != d.tag {
		return d.failed("read", transfer.ErrChanged)
	}
	return nil
}

// WriteAt writes p at off.
func (d *localDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.failed("write", d.device.WriteAt(ctx, p, off))
}

// Zero gives storage back where that is possible.
func (d *localDisk) Zero(ctx context.Context, off, n int64) error {
	return d.failed("zero", d.device.Zero(ctx, off, n, false))
}

// Flush makes everything durable.
func (d *localDisk) Flush(ctx context.Context) error { return d.failed("flush", d.device.Flush(ctx)) }

func (d *localDisk) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s: %w", d.path, what, err)
}

func (d *localDisk) endpoint() transfer.Endpoint {
	return transfer.Endpoint{Name: absolute(d.path), Format: d.handle.LayerFormat(0), Size: d.Size(), Tag: d.tag}
}

func (d *localDisk) close() error {
	d.handle.Release()
	if err := d.svc.Close(); err != nil {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	return nil
}

// absolute is a path that means the same in every directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
