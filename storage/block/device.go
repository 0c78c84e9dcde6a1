// Package block composes I/O over mappers: it resolves a chain of layers into
// one map, and reads what the map says, for every format in one place.
//
// A resolved map is exact at the time of the fetch. A read of several pieces is
// not a snapshot: each piece is as of its own time. No lock is held while data
// is read, and nothing is allocated for each extent or block.
package block

import (
	"context"
	"fmt"
	"sync"

	"github.com/extentd/extentd/storage"
)

// Options configure a device. The zero value is what a server uses.
type Options struct {
	// Nodes are the nodes that the layers' bytes lie in. Their limits bind
	// the device's. Default: none, every limit is its default.
	Nodes []*storage.Node
	// UnpackedCache bounds the memory, in bytes, that keeps decompressed
	// clusters for small reads. Default: 16 MiB; it holds at least one.
	UnpackedCache int64
	// Check verifies every fetch of every layer against the vocabulary's
	// truth tables. Default: false.
	Check bool
}

const defaultUnpackedCache = 16 << 20

// A Device is a chain of layers, the top first, each the backing of the one
// before. It reads. Safe for concurrent use.
type Device struct {
	layers   []layer
	nodes    []*storage.Node
	top      storage.Limiter // of the top layer, nil where it leaves all to the defaults
	cipher   string          // what encrypts a layer, "" for nothing
	units    *unitCache
	cursors  sync.Pool // of *cursor
	packed   sync.Pool // of *[]byte, packed bytes on their way to an unpacker
	limitsMu sync.Mutex
	limits   *storage.Limits // nil until asked for; guarded by limitsMu
}

// layer is a mapper and the optional abilities that were asserted on it once.
type layer struct {
	storage.Mapper
	size     int64
	unpacker storage.Unpacker
	direct   director
	prealloc preallocated
}

// An encryptor is a mapper that knows whether its data is cipher text.
type encryptor interface {
	Encryption() string // "" for none
}

// A director is a mapper whose guest offsets are node offsets, so that reading
// needs no map.
type director interface {
	Direct(off, n int64) (node *storage.Node, nodeOffset int64, ok bool)
}

// A preallocated mapper may have reserved clusters that its file has not:
// a map then looks through to the file, as QEMU does.
type preallocated interface {
	LooksPreallocated(ctx context.Context) (bool, error)
}

// New returns a device over the layers, which it does not close. There must be
// at least one.
func New(layers []storage.Mapper, opt Options) (*Device, error) {
	if len(layers) == 0 {
		return nil, fmt.Errorf("block: %w: a device without layers", storage.ErrContract)
	}
	d := &Device{nodes: opt.Nodes}
	d.top, _ = layers[0].(storage.Limiter)
	for _, m := range layers {
		l := layer{Mapper: m, size: m.Size()}
		if l.size < 0 || l.size > storage.MaxSize {
			return nil, fmt.Errorf("block: %w: size %d", storage.ErrContract, l.size)
		}
		l.unpacker, _ = m.(storage.Unpacker)
		l.direct, _ = m.(director)
		l.prealloc, _ = m.(preallocated)
		if e, ok := m.(encryptor); ok && d.cipher == "" {
			d.cipher = e.Encryption()
		}
		if opt.Check {
			l.Mapper = storage.CheckMapper(m)
		}
		d.layers = append(d.layers, l)
	}
	if opt.UnpackedCache == 0 {
		opt.UnpackedCache = defaultUnpackedCache
	}
	d.units = newUnitCache(opt.UnpackedCache)
	d.cursors.New = func() any { return newCursor(d) }
	d.packed.New = func() any { return new([]byte) }
	return d, nil
}

// Size is the virtual size in bytes: the top layer's.
func (d *Device) Size() int64 { return d.layers[0].size }

// Depth is the number of layers.
func (d *Device) Depth() int { return len(d.layers) }

// Limits are the strictest of the nodes' limits, with the preferred size of
// the top layer. Asked for at the first call and kept.
func (d *Device) Limits(ctx context.Context) (storage.Limits, error) {
	d.limitsMu.Lock()
	defer d.limitsMu.Unlock()
	if d.limits != nil {
		return *d.limits, nil
	}
	l, err := storage.ResolveLimits(ctx, d.top)
	if err != nil {
		return l, fmt.Errorf("block: %w", err)
	}
	for _, node := range d.nodes {
		below, err := node.Limits(ctx)
		if err != nil {
			return l, err
		}
		l.Minimum = max(l.Minimum, below.Minimum)
		l.Preferred = max(l.Preferred, below.Preferred)
		l.MaxData = min(l.MaxData, below.MaxData)
		l.MaxTrim = min(l.MaxTrim, below.MaxTrim)
		l.MaxZero = min(l.MaxZero, below.MaxZero)
		l.MaxCache = min(l.MaxCache, below.MaxCache)
	}
	if l, err = l.Complete(); err != nil {
		return l, fmt.Errorf("block: %w", err)
	}
	d.limits = &l
	return l, nil
}

// Check reports whether [off, off+n) may be read: inside the size, a multiple of
// the minimum but for the image's end, and of an image that is not encrypted
// (else the error wraps storage.ErrUnsupported). Nothing below is asked.
func (d *Device) Check(ctx context.Context, off, n int64) error {
	if d.cipher != "" {
		return fmt.Errorf("block: %w: reading an image that is encrypted (%s)", storage.ErrUnsupported, d.cipher)
	}
	if err := storage.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	l, err := d.Limits(ctx)
	if err != nil {
		return err
	}
	return l.CheckAlignment(off, n, d.Size())
}
