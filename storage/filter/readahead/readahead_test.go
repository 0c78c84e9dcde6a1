package readahead_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/readahead"
	"github.com/extentd/extentd/storage/storagetest"
)

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
	next := checked("next", storagetest.NewMemFile(nil))
	for _, size := range []int64{-1, 1, 4096, 65537, 128 << 20, storage.MaxSize} {
		var invalid *storage.InvalidError
		if _, err := readahead.New(next, readahead.Options{Size: size}); !errors.As(err, &invalid) || invalid.Field != "size" {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// slow is a file of which every read takes a second, and how many were asked.
func slow(n int, most int64) (*storagetest.MemFile, *atomic.Int64) {
	reads := new(atomic.Int64)
	count := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpRead {
			reads.Add(1)
		}
		return nil
	}
	m := storagetest.NewMemFileWith(storagetest.MemOptions{
		Limits: storage.Limits{MaxData: most},
		Hook:   storagetest.Hooks(count, storagetest.Delay(storagetest.OpRead, time.Second)),
	})
	m.Put(content(n), 0)
	return m, reads
}

// TestSequential reads a file in small pieces, in less requests and time than one
// for each.
func TestSequential(t *testing.T) {
	for _, c := range []struct {
		most, want int64 // requests, with those at the end
	}{{0, 10}, {16 << 10, 66}} {
		synctest.Test(t, func(t *testing.T) {
			next, reads := slow(1<<20+100, c.most)
			f := over(t, next, 256<<10)
			var got []byte
			start := time.Now()
			for off := int64(0); ; off += 4096 {
				p := make([]byte, 4096)
				n, err := f.ReadAt(t.Context(), p, off)
				got = append(got, p[:n]...)
				if ended(err) {
					break
				}
				must(t, err)
			}
			if !bytes.Equal(got, next.Bytes()) {
				t.Error("wrong bytes")
			}
			if took := time.Since(start); reads.Load() > c.want || took > time.Duration(c.want)*time.Second {
				t.Errorf("%d requests in %v, want %d", reads.Load(), took, c.want)
			}
			want := map[string]int64{"prefetched": 1<<20 + 100 - 8192, "used": 1<<20 + 100 - 8192, "wasted": 0}
			if diff := cmp.Diff(want, counters(f)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRandom: what is not sequential costs no request more and no memory.
func TestRandom(t *testing.T) {
	f := over(t, storagetest.NewMemFile(content(8<<20)), 0)
	p := make([]byte, 4096)
	ctx := t.Context()
	at := int64(0)
	n := testing.AllocsPerRun(500, func() {
		at = (at + 1234567) % (8<<20 - 4096)
		_, _ = f.ReadAt(ctx, p, at)
	})
	if c := counters(f); n > 0 || c["prefetched"] > 0 {
		t.Errorf("%v allocations, %v", n, c)
	}
}

// begin makes the filter read ahead of [8192, ...), and returns at once.
func begin(t *testing.T, f *readahead.Filter, p []byte) {
	t.Helper()
	for off := range int64(2) {
		if _, err := f.ReadAt(t.Context(), p[:4096], off*4096); err != nil {
			t.Error(err)
		}
	}
}

// TestBound: many streams take no more windows than there are, and do not take them
// from each other before they are read.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		next := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1 << 30, Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpRead && op.Length >= 64<<10 {
				now.Add(1)
				most.Store(max(most.Load(), now.Load()))
				time.Sleep(time.Second)
				now.Add(-1)
			}
			return nil
		}})
		f := over(t, next, 64<<10)
		var wg sync.WaitGroup
		for k := range int64(16) {
			wg.Go(func() {
				for off := int64(0); off < 1<<20; off += 4096 {
					if _, err := f.ReadAt(t.Context(), make([]byte, 4096), k<<24+off); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		must(t, f.Close())
		if most.Load() != readahead.MaxWindows {
			t.Errorf("%d windows at once, want %d", most.Load(), readahead.MaxWindows)
		}
		if c := counters(f); c["used"] == 0 || c["wasted"] > c["prefetched"]/4 {
			t.Errorf("%v", c)
		}
	})
}

// TestWaiting: a read of what is on its way waits for it, but not longer than it
// wants to.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next, reads := slow(1<<20, 0)
		f := over(t, next, 64<<10)
		p := make([]byte, 4096)
		begin(t, f, p) // two requests, and the second took as long as the one ahead
		begin := time.Now()
		_, err := f.ReadAt(t.Context(), p, 8192) // the window after it is on its way now
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := f.ReadAt(ctx, p, 100<<10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a reader that waited in vain: %v", err)
		}
		if _, err := f.ReadAt(t.Context(), p, 100<<10); err != nil || !bytes.Equal(p, next.Bytes()[100<<10:104<<10]) {
			t.Errorf("a reader that waited: %v", err)
		}
		if took := time.Since(begin); took != time.Second || reads.Load() != 4 {
			t.Errorf("%d requests in %v, want 4 in 1s", reads.Load(), took)
		}
	})
}

