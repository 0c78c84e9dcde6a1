package qcow2_test

import (
	"encoding/binary"
)

// A builder makes images in memory, well-formed ones unless its fields are not.
// The layout is: header, refcount table, L1 table, L2 tables, each in clusters
// of their own. Data clusters are not written: they read as zeros.
type builder struct {
	version     uint32 // default 3
	clusterBits uint32 // default 16
	size        int64  // default: what the entries map
	extended    bool
	crypt       uint32
	incompatible,
	compatible,
	autoclear uint64
	// entries of the L2 tables, in order; with extended L2 entries, two words
	// each. A table without a word that is not 0 is not allocated.
	entries []uint64
	// extensions of the header, type and data.
	extensions []extension
}

type extension struct {
	kind uint32
	data []byte
}

func (b *builder) cluster() int64 { return 1 << b.bits() }

func (b *builder) bits() uint32 {
	if b.clusterBits == 0 {
		return 16
	}
	return b.clusterBits
}

// tables is how many L2 tables there are, and the words in each.
func (b *builder) tables() (count, words int64) {
	words = b.cluster() / 8
	return (int64(len(b.entries)) + words - 1) / words, words
}

// l1Offset is where the L1 table begins, and how long it is in clusters.
func (b *builder) l1Offset() (off, clusters int64) {
	count, words := b.tables()
	return 2 * b.cluster(), max(1, (count+words-1)/words)
}

// l2Offset is where L2 table n begins.
func (b *builder) l2Offset(n int64) int64 {
	off, clusters := b.l1Offset()
	return off + (clusters+n)*b.cluster()
}

func (b *builder) header() []byte {
	be := binary.BigEndian
	count, words := b.tables()
	perEntry := int64(1)
	incompatible := b.incompatible
	if b.extended {
		perEntry, incompatible = 2, incompatible|1<<4
	}
	size := b.size
	if size == 0 {
		size = int64(len(b.entries)) / perEntry * b.cluster()
	}
	spans := words / perEntry * b.cluster()
	l1, _ := b.l1Offset()
	version := b.version
	if version == 0 {
		version = 3
	}
	h := make([]byte, b.cluster())
	be.PutUint32(h, 0x514649fb)
	be.PutUint32(h[4:], version)
	be.PutUint32(h[20:], b.bits())
	be.PutUint64(h[24:], uint64(size))
	be.PutUint32(h[32:], b.crypt)
	be.PutUint32(h[36:], uint32(max(count, (size+spans-1)/spans)))
	be.PutUint64(h[40:], uint64(l1))
	be.PutUint64(h[48:], uint64(b.cluster()))
	be.PutUint32(h[56:], 1)
	end := h[72:72:len(h)]
	if version > 2 {
		be.PutUint64(h[72:], incompatible)
		be.PutUint64(h[80:], b.compatible)
		be.PutUint64(h[88:], b.autoclear)
		be.PutUint32(h[96:], 4)
		be.PutUint32(h[100:], 112)
		if incompatible&(1<<3) != 0 {
			h[104] = 1
		}
		end = h[112:112:len(h)]
	}
	for _, e := range b.extensions {
		end = be.AppendUint32(end, e.kind)
		end = be.AppendUint32(end, uint32(len(e.data)))
		end = append(end, e.data...)
		end = append(end, make([]byte, -len(e.data)&7)...)
	}
	return h
}

func (b *builder) bytes() []byte {
	be := binary.BigEndian
	count, words := b.tables()
	_, l1Clusters := b.l1Offset()
	out := append(b.header(), make([]byte, (1+l1Clusters+count)*b.cluster())...)
	l1, _ := b.l1Offset()
	for n := range count {
		table := b.entries[n*words : min(int64(len(b.entries)), (n+1)*words)]
		for k, e := range table {
			if e != 0 {
				be.PutUint64(out[l1+n*8:], uint64(b.l2Offset(n))|1<<63)
				be.PutUint64(out[b.l2Offset(n)+int64(k)*8:], e)
			}
		}
	}
	return out
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
