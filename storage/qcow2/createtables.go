package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// write writes the image: what the header refers to, a sync, the sector that
// says what it is, and a sync.
func (l *layout) write(ctx context.Context, o *CreateOptions, head []byte) error {
	node := l.src.node
	if err := node.Truncate(ctx, l.end()<<l.clusterBits); err != nil {
		return err
	}
	if err := l.reserve(ctx, o); err != nil {
		return err
	}
	if err := l.writeTables(ctx, o); err != nil {
		return err
	}
	if len(head) > sectorSize {
		if err := l.src.write(ctx, head[sectorSize:], sectorSize); err != nil {
			return err
		}
	}
	if o.DataNode != nil {
		if err := o.DataNode.Flush(ctx); err != nil {
			return fmt.Errorf("external data file: %w", err)
		}
	}
	if err := node.Flush(ctx); err != nil {
		return err
	}
	if err := l.src.write(ctx, head[:sectorSize], 0); err != nil {
		return err
	}
	return node.Flush(ctx)
}

// reserve sees to the storage of data clusters.
func (l *layout) reserve(ctx context.Context, o *CreateOptions) error {
	if o.DataFile == "" {
		return fillZeros(ctx, l.src.node, l.dataAt()<<l.clusterBits, l.data<<l.clusterBits, o.Preallocation)
	}
	if o.DataNode == nil {
		return nil
	}
	if err := o.DataNode.Truncate(ctx, int64(l.size)); err != nil {
		return fmt.Errorf("external data file: %w", err)
	}
	if err := fillZeros(ctx, o.DataNode, 0, int64(l.size), o.Preallocation); err != nil {
		return fmt.Errorf("external data file: %w", err)
	}
	return nil
}

// fillZeros gives a range that reads as zeros storage, as the preallocation
// says.
func fillZeros(ctx context.Context, node *storage.Node, off, n int64, preallocation string) error {
	if preallocation != preallocationFalloc && preallocation != preallocationFull {
		return nil
	}
	limits, err := node.Limits(ctx)
	if err != nil {
		return err
	}
	var zeros []byte
	most := limits.MaxZero
	if preallocation == preallocationFull {
		zeros = make([]byte, min(n, limits.MaxData, 1<<20))
		most = int64(len(zeros))
	}
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := min(end-off, most)
		if zeros != nil {
			_, err = node.WriteAt(ctx, zeros[:part], off)
		} else {
			err = node.Zero(ctx, off, part, true)
		}
		if err != nil {
			return err
		}
		off += part
	}
	return nil
}

// writeTables writes all metadata but the header, and whole clusters of them:
// where holes were left in tables, QEMU would take the image for one that is
// preallocated, and ask the file about every cluster.
func (l *layout) writeTables(ctx context.Context, o *CreateOptions) error {
	s := &tableStream{layout: l, buf: make([]byte, 0, max(checkRead, l.clusterSize())), at: 1 << l.clusterBits}
	for k := range l.blocks {
		if err := s.add(ctx, uint64(l.blocksAt()+k)<<l.clusterBits); err != nil {
			return err
		}
	}
	if err := s.fill(ctx, l.blocksAt()); err != nil {
		return err
	}
	if err := l.writeRefcounts(ctx, s); err != nil {
		return err
	}
	for k := range l.l2Tables {
		if err := s.add(ctx, l2Copied|uint64(l.l2At()+k)<<l.clusterBits); err != nil {
			return err
		}
	}
	if err := s.fill(ctx, l.l2At()); err != nil {
		return err
	}
	from := l.dataAt()
	if o.DataFile != "" {
		from = 0 // guest offsets
	}
	for k := range l.guest {
		if err := s.add(ctx, l2Copied|uint64(from+k)<<l.clusterBits); err != nil {
			return err
		}
		if !l.extendedL2() {
			continue
		}
		if err := s.add(ctx, 0); err != nil { // no subcluster is allocated, as in QEMU: the backing shows
			return err
		}
	}
	if err := s.fill(ctx, l.dataAt()); err != nil {
		return err
	}
	return s.flush(ctx)
}

// writeRefcounts writes the refcount blocks: every cluster is in use once.
func (l *layout) writeRefcounts(ctx context.Context, s *tableStream) error {
	per := l.clusterSize() << 3 >> l.refcountOrder
	b := make([]byte, l.clusterSize())
	for k := range per {
		setRefcount(b, l.refcountOrder, int(k), 1)
	}
	for number := range l.blocks {
		if last := l.end() - number*per; last < per {
			clear(b)
			for k := range last {
				setRefcount(b, l.refcountOrder, int(k), 1)
			}
		}
		if err := s.append(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// A tableStream writes tables from start to end, in large pieces.
type tableStream struct {
	*layout
	at  int64 // where buf belongs, bytes
	buf []byte
}

// fill adds zeros up to a cluster.
func (s *tableStream) fill(ctx context.Context, cluster int64) error {
	for s.at+int64(len(s.buf)) < cluster<<s.clusterBits {
		if err := s.add(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// add adds an entry of a table.
func (s *tableStream) add(ctx context.Context, entry uint64) error {
	if len(s.buf) == cap(s.buf) {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	s.buf = binary.BigEndian.AppendUint64(s.buf, entry)
	return nil
}

// append adds a cluster.
func (s *tableStream) append(ctx context.Context, b []byte) error {
	if len(s.buf)+len(b) > cap(s.buf) {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	s.buf = append(s.buf, b...)
	return nil
}

func (s *tableStream) flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	if err := s.src.write(ctx, s.buf, hostOffset(s.at)); err != nil {
		return err
	}
	s.at += int64(len(s.buf))
	s.buf = s.buf[:0]
	return ctx.Err()
}
