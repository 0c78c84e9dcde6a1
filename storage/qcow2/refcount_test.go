package qcow2_test

import (
	"context"
	"errors"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// An allocatedFile says how much storage it has.
type allocatedFile struct {
	storage.File
	bytes int64
	err   error
}

func (f *allocatedFile) Allocated(context.Context) (int64, error) { return f.bytes, f.err }

// withRefcounts is an image of 1000 clusters, of which those given have a
// refcount of 1<<(width-1), 1<<order bits wide.
func withRefcounts(order uint32, used func(cluster int) bool) []byte {
	const clusters, cluster = 1000, 4096
	b := (&builder{clusterBits: 12, size: 1 << 20}).bytes()
	b = patched(b, patch{96, be32(order)}, patch{clusters*cluster - 1, []byte{0}})
	width := 1 << order
	perBlock := cluster * 8 / width
	for k := range clusters {
		block := 10 + k/perBlock // clusters 10 and on are refcount blocks
		copy(b[cluster+k/perBlock*8:], be64(uint64(block*cluster)))
		if !used(k) {
			continue
		}
		at, bit := block*cluster+k%perBlock*width/8, k%perBlock*width%8
		if width < 8 {
			b[at] |= 1 << (bit + width - 1)
		} else {
			b[at] |= 0x80
		}
	}
	return b
}

// TestLooksPreallocated counts refcounts of every width around the threshold.
func TestLooksPreallocated(t *testing.T) {
	const cluster = 4096
	every := func(n int) func(int) bool { return func(k int) bool { return k%n == 0 } }
	for order := range uint32(7) {
		content := withRefcounts(order, every(2)) // 500 clusters
		for _, tt := range []struct {
			held int64 // clusters that the file has storage for
			want bool
		}{
			{0, true},
			{1, true},
			{100, true},
			{450, true}, // 450 and a ninth: 500
			{451, false},
			{500, false},
			{1000, false},
			{1 << 40, false},
		} {
			file := &allocatedFile{File: storagetest.NewMemFile(content), bytes: tt.held*cluster + 100}
			i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			for range 2 {
				got, err := i.LooksPreallocated(t.Context())
				if err != nil || got != tt.want {
					t.Errorf("width %d, storage for %d clusters: %v, %v, want %v", 1<<order, tt.held, got, err, tt.want)
				}
				if file.bytes = 0; tt.want { // the answer is kept
					file.bytes = 1 << 50
				}
			}
		}
	}
}

// TestPreallocationUnknown is where the answer is false for want of a better one.
func TestPreallocationUnknown(t *testing.T) {
	content := withRefcounts(4, func(int) bool { return true })
	for _, tt := range []struct {
		name    string
		patches []patch
		want    bool
	}{
		{"well-formed", nil, true},
		{"unaligned", field(4096, be64(10*4096+512)), false},
		{"far away", field(4096, be64(1<<63)), false},
		{"past the end", field(4096, be64(1<<50)), false},
		{"no block", field(4096, be64(0)), false},
		{"table past the end", field(48, be64(1<<40)), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := &allocatedFile{File: storagetest.NewMemFile(patched(content, tt.patches...))}
			i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if got, err := i.LooksPreallocated(t.Context()); err != nil || got != tt.want {
				t.Errorf("%v, %v, want %v", got, err, tt.want)
			}
		})
	}
	i := mustOpen(t, content) // a file that does not say what storage it has
	if got, err := i.LooksPreallocated(t.Context()); err != nil || got {
		t.Errorf("without Allocated: %v, %v", got, err)
	}
}

// TestPreallocationErrors checks that failures are not kept.
func TestPreallocationErrors(t *testing.T) {
	failure := errors.New("bad sector")
	g := newGate()
	fail := true
	hook := func(ctx context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpRead && fail && g.closed.Load() {
			return failure
		}
		return g.hook(ctx, op)
	}
	mem := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
	mem.Put(withRefcounts(4, func(int) bool { return true }), 0)
	file := &allocatedFile{File: mem, err: failure}
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if _, err := i.LooksPreallocated(t.Context()); !errors.Is(err, failure) {
		t.Errorf("Allocated fails: %v", err)
	}
	file.err = nil
	g.closed.Store(true)
	if _, err := i.LooksPreallocated(t.Context()); !errors.Is(err, failure) {
		t.Errorf("a read fails: %v", err)
	}
	fail = false
	// One finds out, and another is tired of waiting for it.
	found := make(chan error)
	go func() {
		looks, err := i.LooksPreallocated(t.Context())
		if err == nil && !looks {
			err = errors.New("false")
		}
		found <- err
	}()
	<-g.waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.LooksPreallocated(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(g.open)
	if err := <-found; err != nil {
		t.Error(err)
	}
}
