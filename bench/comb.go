package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The comb is a qcow2 image of 4 KiB clusters of which every other one is
// allocated, in the order and at the places where QEMU puts them when they are
// written one after the other: an L2 table, then its clusters. Writing it with
// qemu-io would take a million commands. The clusters themselves are never
// written: they are allocated in the file, as if they had been, or holes in it,
// as metadata preallocation leaves them, through which a map must look.
const (
	combCluster = int64(4096)
	combEntries = combCluster / 8 // of an L2 table
	combCopied  = uint64(1) << 63
)

// comb makes the image if it is not there, and returns its name and the number
// of its extents.
func (s *setup) comb(ctx context.Context, holes bool) (name string, extents int64, err error) {
	size := 8 * gib
	if s.small {
		size = gib
	}
	name = "comb.qcow2"
	if holes {
		name = "comb-holes.qcow2"
	}
	err = s.make(name, func(path string) error {
		if err := writeComb(path, size, holes); err != nil {
			return err
		}
		return s.command(ctx, "qemu-img", "check", "-q", "-f", "qcow2", path)
	})
	return name, size / combCluster, err
}

// writeComb lays out header, refcount table, refcount blocks, L1, and then the
// L2 tables with their clusters.
func writeComb(path string, size int64, holes bool) error {
	tables := size / combCluster / combEntries
	perTable := 1 + combEntries/2 // clusters in the file
	l1Clusters := (tables*8 + combCluster - 1) / combCluster
	// 16-bit refcounts: a block counts 2,048 clusters, itself among them.
	perBlock := combCluster / 2
	blocks := (tables*perTable+l1Clusters)/(perBlock-1) + 2
	tableClusters := (blocks*8 + combCluster - 1) / combCluster
	blocksAt := 1 + tableClusters
	l1At := blocksAt + blocks
	first := l1At + l1Clusters
	total := first + tables*perTable

	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	be := binary.BigEndian
	header := make([]byte, combCluster)
	copy(header, "QFI\xfb")
	be.PutUint32(header[4:], 3)
	be.PutUint32(header[20:], 12)
	be.PutUint64(header[24:], uint64(size))
	be.PutUint32(header[36:], uint32(tables))
	be.PutUint64(header[40:], uint64(l1At*combCluster))
	be.PutUint64(header[48:], uint64(combCluster))
	be.PutUint32(header[56:], uint32(tableClusters))
	be.PutUint32(header[96:], 4)
	be.PutUint32(header[100:], 112)
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = w.Write(header)
	words := func(n int64, padTo int64, word func(i int64) uint64) {
		for i := range padTo {
			v := uint64(0)
			if i < n {
				v = word(i)
			}
			if err == nil {
				_, err = w.Write(be.AppendUint64(nil, v))
			}
		}
	}
	words(blocks, tableClusters*combEntries, func(i int64) uint64 { return uint64((blocksAt + i) * combCluster) })
	// Four refcounts of 1 in a word, none past the end.
	words(blocks*perBlock/4, blocks*combEntries, func(i int64) uint64 {
		used := min(max(total-i*4, 0), 4)
		return 0x0001000100010001 &^ (1<<(64-16*used) - 1)
	})
	words(tables, l1Clusters*combEntries, func(i int64) uint64 { return combCopied | uint64((first+i*perTable)*combCluster) })
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return err
	}
	if err := writeCombTables(f, first, perTable, tables); err != nil {
		return err
	}
	if holes {
		err = f.Truncate(total * combCluster)
	} else {
		err = unix.Fallocate(int(f.Fd()), 0, 0, total*combCluster)
	}
	if err != nil {
		return fmt.Errorf("growing to %d bytes: %w", total*combCluster, err)
	}
	return f.Sync()
}

func writeCombTables(f *os.File, first, perTable, tables int64) error {
	table := make([]byte, combCluster)
	for t := range tables {
		at := first + t*perTable
		for i := int64(0); i < combEntries; i += 2 {
			binary.BigEndian.PutUint64(table[i*8:], combCopied|uint64((at+1+i/2)*combCluster))
		}
		if _, err := f.WriteAt(table, at*combCluster); err != nil {
			return err
		}
	}
	return nil
}
