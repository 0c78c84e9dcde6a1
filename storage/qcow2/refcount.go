package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// maxRefcountBytes limits how much of the refcount blocks is read to find out
// whether an image looks preallocated: enough for 32 TiB at the default cluster
// size and width. A hostile table has a million blocks of 2 MiB.
const maxRefcountBytes = 1 << 30

// A preallocation is what LooksPreallocated has found.
type preallocation struct {
	turn  chan struct{} // of one: who has it finds out
	known atomic.Bool   // stored last
	looks bool
}

// LooksPreallocated reports whether the image has many more clusters in use
// than its file has storage for, as with preallocation=metadata: a map must
// then look through data clusters to what the file says. It is QEMU's
// qcow2_detect_metadata_preallocation. The first call reads refcounts, unless
// the file is too full for it to be true; the answer is kept. Without an
// Allocated ability of the node's file, and where refcounts are malformed, it
// is false.
func (i *Image) LooksPreallocated(ctx context.Context) (bool, error) {
	if err := i.checkOpen(); err != nil {
		return false, err
	}
	p := &i.prealloc
	if p.known.Load() {
		return p.looks, nil
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if p.known.Load() {
		return p.looks, nil
	}
	looks, err := i.detectPreallocation(ctx)
	if err != nil && !errors.Is(err, storage.ErrCorrupt) {
		return false, err
	}
	p.looks = looks && err == nil
	p.known.Store(true)
	return p.looks, nil
}

func (i *Image) detectPreallocation(ctx context.Context) (bool, error) {
	file, ok := i.node.File().(interface {
		Allocated(ctx context.Context) (int64, error)
	})
	if !ok {
		return false, nil
	}
	size, err := i.node.Size(ctx)
	if err != nil {
		return false, fmt.Errorf("qcow2: %w", err)
	}
	allocated, err := file.Allocated(ctx)
	if err != nil {
		return false, fmt.Errorf("qcow2: %w", err)
	}
	held, clusters := allocated>>i.clusterBits, ceilDiv(size, i.clusterSize())
	threshold := max(held+held/9, held+2)
	if clusters < threshold {
		return false, nil
	}
	used, err := i.countUsed(ctx, clusters, threshold)
	return used >= threshold, err
}

// countUsed counts the first clusters that have a refcount, up to enough.
func (i *Image) countUsed(ctx context.Context, clusters, enough int64) (int64, error) {
	h := &i.state.Load().header
	perBlock := int64(1) << (h.clusterBits + 3 - h.refcountOrder)
	blocks := min(ceilDiv(clusters, perBlock), int64(h.refcountTableClusters)<<(h.clusterBits-3))
	table := window{source: i.src}
	var used, read int64
	for number := int64(0); number < blocks && used < enough && read < maxRefcountBytes; number++ {
		b, err := table.at(ctx, hostOffset(h.refcountTableOffset), number*8, 8)
		if err != nil {
			return used, fmt.Errorf("qcow2: refcount table at %#x: %w", h.refcountTableOffset, err)
		}
		at := hostOffset(binary.BigEndian.Uint64(b) &^ 511)
		if at == 0 {
			continue
		}
		if int64(at)&(i.clusterSize()-1) != 0 {
			return used, corrupt("refcount table at %#x: entry %d is %#x: the offset must be a multiple of the cluster size %d",
				h.refcountTableOffset, number, uint64(at), i.clusterSize())
		}
		n, err := i.countBlock(ctx, at, min(perBlock, clusters-number*perBlock))
		if err != nil {
			return used, fmt.Errorf("qcow2: refcount block at %#x: %w", int64(at), err)
		}
		used += n
		read += i.clusterSize()
	}
	return used, nil
}

// countBlock counts the first n refcounts in the block at the offset that are
// not 0.
func (i *Image) countBlock(ctx context.Context, at hostOffset, n int64) (int64, error) {
	buf := i.reads.Get().(*[]byte)
	defer i.reads.Put(buf)
	var used int64
	order := i.state.Load().header.refcountOrder
	inPiece := i.pieceSize << 3 >> order
	for ; n > 0; n -= inPiece {
		if err := i.src.read(ctx, *buf, at); err != nil {
			return 0, err
		}
		used += countRefcounts(*buf, order, int(min(n, inPiece)))
		at += hostOffset(i.pieceSize)
	}
	return used, nil
}

// countRefcounts is how many of the first n refcounts in b, 1<<order bits wide,
// are not 0.
func countRefcounts(b []byte, order uint32, n int) int64 {
	var used int64
	for k := range n {
		if refcount(b, order, k) != 0 {
			used++
		}
	}
	return used
}

// refcount is entry k of a refcount block with entries of 1<<order bits. Those
// smaller than a byte begin at its least significant bit.
func refcount(b []byte, order uint32, k int) uint64 {
	switch order {
	case 3:
		return uint64(b[k])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[2*k:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[4*k:]))
	case 6:
		return binary.BigEndian.Uint64(b[8*k:])
	}
	bit := k << order
	return uint64(b[bit>>3]) >> (bit & 7) & (1<<(1<<order) - 1)
}
