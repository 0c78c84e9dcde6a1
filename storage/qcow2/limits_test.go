package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestLargeTables makes the refcount table as large as it may be, and the others
// larger, over a node that takes no more than that at a time: it is asked for no
// more by whatever reads or writes them.
func TestLargeTables(t *testing.T) {
	const (
		cluster       = 64 << 10
		refcountTable = 8 << 20
		size          = 9 << 46 // the L1 table has 9 MiB, and is to have 18 MiB
	)
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: storage.Limits{MaxData: refcountTable}})
	node := storage.NewNode("image", file, storage.NodeOptions{})
	ok(qcow2.Create(ctx, node, qcow2.CreateOptions{Size: size}))

	be := binary.BigEndian
	end, err := node.Size(ctx)
	ok(err)
	block := binary.BigEndian.Uint64(file.Bytes()[cluster:])
	file.Put(be.AppendUint64(nil, block), end) // the new table, with the one block that there is
	file.Put(be.AppendUint32(be.AppendUint64(nil, uint64(end)), refcountTable/cluster), 48)
	snapshots, count := snapshotTable()
	end += refcountTable
	file.Put(snapshots, end)
	file.Put(be.AppendUint64(be.AppendUint32(nil, count), uint64(end)), 60)

	res, err := qcow2.Check(ctx, node, qcow2.CheckOptions{Repair: qcow2.RepairAll}) // there are no refcounts yet
	if ok(err); !res.Clean() {
		t.Fatalf("%+v", res)
	}
	i, err := qcow2.Open(ctx, node, qcow2.Options{})
	ok(err)
	defer i.Close()
	all, err := i.Snapshots(ctx)
	if ok(err); len(all) != int(count) {
		t.Fatalf("%d snapshots, want %d", len(all), count)
	}
	ok(i.StartWriting(ctx))
	ok(i.Resize(ctx, 2*size, storage.ResizeOptions{}))
	b, err := i.Alloc(ctx, cluster, storage.AllocOptions{})
	ok(err)
	ok(i.Update(ctx, 2*size-cluster, cluster, storage.Target{Kind: storage.ToData, Node: node, NodeOffset: b.Offset}))
	ok(i.Flush(ctx))
	b, err = i.Alloc(ctx, cluster, storage.AllocOptions{})
	ok(err)
	ok(i.Flush(ctx))
	ok(i.Close())
	i, err = qcow2.Open(ctx, node, qcow2.Options{})
	ok(err)
	defer i.Close()
	ok(i.StartWriting(ctx))
	ok(i.Adopt(ctx, []storage.Blocks{b}, true))
	ok(i.Free(ctx, b))
	ok(i.Resize(ctx, size, storage.ResizeOptions{Shrink: true}))
	ok(i.Close())
	if res, err = qcow2.Check(ctx, node, qcow2.CheckOptions{}); err != nil || !res.Clean() {
		t.Fatalf("%+v, %v", res, err)
	}

	file.Put(be.AppendUint16(nil, 65535-8), end+14) // a shorter name, and more extra data than there may be
	file.Put(be.AppendUint32(nil, 1024+8), end+36)
	if res, err = qcow2.Check(ctx, node, qcow2.CheckOptions{Repair: qcow2.RepairAll}); err != nil || !res.Clean() || res.CorruptionsFixed == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// snapshotTable is one of nearly 16 MiB, the entries of which have the longest
// names.
func snapshotTable() (table []byte, entries uint32) {
	const most, name, extra = 16 << 20, 65535, 1024
	be := binary.BigEndian
	for len(table)+48+2*name+extra < most {
		table = append(table, make([]byte, -len(table)&7)...)
		entry := make([]byte, 40+extra)
		be.PutUint16(entry[12:], name)
		be.PutUint16(entry[14:], name)
		be.PutUint32(entry[36:], extra)
		table = append(table, entry...)
		table = append(table, bytes.Repeat([]byte{'a'}, 2*name)...)
		entries++
	}
	return table, entries
}

// TestLongRanges reserves, zeroes and trims more than a node takes at a time.
func TestLongRanges(t *testing.T) {
	const size = 9 << 30
	var zeroed, trimmed atomic.Int64
	open := func(name string) *storage.Node {
		return storage.NewNode(name, storagetest.NewMemFileWith(storagetest.MemOptions{Hook: func(_ context.Context, op *storagetest.Op) error {
			switch op.Kind {
			case storagetest.OpZero:
				zeroed.Add(op.Length)
			case storagetest.OpTrim:
				trimmed.Add(op.Length)
			default:
			}
			return nil
		}}), storage.NodeOptions{})
	}
	ctx := t.Context()
	for _, external := range []bool{false, true} {
		zeroed.Store(0)
		trimmed.Store(0)
		node := open("image")
		opt := qcow2.CreateOptions{Size: size, ClusterSize: 2 << 20, Preallocation: "falloc"}
		data := node
		if external {
			data = open("data")
			opt.DataFile, opt.DataNode, opt.DataFileRaw = "data", data, true
		}
		if err := qcow2.Create(ctx, node, opt); err != nil {
			t.Fatal(err)
		}
		if got := zeroed.Swap(0); got != size {
			t.Errorf("%d bytes are preallocated, want %d", got, int64(size))
		}
		i, err := qcow2.Open(ctx, node, qcow2.Options{OpenData: func(context.Context, string) (*storage.Node, error) { return data, nil }})
		if err == nil {
			err = i.StartWriting(ctx)
		}
		if err == nil {
			err = i.Update(ctx, 0, size, storage.Target{Kind: storage.ToUnmapped})
		}
		if err == nil {
			err = i.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if external && zeroed.Load() != size {
			t.Errorf("%d bytes of the raw data file are zeroed, want %d", zeroed.Load(), int64(size))
		}
		if !external && trimmed.Load() != size {
			t.Errorf("%d bytes are trimmed, want %d", trimmed.Load(), int64(size))
		}
	}
}
