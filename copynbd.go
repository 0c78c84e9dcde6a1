package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"

	"github.com/extentd/extentd/client/transfer"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
)

// How much is asked of a server at a time, bytes.
const (
	nbdPreferred = 2 << 20
	nbdHole      = 64 << 10
	nbdWindow    = 4 << 30 // of a map
)

// An nbdDisk is an export, as a source or a target, which is written in place.
type nbdDisk struct {
	f      *copyFlags
	uri    string
	node   *storage.Node // nil until it is open
	size   int64
	limits storage.Limits
}

func (f *copyFlags) openNBDSource(ctx context.Context, uri string) (copySource, error) {
	d := &nbdDisk{f: f, uri: uri}
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

func (f *copyFlags) planNBDTarget(uri string) (copyTarget, error) {
	if f.targetFormat != "" && f.targetFormat != "raw" || len(f.options) > 0 {
		return nil, fmt.Errorf("%s: an NBD export has no format, and no options", nbd.Name(uri))
	}
	return &nbdDisk{f: f, uri: uri}, nil
}

// open makes the first connection.
func (d *nbdDisk) open(ctx context.Context) error {
	opt := nbd.Options{URI: d.uri, Connections: d.f.connections}
	var err error
	if opt.TLS, err = d.f.tls(d.uri); err != nil {
		return err
	}
	f, err := nbd.Open(ctx, opt)
	if err != nil {
		return err
	}
	d.node = storage.NewNode(nbd.Name(d.uri), f, storage.NodeOptions{})
	d.limits, err = d.node.Limits(ctx)
	if err == nil {
		d.size, err = d.node.Size(ctx)
	}
	return err
}

// Size is the export's, bytes.
func (d *nbdDisk) Size() int64 { return d.size }

// Limits are made of the export's.
func (d *nbdDisk) Limits() transfer.Limits {
	return transfer.Limits{
		Minimum:   d.limits.Minimum,
		Preferred: min(max(nbdPreferred, d.limits.Preferred), max(d.limits.MaxData, transfer.Block)),
		Hole:      max(nbdHole, d.limits.Minimum),
	}
}

// Extents asks for the map in windows.
func (d *nbdDisk) Extents(ctx context.Context, off, n int64) iter.Seq2[transfer.Extent, error] {
	return func(yield func(transfer.Extent, error) bool) {
		var list storage.ExtentList
		for end := off + n; off < end; {
			window := min(end-off, nbdWindow)
			list.ResetWindow(off, off+window)
			if err := d.node.Extents(ctx, off, window, &list); err != nil {
				yield(transfer.Extent{}, err)
				return
			}
			if list.Len() == 0 {
				yield(transfer.Extent{}, fmt.Errorf("%s: no extent at %d", d.node.Name(), off))
				return
			}
			for i := range list.Len() {
				m := *list.At(i)
				if m.Offset >= end {
					return
				}
				m.Clip(off, end)
				off = m.End()
				if !yield(transfer.Extent{Offset: m.Offset, Length: m.Length, Zero: m.Status.Has(storage.Zero)}, nil) {
					return
				}
			}
		}
	}
}

// ReadAt asks for what the server gives at a time.
func (d *nbdDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), d.limits.MaxData)
		if _, err := d.node.ReadAt(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Unchanged cannot be told: the protocol has no versions.
func (d *nbdDisk) Unchanged(context.Context) error { return nil }

// WriteAt sends what the server takes at a time.
func (d *nbdDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), d.limits.MaxData)
		if _, err := d.node.WriteAt(ctx, p[:n], off); err != nil {
			return lost(err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Zero has the server do it, which may give storage back.
func (d *nbdDisk) Zero(ctx context.Context, off, n int64) error {
	for n > 0 {
		part := min(n, d.limits.MaxZero)
		if err := d.node.Zero(ctx, off, part, false); err != nil {
			return lost(err)
		}
		off, n = off+part, n-part
	}
	return nil
}

// Flush makes everything durable.
func (d *nbdDisk) Flush(ctx context.Context) error { return lost(d.node.Flush(ctx)) }

// lost tells the copy to write again.
func lost(err error) error {
	if errors.Is(err, nbd.ErrLost) {
		return fmt.Errorf("%w: %w", transfer.ErrLost, err)
	}
	return err
}

func (d *nbdDisk) endpoint() transfer.Endpoint {
	return transfer.Endpoint{Name: d.uri, Size: d.size}
}

func (d *nbdDisk) stateFile() string { return "" }

func (d *nbdDisk) create(ctx context.Context, _ int64) error { return d.reuse(ctx) }

func (d *nbdDisk) reuse(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	return d.node.StartWriting(ctx)
}

func (d *nbdDisk) isZero() bool { return d.f.targetIsZero }

func (d *nbdDisk) reopen(context.Context) (copySource, error) { return borrowedNBD{d}, nil }

type borrowedNBD struct{ *nbdDisk }

func (borrowedNBD) close() error { return nil }

func (d *nbdDisk) finish(context.Context, bool) error { return nil }

func (d *nbdDisk) discard(context.Context) error { return nil }

func (d *nbdDisk) close() error {
	if d.node == nil {
		return nil
	}
	return d.node.Close()
}

// tls is how the server of an export is verified, and what is shown to it; nil
// where it does not speak TLS.
func (f *remoteFlags) tls(uri string) (*tls.Config, error) {
	if len(uri) < 4 || uri[:4] != "nbds" && uri[:4] != "NBDS" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if config.RootCAs, err = authorities(hostPath(f.ca)); err != nil {
		return nil, err
	}
	if f.cert == "" && f.key == "" {
		return config, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}
