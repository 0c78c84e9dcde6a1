package blocksize

import (
	"context"
	"sync"

	"github.com/extentd/extentd/storage"
)

// A buffer holds the largest block that a node may have.
type buffer [64 << 10]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// smallSpan is the longest span that goes through a buffer in one piece, where its
// blocks are no longer: to copy so much costs less than to ask twice more.
const smallSpan = 32 << 10

// A geometry is what the next node takes, bytes.
type geometry struct {
	block  int64 // its minimum
	most   int64 // its max_data
	bounce int64 // the longest span that goes through a buffer in one piece
}

func (f *Filter) geometry(ctx context.Context) (geometry, error) {
	most, err := f.next.Limit(ctx, storage.MaxData)
	if err != nil {
		return geometry{}, err
	}
	block, err := f.next.Limit(ctx, storage.Minimum)
	if err != nil {
		return geometry{}, err
	}
	return geometry{block: block, most: most, bounce: min(most, max(smallSpan, block))}, nil
}

// down is the beginning of the block of off.
func (g geometry) down(off int64) int64 { return off &^ (g.block - 1) }

// up is the end of the block before off.
func (g geometry) up(off int64) int64 { return (off + g.block - 1) &^ (g.block - 1) }

// whole reports whether [off, off+n) consists of whole blocks.
func (g geometry) whole(off, n int64) bool { return (off|n)&(g.block-1) == 0 }

// piece is how much of [off, off+n) comes next, and whether the node takes that
// as it is; otherwise it goes through a buffer.
func (g geometry) piece(off, n int64) (length int64, direct bool) {
	switch head := off - g.down(off); {
	case g.whole(off, n):
		return min(n, g.most), true
	case g.up(head+n) <= g.bounce:
		return n, false
	case head != 0:
		return g.block - head, false
	default:
		return min(g.down(n), g.most), true
	}
}
