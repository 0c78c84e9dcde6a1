package qcow2

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/codec"
)

// Options configure an image.
type Options struct {
	// OpenData opens the external data file by the name that the image stores,
	// "" where it stores none. The node stays the caller's to close. Default:
	// an image with an external data file is refused with
	// [storage.ErrBackingUnavailable].
	OpenData func(ctx context.Context, name string) (*storage.Node, error)
	// CacheSize is how much of the L1 and L2 tables is kept, bytes. Default:
	// 32 MiB. No more is taken than the image needs, and no less than for a
	// few slices of 4 KiB.
	CacheSize int64
	// Backed: the image lies over a backing even if it stores the name of
	// none. What is discarded must not show it. Default: what the image says.
	Backed bool
}

// An Image is an open image, read-only until [Image.StartWriting]. It owns its
// metadata cache, and neither the node nor the data file. Safe for concurrent
// use.
type Image struct {
	geometry
	node *storage.Node // the image's file
	data *storage.Node // where data clusters are: node, or the external data file
	src  source
	info Info // as it was opened; of this, what cannot change may be used
	opt  Options

	size     atomic.Int64          // virtual, bytes, a multiple of 512
	l1Offset atomic.Int64          // where the L1 table is, a hostOffset
	state    atomic.Pointer[state] // what the header says now
	says     [clusterKinds]saying  // what Fetch says of a cluster
	l1Page   *cache                // of pages of the L1 table, by number
	l2       *cache                // of slices of L2 tables, by number: the guest offset of their first cluster, over what a slice maps
	reads    sync.Pool             // of *[]byte, one piece of a table each
	codec    codec.Codec
	hits     tally         // of l2, by fetches
	misses   atomic.Uint64 // pieces that were read

	prealloc preallocation
	closed   atomic.Bool

	starting sync.Mutex             // held while the image is made writable, and closed
	writer   atomic.Pointer[writer] // nil until then
	pins     pins
	views    views // of snapshots

	recording    atomic.Pointer[recording] // in enabled bitmaps; nil for none
	bitmapsMoved atomic.Uint64             // how often the bitmap directory was replaced
}

// A state is what the header and its extensions say. It never changes: what is
// written replaces it.
type state struct {
	header  header
	bitmaps bitmapsExtension
	info    Info
}

var (
	_ storage.Mapper   = (*Image)(nil)
	_ storage.Unpacker = (*Image)(nil)
)

// Open opens the image in node, which stays the caller's to close. What is
// malformed, or beyond QEMU's limits, fails with [storage.ErrCorrupt]; features
// and versions that are not known with [storage.ErrUnsupported]; an external
// data file that cannot be had with what OpenData says. Encrypted images are
// opened: their data cannot be read, everything else can.
func Open(ctx context.Context, node *storage.Node, opt Options) (*Image, error) {
	src, err := newSource(ctx, node)
	if err != nil {
		return nil, err
	}
	w := &window{source: src}
	s, err := readState(ctx, w)
	if err != nil {
		return nil, err
	}
	i := &Image{
		geometry: newGeometry(&s.header),
		node:     node,
		data:     node,
		src:      src,
		info:     s.info,
		opt:      opt,
	}
	i.apply(s)
	if err := i.checkDirectories(ctx, w); err != nil {
		return nil, err
	}
	if i.info.HasDataFile {
		if i.data, err = openData(ctx, opt, i.info.DataFile); err != nil {
			return nil, err
		}
	}
	i.start()
	return i, nil
}

// readState reads the header with its extensions.
func readState(ctx context.Context, w *window) (*state, error) {
	h, err := readHeader(ctx, w)
	if err != nil {
		return nil, err
	}
	ext, err := readExtensions(ctx, w, h)
	if err != nil {
		return nil, err
	}
	backing, err := readBackingName(ctx, w, h)
	if err != nil {
		return nil, err
	}
	return &state{header: *h, bitmaps: ext.bitmaps, info: newInfo(h, &ext, backing)}, nil
}

