package cache_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/cache"
	"github.com/extentd/extentd/storage/storagetest"
)

// jitter gives others a turn.
func jitter() storagetest.Hook {
	return func(context.Context, *storagetest.Op) error {
		time.Sleep(time.Duration(rand.Int64N(200)) * time.Microsecond)
		return nil
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content is n bytes that differ from block to block.
func content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + i%251 + i>>12)
	}
	return p
}

func TestOptions(t *testing.T) {
	coarse := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: storage.Limits{Minimum: 8192, Preferred: 8192}})
	for _, c := range []struct {
		field string
		opt   cache.Options
	}{
		{"path", cache.Options{Size: 1 << 20}},
		{"path", cache.Options{File: checked("coarse", coarse), Size: 1 << 20}},
		{"size", cache.Options{File: scratch(nil)}},
		{"size", cache.Options{File: scratch(nil), Size: 65535}},
		{"size", cache.Options{File: scratch(nil), Size: storage.MaxSize}},
		{"size", cache.Options{File: scratch(nil), Size: -1}},
		{"block_size", cache.Options{File: scratch(nil), Size: 1 << 20, BlockSize: 5000}},
		{"block_size", cache.Options{File: scratch(nil), Size: 1 << 20, BlockSize: 2048}},
		{"block_size", cache.Options{File: scratch(nil), Size: 1 << 30, BlockSize: 32 << 20}},
		{"block_size", cache.Options{File: scratch(nil), Size: 1 << 20, BlockSize: -4096}},
		{"block_size", cache.Options{File: scratch(nil), Size: 1 << 20, BlockSize: 4096}}, // less than the minimum
	} {
		var invalid *storage.InvalidError
		if _, err := cache.New(t.Context(), checked("next", coarse), c.opt); !errors.As(err, &invalid) || invalid.Field != c.field {
			t.Errorf("%+v: %v, want one about %s", c.opt, err, c.field)
		}
	}
}

// TestCounters reads through a cache of two blocks, the last of which the node
// has only in part.
func TestCounters(t *testing.T) {
	next := storagetest.NewMemFile(content(3*4096 + 100))
	f := over(t, next, 2, 4096, nil)
	p := make([]byte, 10)
	for _, off := range []int64{0, 4096, 4090, 3 * 4096, 4096, 3*4096 + 50} {
		if _, err := f.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]int64{"hits": 4, "misses": 3, "evictions": 1, "errors": 0, "cached_bytes": 4096 + 100}
	if diff := cmp.Diff(want, counters(f)); diff != "" {
		t.Error(diff)
	}
}

// TestRequests: what is missing is asked for in as few requests as the node takes.
func TestRequests(t *testing.T) {
	want := content(8 << 20)
	for _, c := range []struct{ most, off, n, want int64 }{
		{0, 0, 1 << 20, 1},
		{256 << 10, 0, 1 << 20, 4},
		{256 << 10, 1000, 200 << 10, 1},
		{0, 5, 10, 1},
		{0, 5, 6 << 20, 2}, // it is copied, in pieces of bounded size
		{0, 0, 6 << 20, 1},
		{32 << 10, 0, 64 << 10, 2}, // a block is more than the node takes
	} {
		var reads atomic.Int64
		next := storagetest.NewMemFileWith(storagetest.MemOptions{
			Size: 8 << 20, Limits: storage.Limits{MaxData: c.most},
			Hook: func(_ context.Context, op *storagetest.Op) error {
				if op.Kind == storagetest.OpRead {
					reads.Add(1)
				}
				return nil
			},
		})
		next.Put(want, 0)
		f := over(t, next, 1000, 64<<10, nil)
		for range 2 {
			p := make([]byte, c.n)
			if n, err := f.ReadAt(t.Context(), p, c.off); int64(n) != c.n || err != nil || !bytes.Equal(p, want[c.off:c.off+c.n]) {
				t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", c.n, c.off, n, err)
			}
		}
		if reads.Load() != c.want {
			t.Errorf("%d bytes at %d, at most %d: %d requests, want %d", c.n, c.off, c.most, reads.Load(), c.want)
		}
	}
}

// TestSingleFlight: many who miss one block ask the node once; who is cancelled
// leaves, be it the one who asks.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		hook := func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpRead {
				reads.Add(1)
			}
			return nil
		}
		next := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: storagetest.Hooks(hook, storagetest.Delay(storagetest.OpRead, time.Second))})
		want := content(4096)
		next.Put(want, 0)
		f := over(t, next, 4, 4096, nil)
		var wg sync.WaitGroup
		read := func(wait time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			p := make([]byte, 100)
			_, err := f.ReadAt(ctx, p, 7)
			switch {
			case wait < time.Second && !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("one who waits %v: %v", wait, err)
			case wait > time.Second && (err != nil || !bytes.Equal(p, want[7:107])):
				t.Errorf("one who waits %v: %v, or wrong bytes", wait, err)
			}
		}
		wg.Go(func() { read(500 * time.Millisecond) }) // who asks
		synctest.Wait()
		for range 10 {
			wg.Go(func() { read(time.Minute) })
			wg.Go(func() { read(100 * time.Millisecond) })
		}
		start := time.Now()
		wg.Wait()
		if took := time.Since(start); reads.Load() != 2 || took != 1500*time.Millisecond {
			t.Errorf("%d requests in %v, want 2 in 1.5s", reads.Load(), took)
		}
	})
}

