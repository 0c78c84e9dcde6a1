package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A repairCase damages a certain image in a certain way.
type repairCase struct {
	name    string
	options string
	damage  func(t *testing.T, d *damager)
	unlike  bool // qemu-img cannot repair it, and we can
	refused bool // a check without a repair cannot read it
	long    bool // qemu-img takes too long for it
}

// snapshotEntries are where the entries of the snapshot table begin.
func (d *damager) snapshotEntries() []uint64 {
	var at []uint64
	next := d.u64(64)
	for range binary.BigEndian.Uint32(d.b[60:]) {
		next = (next + 7) &^ 7
		at = append(at, next)
		b := d.b[next:]
		next += 40 + uint64(binary.BigEndian.Uint32(b[36:])) + uint64(binary.BigEndian.Uint16(b[12:])) + uint64(binary.BigEndian.Uint16(b[14:]))
	}
	return at
}

// rewriteSnapshots gives all entries so much extra data.
func (d *damager) rewriteSnapshots(extra int) {
	at := d.snapshotEntries()
	var table []byte
	for _, from := range at {
		b := d.b[from:]
		old := int(binary.BigEndian.Uint32(b[36:]))
		names := int(binary.BigEndian.Uint16(b[12:])) + int(binary.BigEndian.Uint16(b[14:]))
		table = append(table, make([]byte, -len(table)&7)...)
		begin := len(table)
		table = append(table, b[:40+min(old, extra)]...)
		table = append(table, make([]byte, extra-min(old, extra))...)
		table = append(table, b[40+old:40+old+names]...)
		binary.BigEndian.PutUint32(table[begin+36:], uint32(extra))
	}
	copy(d.b[at[0]:], table)
}

func repairCases() []repairCase {
	first := func(d *damager) uint64 { return d.entries(d.u64(48), 8, 8)[0] }
	return []repairCase{
		{"108: no refcount table", "", func(_ *testing.T, d *damager) {
			binary.BigEndian.PutUint32(d.b[56:], 0)
		}, false, false, false},
		{"108: no first block", "", func(_ *testing.T, d *damager) { d.put("table", first(d), 0) }, false, false, false},
		{"108: unaligned block", "", func(_ *testing.T, d *damager) { d.put("table", first(d), d.u64(first(d))+512) }, true, false, false},
		{"108: block with reserved bits", "", func(_ *testing.T, d *damager) { d.put("table", first(d), d.u64(first(d))+1) }, true, false, false},
		{"108: block beyond the end", "", func(_ *testing.T, d *damager) { d.put("table", first(d), 1<<40) }, false, false, false},
		{"108: block at 2^62", "", func(_ *testing.T, d *damager) { d.put("table", first(d), 1<<62) }, false, false, false},
		{"108: block at 2^63", "", func(_ *testing.T, d *damager) { d.put("table", first(d), 1<<63) }, false, false, false},
		{"108: one block twice", "cluster_size=512", func(_ *testing.T, d *damager) { d.put("table", first(d)+8, d.u64(first(d))) }, false, false, false},
		{"108: block is the header", "", func(_ *testing.T, d *damager) {
			d.put("table", first(d)+8, d.u64(first(d)))
			d.put("table", first(d), d.cluster)
		}, false, false, false},
		{"108: table over the l1 table", "", func(_ *testing.T, d *damager) { d.put("header", 48, d.u64(40)) }, false, false, false},
		{"108: table beyond the end", "", func(_ *testing.T, d *damager) { d.put("header", 48, 1<<40) }, false, false, false},
		{"060: block refers to an l2 table", "", func(_ *testing.T, d *damager) {
			d.put("table", first(d), d.u64(d.u64(40))&offsets)
		}, false, false, false},
		{"060: l2 entry to the header", "", func(_ *testing.T, d *damager) {
			d.put("l2", d.l2Entry(), 1<<63|d.cluster)
		}, false, false, false},
		{"060: all refcounts 0", "", func(_ *testing.T, d *damager) { clear(d.b[d.u64(first(d)):][:d.cluster]) }, false, false, false},
		{"060: all refcounts high", "", func(_ *testing.T, d *damager) {
			for k := range d.b[d.u64(first(d)):][:d.cluster] {
				d.b[int(d.u64(first(d)))+k] = 0x55
			}
		}, false, false, false},
		{"060: dirty and corrupt", "", func(_ *testing.T, d *damager) { d.put("features", 72, 3) }, false, false, false},
		{"039: dirty without refcounts", "lazy_refcounts=on,cluster_size=512", func(_ *testing.T, d *damager) {
			d.put("features", 72, 1)
			for k := range uint64(8) {
				if at := d.u64(d.u64(48) + 8*k); at != 0 && k > 0 {
					clear(d.b[at:][:d.cluster])
				}
			}
		}, false, false, false},
		{"261: too little extra data", "", func(_ *testing.T, d *damager) { d.rewriteSnapshots(8) }, false, false, false},
		{"261: no extra data", "", func(_ *testing.T, d *damager) { d.rewriteSnapshots(0) }, false, false, false},
		{"261: no extra data in v2", "compat=0.10", func(_ *testing.T, d *damager) { d.rewriteSnapshots(0) }, false, false, false},
		{"261: too much extra data", "", func(_ *testing.T, d *damager) { d.rewriteSnapshots(1032) }, false, true, false},
		{"261: much extra data", "", func(_ *testing.T, d *damager) { d.rewriteSnapshots(1024) }, false, false, false},
		{"261: too many snapshots", "", func(_ *testing.T, d *damager) {
			d.b = append(d.b, make([]byte, -len(d.b)&int(d.cluster-1))...)
			binary.BigEndian.PutUint32(d.b[60:], 65537)
			binary.BigEndian.PutUint64(d.b[64:], uint64(len(d.b)))
			entry := make([]byte, 56)
			binary.BigEndian.PutUint32(entry[36:], 16)
			d.b = append(d.b, bytes.Repeat(entry, 65537)...)
		}, false, true, true},
	}
}