// apply makes s what everyone sees.
func (i *Image) apply(s *state) {
	before, size := i.state.Load(), int64(s.header.size)&^511
	if size < i.size.Load() { // who finds what is new must see that the rest is gone
		i.size.Store(size)
	}
	i.l1Offset.Store(int64(s.header.l1Offset))
	i.state.Store(s)
	if i.l1Page != nil && before.header.l1Offset != s.header.l1Offset {
		i.l1Page.clear()
		i.l2.clear()
	}
	i.size.Store(size) // what it grows by can be looked up
}

func readBackingName(ctx context.Context, w *window, h *header) (string, error) {
	if h.backingOffset == 0 {
		return "", nil
	}
	name, err := w.readString(ctx, hostOffset(h.backingOffset), int64(h.backingLength))
	if err != nil {
		return "", fmt.Errorf("qcow2: backing file name: %w", err)
	}
	return name, nil
}

// checkDirectories checks the snapshot table and the bitmap directory, and
// keeps nothing of them.
func (i *Image) checkDirectories(ctx context.Context, w *window) error {
	if err := i.walkSnapshots(ctx, w, nil); err != nil {
		return err
	}
	return i.walkBitmaps(ctx, w, nil)
}

func openData(ctx context.Context, opt Options, name string) (*storage.Node, error) {
	if opt.OpenData == nil {
		return nil, fmt.Errorf("qcow2: %w: the image needs its external data file %q", storage.ErrBackingUnavailable, name)
	}
	node, err := opt.OpenData(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("qcow2: external data file %q: %w", name, err)
	}
	if node == nil {
		return nil, fmt.Errorf("qcow2: %w: external data file %q", storage.ErrBackingUnavailable, name)
	}
	return node, nil
}

// defaultCacheSize is QEMU's default on Linux.
const defaultCacheSize = 32 << 20

// start makes what a fetch needs.
func (i *Image) start() {
	if i.opt.CacheSize <= 0 {
		i.opt.CacheSize = defaultCacheSize
	}
	i.says = i.sayings()
	i.prealloc.turn = make(chan struct{}, 1)
	i.reads.New = func() any {
		b := make([]byte, i.pieceSize)
		return &b
	}
	// A page of the L1 table maps as many bytes as 64 or more slices.
	most, size := i.opt.CacheSize/i.pieceSize, guestOffset(i.Size())
	i.l1Page = newCache(i.l1Pages(size), most/64, i.loadPage)
	i.l2 = newCache(i.slices(size), most-most/64, i.loadSlice)
	i.codec = codec.Deflate()
	if i.state.Load().header.compressionType == compressionZstd {
		i.codec = codec.Zstd()
	}
}

// Size is the virtual size in bytes, a multiple of 512: what the image says is
// rounded down, as QEMU does.
func (i *Image) Size() int64 { return i.size.Load() }

// Limit says that the cluster size is the best request size.
func (i *Image) Limit(_ context.Context, which storage.Limit) (int64, error) {
	if which != storage.Preferred {
		return 0, nil
	}
	return max(int64(1)<<i.clusterBits, 4096), nil // 2 MiB at most, as the limit
}

// Close makes every later call fail and drops the cache. What was written is
// made durable first, what was freed is freed on disk too, and the image is
// marked clean; where that fails the error says so, and the image on disk is as
// after a crash: consistent, with clusters that may have leaked. The nodes stay
// open.
func (i *Image) Close() error {
	i.starting.Lock()
	defer i.starting.Unlock()
	if i.closed.Swap(true) {
		return nil
	}
	var err error
	if w := i.writer.Load(); w != nil {
		err = w.close()
	}
	i.l1Page.clear()
	i.l2.clear()
	return err
}

func (i *Image) checkOpen() error {
	if i.closed.Load() {
		return fmt.Errorf("qcow2: %w", storage.ErrClosed)
	}
	return nil
}
