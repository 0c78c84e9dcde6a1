package blocksize_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		below     storage.Limits
		preferred int64
	}{
		{storage.Limits{}, 4096},
		{storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024, MaxTrim: 2048, MaxZero: 4096, MaxCache: 1024}, 512},
		{storage.Limits{Minimum: 64 << 10}, 64 << 10},
	} {
		got, err := storage.NewNode("top", open(t, file(c.below, nil)), storage.NodeOptions{}).Limits(t.Context())
		want := storage.Limits{
			Minimum: 1, Preferred: c.preferred, MaxData: 64 << 20, MaxTrim: 4<<30 - 1, MaxZero: 4<<30 - 1, MaxCache: 64 << 20,
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("limits over %+v: %v\n%s", c.below, err, diff)
		}
	}
}

// A log is what a file was asked for.
type log struct {
	mu  sync.Mutex // protects all below
	ops []string
}

func (l *log) hook(_ context.Context, op *storagetest.Op) error {
	names := map[storagetest.OpKind]string{
		storagetest.OpRead: "read", storagetest.OpWrite: "write", storagetest.OpZero: "zero",
		storagetest.OpTrim: "trim", storagetest.OpTruncate: "truncate",
	}
	if name := names[op.Kind]; name != "" {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ops = append(l.ops, fmt.Sprintf("%s %d+%d", name, op.Offset, op.Length))
	}
	return nil
}

// TestCost: what is asked of the node below, and no more.
func TestCost(t *testing.T) {
	ctx := t.Context()
	read := func(off, n int64) func(*blocksize.Filter) error {
		return func(f *blocksize.Filter) error { _, err := f.ReadAt(ctx, make([]byte, n), off); return err }
	}
	write := func(off, n int64) func(*blocksize.Filter) error {
		return func(f *blocksize.Filter) error { _, err := f.WriteAt(ctx, make([]byte, n), off); return err }
	}
	zero := func(off, n int64) func(*blocksize.Filter) error {
		return func(f *blocksize.Filter) error { return f.Zero(ctx, off, n, false) }
	}
	trim := func(off, n int64) func(*blocksize.Filter) error {
		return func(f *blocksize.Filter) error { return f.Trim(ctx, off, n) }
	}
	any1, sector := storage.Limits{}, storage.Limits{Minimum: 512}
	small := storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024, MaxZero: 1536, MaxTrim: 1024}
	const size = 1<<20 + 100
	for _, c := range []struct {
		name   string
		limits storage.Limits
		do     func(*blocksize.Filter) error
		want   []string
	}{
		{"minimum 1", any1, read(3, 4096), []string{"read 3+4096"}},
		{"minimum 1, write", any1, write(3, 4096), []string{"write 3+4096"}},
		{"aligned read", sector, read(512, 1024), []string{"read 512+1024"}},
		{"aligned write", sector, write(512, 1024), []string{"write 512+1024"}},
		{"unaligned read", sector, read(600, 4096), []string{"read 512+4608"}},
		{"longer unaligned read", sector, read(600, 128<<10), []string{"read 512+512", "read 1024+130560", "read 131584+512"}},
		{"unaligned write", sector, write(600, 4096), []string{"read 512+4608", "write 512+4608"}},
		{"unaligned begin", sector, write(600, 4096-88), []string{"read 512+512", "write 512+4096"}},
		{"unaligned end", sector, write(512, 4000), []string{"read 4096+512", "write 512+4096"}},
		{"longer unaligned write", sector, write(600, 128<<10), []string{
			"read 512+512", "write 512+512", "write 1024+130560", "read 131584+512", "write 131584+512",
		}},
		{"split read", small, read(512, 2048+512), []string{"read 512+1024", "read 1536+1024", "read 2560+512"}},
		{"split unaligned read", small, read(511, 1026), []string{"read 0+512", "read 512+1024", "read 1536+512"}},
		{"split zero", small, zero(511, 2562), []string{
			"read 3072+512", "write 3072+512", "read 0+512", "write 0+512", "zero 512+1536", "zero 2048+1024",
		}},
		{"zero inside a block", small, zero(513, 10), []string{"read 512+512", "write 512+512"}},
		{"unaligned trim", small, trim(511, 2562), []string{"trim 512+1024", "trim 1536+1024", "trim 2560+512"}},
		{"trim inside a block", small, trim(513, 10), []string{"trim 512+0"}},
		{"trim of everything", small, trim(1<<20-512, storage.MaxSize-1<<20), []string{"trim 1048064+1024"}},
		{"in the tail", sector, write(1<<20+10, 20), []string{"read 1048576+512", "read 1048576+512", "write 1048576+100"}},
		{"zero up to the end", sector, zero(1<<20, 100), []string{"read 1048576+512", "zero 1048576+100"}},
		{"growth", sector, write(1<<20+90, 20), []string{
			"read 1048576+512", "read 1048576+512", "truncate 1048686+0", "write 1048576+110",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := new(log)
			below := file(c.limits, l.hook)
			below.SetSize(size)
			if err := c.do(open(t, below)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, l.ops); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	if racing {
		return // it makes pools forget
	}
	ctx := context.Background()
	p := make([]byte, 4096)
	for _, l := range []storage.Limits{{}, {Minimum: 512}, {Minimum: 4096}} {
		below := file(l, nil)
		below.Put(make([]byte, 1<<20), 0)
		f := open(t, below)
		for _, off := range []int64{8192, 8193} {
			for what, do := range map[string]func() error{
				"read":  func() error { _, err := f.ReadAt(ctx, p, off); return err },
				"write": func() error { _, err := f.WriteAt(ctx, p, off); return err },
			} {
				n := testing.AllocsPerRun(100, func() {
					if err := do(); err != nil {
						t.Error(err)
					}
				})
				if n >= 1 {
					t.Errorf("%s at %d over a minimum of %d: %v allocations", what, off, l.Minimum, n)
				}
			}
		}
	}
}

func BenchmarkRead4K(b *testing.B) {
	for _, c := range []struct {
		name    string
		minimum int64
		off     int64
		without bool
	}{
		{"without", 0, 4096, true}, {"minimum 1", 0, 4096, false}, {"aligned", 512, 4096, false}, {"unaligned", 512, 4097, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			below := file(storage.Limits{Minimum: c.minimum}, nil)
			below.Put(make([]byte, 1<<20), 0)
			node := storage.NewNode("below", below, storage.NodeOptions{})
			if !c.without {
				f, _ := blocksize.New(node, blocksize.Options{})
				node = storage.NewNode("top", f, storage.NodeOptions{})
			}
			p := make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := node.ReadAt(context.Background(), p, c.off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
