package block_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/storagetest"
)

// preallocated is a layer whose map must be looked through to its file.
type preallocated struct{ *tableMapper }

func (preallocated) LooksPreallocated(context.Context) (bool, error) { return true, nil }

// Clusters over a hole of the file, and past its end, read as zeros, and the
// file is asked once for each of its extents, not for each cluster.
func TestWalkLooksThrough(t *testing.T) {
	const blocks, file = 64, 48 // the file ends before the image does
	asked := 0
	node := storage.NewNode("file", storagetest.NewMemFileWith(storagetest.MemOptions{
		Size: file * unitSize,
		Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpExtents {
				asked++
			}
			return nil
		},
	}), storage.NodeOptions{Check: true})
	node.File().(*storagetest.MemFile).Put(make([]byte, 8*unitSize), 16*unitSize)
	const data = storage.Local | storage.Alloc | storage.OffsetValid
	table := &tableMapper{size: blocks * unitSize}
	for off := int64(0); off < table.size; off += unitSize {
		m := storage.Mapping{Offset: off, Length: unitSize}
		if off/unitSize%2 == 0 { // every other one, so that no two are one extent
			m.Status, m.Node, m.NodeOffset = data, node, off
		}
		table.mappings = append(table.mappings, m)
	}
	var want, got []storage.Status
	for b := range int64(blocks) {
		switch {
		case b%2 == 1:
			want = append(want, storage.Zero)
		case 16 <= b && b < 24:
			want = append(want, data)
		default:
			want = append(want, storage.Local|storage.Zero|storage.OffsetValid)
		}
	}
	d := newDevice(t, []storage.Mapper{preallocated{table}})
	for m, err := range d.Walk(context.Background(), 0, d.Size(), block.WalkOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if asked != 3 { // hole, data, hole
		t.Errorf("the file was asked %d times for 3 extents", asked)
	}
}

// A walk and a read allocate the same for many extents as for few.
func TestNoAllocationPerExtent(t *testing.T) {
	data := make([]byte, 1024*unitSize)
	d := newDevice(t, []storage.Mapper{alternating(data, 0), alternating(data, 1)})
	ctx := context.Background()
	walk := func(n int64) float64 {
		return testing.AllocsPerRun(20, func() {
			for _, err := range d.Walk(ctx, 0, n, block.WalkOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	read := func(n int64) float64 {
		return testing.AllocsPerRun(20, func() {
			if err := d.ReadAt(ctx, data[:n], 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	for name, allocs := range map[string]func(int64) float64{"walk": walk, "read": read} {
		few, many := allocs(16*unitSize), allocs(1024*unitSize)
		t.Logf("%s: %v allocations for 16 extents, %v for 1,024", name, few, many)
		if many > few+16 { // a pool may be emptied meanwhile
			t.Errorf("%s: %v allocations for 16 extents, %v for 1,024", name, few, many)
		}
	}
}