// TestRepairCases are damages from QEMU's own tests 039, 060, 108 and 261. A
// repair mends all of them, and wherever it is cut off, another one does.
func TestRepairCases(t *testing.T) {
	for _, c := range repairCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			create(t, dir, "image", 256<<10, c.options)
			qemuIO(t, dir, "image", "write -P 1 0 100k")
			snapshots(t, dir)
			clean := load(t, dir, "image")
			d := &damager{rng: random(t), b: slices.Clone(clean), cluster: 1 << binary.BigEndian.Uint32(clean[20:])}
			c.damage(t, d)
			cloneFile(t, dir, "damaged", d.b)
			cloneFile(t, dir, "theirs", d.b)
			if c.refused {
				_, err := qcow2.Check(t.Context(), diskNode(t, dir, "damaged"), qcow2.CheckOptions{})
				if !errors.Is(err, storage.ErrCorrupt) {
					t.Errorf("Check = %v, want %v", err, storage.ErrCorrupt)
				}
			} else {
				sameCheck(t, dir, "damaged")
			}
			if !c.long {
				if _, err := try(t, dir, "qemu-img", "check", "-r", "all", "theirs"); (err != nil) != c.unlike {
					t.Errorf("qemu-img check -r all: %v", err)
				}
			}
			repairCut(t, dir, d.b, c.long)
		})
	}
}

// repairCut repairs an image, and repairs what is left of it wherever that is
// cut off.
func repairCut(t *testing.T, dir string, damaged []byte, long bool) {
	t.Helper()
	journal := storagetest.NewJournal()
	file := journal.File("image", damaged)
	all := qcow2.CheckOptions{Repair: qcow2.RepairAll}
	res, err := qcow2.Check(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), all)
	if err != nil || !res.Clean() {
		t.Fatalf("repair: %+v, %v", res, err)
	}
	var want []byte
	if !long {
		cloneFile(t, dir, "ours", file.Bytes())
		want = sameContent(t, dir, "ours", nil)
	}
	rng := random(t)
	n := journal.Len()
	for at := range n + 1 {
		cut := journal.Cut(at, storagetest.CutOptions{Seed: rng.Uint64(), Drop: rng.IntN(2) == 0})["image"]
		res, err := qcow2.Check(t.Context(), storage.NewNode("cut", cut, storage.NodeOptions{}), all)
		if err != nil || !res.Clean() {
			t.Fatalf("repair cut off at %d of %d, and repaired again: %+v, %v", at, n, res, err)
		}
		if !long && at == n/2 {
			cloneFile(t, dir, "cut", cut.Bytes())
			sameContent(t, dir, "cut", want)
		}
	}
}

// sameContent has qemu-img check an image, and compares what the guest reads.
func sameContent(t *testing.T, dir, name string, want []byte) []byte {
	t.Helper()
	if out, err := try(t, dir, "qemu-img", "check", name); err != nil {
		t.Errorf("qemu-img check after a repair: %v\n%s", err, out)
	}
	run(t, dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "content")
	got := load(t, dir, "content")
	if want != nil && !bytes.Equal(got, want) {
		t.Errorf("the content of %s differs at %d", name, differs(got, want))
	}
	return got
}

// TestRepairFaults fails every operation of a repair in turn: the error says so,
// and another repair mends what is left.
func TestRepairFaults(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 256<<10, "cluster_size=4k")
	snapshots(t, dir)
	b := load(t, dir, "image")
	d := &damager{rng: random(t), b: b, cluster: 4096}
	table := d.entries(d.u64(48), 8, 8)[0]
	d.put("table", table, 0)
	d.put("features", 72, 3)
	all := qcow2.CheckOptions{Repair: qcow2.RepairAll}
	fault := errors.New("fault")
	for _, kind := range []storagetest.OpKind{storagetest.OpSize, storagetest.OpRead, storagetest.OpWrite, storagetest.OpFlush} {
		for nth := int64(1); ; nth++ {
			hook := storagetest.FailNth(kind, nth, fault)
			f := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
			f.Put(b, 0)
			_, err := qcow2.Check(t.Context(), storage.NewNode("image", f, storage.NodeOptions{}), all)
			if err == nil {
				break
			}
			if !errors.Is(err, fault) {
				t.Fatalf("Check = %v, want %v", err, fault)
			}
			left := storagetest.NewMemFile(f.Bytes())
			res, err := qcow2.Check(t.Context(), storage.NewNode("image", left, storage.NodeOptions{}), all)
			if err != nil || !res.Clean() {
				t.Errorf("after fault %d of kind %v: %+v, %v", nth, kind, res, err)
			}
		}
	}
}