// TestStaleFills: a fetch that began before a change, or during it, is not found
// by who reads after it.
func TestStaleFills(t *testing.T) {
	changes := map[string]func(context.Context, *cache.Filter) error{
		"write": func(ctx context.Context, f *cache.Filter) error {
			_, err := f.WriteAt(ctx, []byte("new"), 5000)
			return err
		},
		"zero": func(ctx context.Context, f *cache.Filter) error { return f.Zero(ctx, 5000, 100, false) },
		"trim": func(ctx context.Context, f *cache.Filter) error { return f.Trim(ctx, 0, 9000) },
		"truncate": func(ctx context.Context, f *cache.Filter) error {
			return errors.Join(f.Truncate(ctx, 4500), f.Truncate(ctx, 12288))
		},
	}
	for name, change := range changes {
		for _, kind := range []storagetest.OpKind{storagetest.OpWrite, storagetest.OpZero, storagetest.OpTrim, storagetest.OpTruncate} {
			synctest.Test(t, func(t *testing.T) {
				next := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: storagetest.Delay(kind, time.Second)})
				next.Put(content(12288), 0)
				f := over(t, next, 8, 4096, storagetest.Delay(storagetest.OpWrite, 3*time.Second)) // what was read waits
				var wg sync.WaitGroup
				for _, begin := range []time.Duration{0, 1500 * time.Millisecond} {
					wg.Go(func() {
						time.Sleep(begin)
						_, err := f.ReadAt(t.Context(), make([]byte, 12288), 0)
						if err != nil && !ended(err) {
							t.Error(err)
						}
					})
				}
				time.Sleep(time.Second)
				must(t, change(t.Context(), f))
				check := func() {
					p := make([]byte, 12288)
					if _, err := f.ReadAt(t.Context(), p, 0); err != nil && !ended(err) || !bytes.Equal(p, next.Bytes()) {
						t.Errorf("%s: old bytes after a change, %v", name, err)
					}
				}
				wg.Go(check) // the fills are still under way
				wg.Wait()
				check()
			})
		}
	}
}

// TestBrokenFile: whatever the file does, reads go on.
func TestBrokenFile(t *testing.T) {
	fail := func(kind storagetest.OpKind) storagetest.Hook {
		return func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == kind {
				return errFault
			}
			return nil
		}
	}
	for name, hook := range map[string]storagetest.Hook{
		"full":      storagetest.NoSpaceAfter(3 * 4096),
		"no writes": fail(storagetest.OpWrite),
		"no reads":  fail(storagetest.OpRead),
		"cut":       storagetest.ShortNth(storagetest.OpRead, 1, 10, nil),
	} {
		next := storagetest.NewMemFile(content(10 * 4096))
		f := over(t, next, 4, 4096, hook)
		for range 5 {
			for off := int64(0); off < 40000; off += 1111 {
				p := make([]byte, 960)
				if n, err := f.ReadAt(t.Context(), p, off); n != len(p) || err != nil && !ended(err) || !bytes.Equal(p, next.Bytes()[off:off+960]) {
					t.Fatalf("%s: ReadAt at %d = %d, %v", name, off, n, err)
				}
			}
		}
		counted := counters(f)
		if counted["errors"] == 0 || counted["errors"] > 8 {
			t.Errorf("%s: %v", name, counted)
		}
		if name[:3] == "no " && counted["cached_bytes"] != 0 {
			t.Errorf("%s: broken slots hold %d bytes", name, counted["cached_bytes"])
		}
	}
}

// TestFar: at the largest size and offsets no sum overflows.
func TestFar(t *testing.T) {
	next := storagetest.NewMemFileWith(storagetest.MemOptions{Size: storage.MaxSize})
	f := over(t, next, 4, 64<<10, nil)
	node := checked("cache", f)
	for range 2 {
		p := make([]byte, 10)
		if n, err := node.ReadAt(t.Context(), p, storage.MaxSize-4); n != 4 || !ended(err) || string(p[:4]) == "last" {
			t.Errorf("ReadAt at the end = %d, %v, %q", n, err, p)
		}
	}
	if _, err := node.WriteAt(t.Context(), []byte("last"), storage.MaxSize-4); err != nil {
		t.Error(err)
	}
	p := make([]byte, 4)
	if n, err := node.ReadAt(t.Context(), p, storage.MaxSize-4); n != 4 || err != nil && !ended(err) || string(p) != "last" {
		t.Errorf("ReadAt at the end = %d, %v, %q", n, err, p)
	}
	most := int64(1)<<32 - 1
	must(t, node.Trim(t.Context(), storage.MaxSize-most, most))
	must(t, node.Truncate(t.Context(), storage.MaxSize))
	if n, err := node.ReadAt(t.Context(), p, storage.MaxSize); n != 0 || !ended(err) {
		t.Errorf("ReadAt past the end = %d, %v", n, err)
	}
}

// TestGrown: a block that the node had only in part is fetched anew when others
// have made the node longer.
func TestGrown(t *testing.T) {
	next := storagetest.NewMemFile(content(5000))
	f := over(t, next, 4, 4096, nil)
	for _, size := range []int{5000, 5100, 9000, 6000} {
		next.SetSize(int64(size))
		next.Put(content(size), 0)
		p := make([]byte, 10000)
		if n, err := f.ReadAt(t.Context(), p, 0); n != size || !ended(err) || !bytes.Equal(p[:n], content(size)) {
			t.Errorf("ReadAt of %d = %d, %v", size, n, err)
		}
	}
}

// TestHitsAllocateNothing: a read of what is there.
func TestHitsAllocateNothing(t *testing.T) {
	f := over(t, storagetest.NewMemFile(content(1<<20)), 64, 64<<10, nil)
	p := make([]byte, 4096)
	ctx := t.Context()
	n := testing.AllocsPerRun(100, func() { _, _ = f.ReadAt(ctx, p, 8192) })
	if n > 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}