// TestClose ends what is being read ahead.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1 << 20, Hook: func(ctx context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpRead && op.Offset >= 8192 {
				<-ctx.Done()
				time.Sleep(time.Second) // it takes a while
				return ctx.Err()
			}
			return nil
		}})
		f := over(t, next, 64<<10)
		begin(t, f, make([]byte, 4096))
		synctest.Wait()
		start := time.Now()
		must(t, f.Close())
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v, and what is read ahead ends in a second", took)
		}
		if _, err := f.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("ReadAt = %v", err)
		}
	})
}

// TestFailures: a read ahead that fails is nobody's business, and who reads there
// gets what the node says then.
func TestFailures(t *testing.T) {
	for name, fault := range map[string]storagetest.Hook{
		"fails": storagetest.FailNth(storagetest.OpRead, 2, errFault),
		"short": storagetest.ShortNth(storagetest.OpRead, 2, 3<<10, nil),
	} {
		var ahead atomic.Bool
		next := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: func(ctx context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpRead && op.Length < 64<<10 {
				return nil // only what is read ahead counts
			}
			ahead.Store(true)
			return fault(ctx, op)
		}})
		want := content(512 << 10)
		next.Put(want, 0)
		f := over(t, next, 64<<10)
		for off := int64(0); off < 512<<10; off += 4096 {
			p := make([]byte, 4096)
			if n, err := f.ReadAt(t.Context(), p, off); n != 4096 || err != nil && !ended(err) || !bytes.Equal(p, want[off:off+4096]) {
				t.Fatalf("%s: ReadAt at %d = %d, %v", name, off, n, err)
			}
		}
		if !ahead.Load() {
			t.Errorf("%s: nothing was read ahead", name)
		}
	}
}

// TestStale: what was read ahead before a change, or during it, is not seen by
// who reads after it.
func TestStale(t *testing.T) {
	type file = readahead.Filter
	changes := map[string]func(context.Context, *file) error{
		"write": func(ctx context.Context, f *file) error { _, err := f.WriteAt(ctx, []byte("new"), 10000); return err },
		"zero":  func(ctx context.Context, f *file) error { return f.Zero(ctx, 10000, 100, false) },
		"trim":  func(ctx context.Context, f *file) error { return f.Trim(ctx, 8192, 9000) },
		"truncate": func(ctx context.Context, f *file) error {
			return errors.Join(f.Truncate(ctx, 9000), f.Truncate(ctx, 30000))
		},
		"grow": func(ctx context.Context, f *file) error { return f.Zero(ctx, 200000, 1, true) }, // behind the window
	}
	for name, change := range changes {
		for _, ahead := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} { // before, while it is changed
			synctest.Test(t, func(t *testing.T) {
				// The MemFile reads once the hook is done: so what is read is
				// taken before the delay here.
				next := storagetest.NewMemFileWith(storagetest.MemOptions{})
				next.Put(content(20000), 0)
				f := over(t, late{next}, 64<<10)
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(ahead)
					begin(t, f, make([]byte, 4096))
				})
				time.Sleep(time.Second)
				must(t, change(t.Context(), f))
				check := func() {
					p := make([]byte, len(next.Bytes()))
					if n, err := f.ReadAt(t.Context(), p, 0); n != len(p) || err != nil && !ended(err) || !bytes.Equal(p, next.Bytes()) {
						t.Errorf("%s: old bytes after a change, or %d, %v", name, n, err)
					}
				}
				wg.Go(check) // what is read ahead is still under way
				wg.Wait()
				check()
			})
		}
	}
}

// late answers long after it has read, and changes long after it was asked.
type late struct{ *storagetest.MemFile }

func (l late) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := l.MemFile.ReadAt(ctx, p, off)
	if len(p) >= 64<<10 {
		time.Sleep(3 * time.Second)
	}
	return n, err
}

func (l late) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	time.Sleep(time.Second)
	return l.MemFile.WriteAt(ctx, p, off)
}

func (l late) Zero(ctx context.Context, off, n int64, keep bool) error {
	time.Sleep(time.Second)
	return l.MemFile.Zero(ctx, off, n, keep)
}

func (l late) Trim(ctx context.Context, off, n int64) error {
	time.Sleep(time.Second)
	return l.MemFile.Trim(ctx, off, n)
}

func (l late) Truncate(ctx context.Context, size int64) error {
	time.Sleep(time.Second)
	return l.MemFile.Truncate(ctx, size)
}

// TestFar: at the largest size and offsets no sum overflows.
func TestFar(t *testing.T) {
	f := over(t, storagetest.NewMemFileWith(storagetest.MemOptions{Size: storage.MaxSize}), 0)
	p := make([]byte, 4096)
	for off := storage.MaxSize - 10*4096; off < storage.MaxSize+8192; off += 4096 {
		n, err := f.ReadAt(t.Context(), p, off)
		if want := int(max(0, min(4096, storage.MaxSize-off))); n != want || err != nil && !ended(err) || n < 4096 && !ended(err) {
			t.Errorf("ReadAt at %d = %d, %v", off, n, err)
		}
	}
	most := int64(1)<<32 - 1
	must(t, f.Trim(t.Context(), storage.MaxSize-most, most))
	must(t, f.Truncate(t.Context(), storage.MaxSize))
}
