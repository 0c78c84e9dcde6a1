// Package block composes I/O over mappers: it resolves a chain of layers into
// one map, reads what the map says, and writes by reserving, filling and mapping
// blocks, for every format in one place.
//
// A resolved map is exact at the time of the fetch. A read of several pieces is
// not a snapshot: each piece is as of its own time, and of each block it sees
// either all or nothing of an update of the map; a write in place is no more
// atomic than the node's. No lock is held while data is read, writes of
// different blocks go on side by side, and nothing is allocated for each extent
// or block.
package block

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// Options configure a device. The zero value is what a server uses.
type Options struct {
	// Nodes are the nodes that the layers' bytes lie in. Their limits bind
	// the device's. Default: none, every limit is its default.
	Nodes []*storage.Node
	// UnpackedCache bounds the memory, in bytes, that keeps decompressed
	// clusters for small reads. Default: 16 MiB; it holds at least one.
	UnpackedCache int64
	// Unpacking bounds what reads hold while they decompress clusters, beside
	// what is kept. Default: no bound.
	Unpacking Memory
	// Check verifies every fetch of every layer against the vocabulary's
	// truth tables. Default: false.
	Check bool
	// Moving: the blocks of the layers may be freed and used for something else at
	// any time, unless they are pinned, as those of a device that is written to.
	// Default: not before StartWriting.
	Moving bool
	// Changing is called right before the first effect of every mutation, and
	// again after its last, also when it failed. mapping tells that the map may
	// have changed too. Concurrent. Default: nobody is told.
	Changing func(mapping bool)
}

const defaultUnpackedCache = 16 << 20

// A Device is a chain of layers, the top first, each the backing of the one
// before. It reads, and after [Device.StartWriting] it writes to the top layer.
// Safe for concurrent use.
type Device struct {
	layers  []layer
	nodes   []*storage.Node
	top     storage.Limiter // of the top layer, nil where it leaves all to the defaults
	cipher  string          // what encrypts a layer, "" for nothing
	size    atomic.Int64    // of the top layer: as of the last resize that succeeded
	units   *unitCache
	cursors sync.Pool // of *cursor
	packed  sync.Pool // of *[]byte, packed bytes on their way to an unpacker
	unpacks unpacking

	limits   atomic.Pointer[limits] // nil until asked for
	limitsMu sync.Mutex             // held while they are

	writable atomic.Bool            // stored once, after mapper and granule
	mapper   storage.WritableMapper // the top layer; nil where it cannot be written to
	resizer  storage.Resizer        // likewise
	recorder storage.Recorder       // likewise: it is told of every write
	granule  storage.Units          // the top layer's
	startMu  sync.Mutex             // held by StartWriting
	locks    rangelock.Lock         // on the guest's ranges
	writers  sync.Pool              // of *writer
	claims   claims
	changing func(mapping bool) // Options.Changing, or nil
	moving   bool               // Options.Moving
	seen     atomic.Bool        // a map has looked through the top layer: bytes written in place may change it
}

// layer is a mapper and the optional abilities that were asserted on it once.
type layer struct {
	storage.Mapper
	size     int64 // of the top layer, when it was opened
	unpacker storage.Unpacker
	direct   director
	prealloc preallocated
	pinner   storage.Pinner
}

// plain is what a layer says of bytes that can be read, and where it may be
// written to, overwritten, as they stand.
const plain = storage.Local | storage.Alloc | storage.OffsetValid

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
	d := &Device{nodes: opt.Nodes, changing: opt.Changing, moving: opt.Moving, unpacks: unpacking{opt.Unpacking}}
	d.top, _ = layers[0].(storage.Limiter)
	d.mapper, _ = layers[0].(storage.WritableMapper)
	d.resizer, _ = layers[0].(storage.Resizer)
	d.recorder, _ = layers[0].(storage.Recorder)
	for _, m := range layers {
		l := layer{Mapper: m, size: m.Size()}
		if l.size < 0 || l.size > storage.MaxSize {
			return nil, fmt.Errorf("block: %w: size %d", storage.ErrContract, l.size)
		}
		l.unpacker, _ = m.(storage.Unpacker)
		l.direct, _ = m.(director)
		l.prealloc, _ = m.(preallocated)
		l.pinner, _ = m.(storage.Pinner)
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
	d.size.Store(d.layers[0].size)
	d.units = newUnitCache(opt.UnpackedCache)
	d.cursors.New = func() any { return newCursor(d) }
	d.packed.New = func() any { return new([]byte) }
	d.writers.New = func() any { return &writer{d: d} }
	return d, nil
}

// Size is the virtual size in bytes: the top layer's.
func (d *Device) Size() int64 { return d.size.Load() }

// UnpackedStats counts how often a small read found its compressed unit unpacked,
// and how often it had to unpack it.
func (d *Device) UnpackedStats() (hits, misses uint64) { return d.units.stats() }

// Depth is the number of layers.
func (d *Device) Depth() int { return len(d.layers) }

// limits are those that clients are told of, and those that bind.
type limits struct{ told, bound storage.Limits }

// Limits are the strictest of those that the nodes advertise, with the preferred
// size of the top layer. Asked for at the first call and kept.
func (d *Device) Limits(ctx context.Context) (storage.Limits, error) {
	l, err := d.allLimits(ctx)
	if err != nil {
		return storage.Limits{}, err
	}
	return l.told, nil
}

func (d *Device) allLimits(ctx context.Context) (*limits, error) {
	if l := d.limits.Load(); l != nil {
		return l, nil
	}
	d.limitsMu.Lock()
	defer d.limitsMu.Unlock()
	if l := d.limits.Load(); l != nil {
		return l, nil
	}
	var l limits
	var err error
	if l.told, err = d.strictest(ctx, (*storage.Node).Advertised); err != nil {
		return nil, err
	}
	if l.bound, err = d.strictest(ctx, (*storage.Node).Limits); err != nil {
		return nil, err
	}
	d.limits.Store(&l)
	return &l, nil
}

// strictest composes the limits of all nodes.
func (d *Device) strictest(ctx context.Context, of func(*storage.Node, context.Context) (storage.Limits, error)) (storage.Limits, error) {
	l, err := storage.ResolveLimits(ctx, d.top)
	if err != nil {
		return l, fmt.Errorf("block: %w", err)
	}
	for _, node := range d.nodes {
		below, err := of(node, ctx)
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
	// What one node prefers may be more than another takes.
	l.Preferred = min(l.Preferred, int64(1)<<(bits.Len64(uint64(l.MaxData))-1))
	if l, err = l.Complete(); err != nil {
		return l, fmt.Errorf("block: %w", err)
	}
	return l, nil
}

// Check reports whether [off, off+n) may be read: inside the size, a multiple of
// the minimum but for the image's end, and of an image that is not encrypted
// (else the error wraps storage.ErrUnsupported). Nothing below is asked.
func (d *Device) Check(ctx context.Context, off, n int64) error {
	return d.check(ctx, "reading", off, n)
}

func (d *Device) check(ctx context.Context, doing string, off, n int64) error {
	if d.cipher != "" {
		return fmt.Errorf("block: %w: %s an image that is encrypted (%s)", storage.ErrUnsupported, doing, d.cipher)
	}
	size := d.Size()
	if err := storage.CheckRange(off, n, size); err != nil {
		return err
	}
	l, err := d.allLimits(ctx)
	if err != nil {
		return err
	}
	return l.bound.CheckAlignment(off, n, size)
}
