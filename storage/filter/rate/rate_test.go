package rate_test

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests.
func options() rate.Options { return rate.Options{Read: 1 << 40, Write: 1 << 40, Burst: 1 << 20} }

func read(t *testing.T, node *storage.Node, n int64) {
	t.Helper()
	if got, err := node.ReadAt(t.Context(), make([]byte, n), 0); err != nil || int64(got) != n {
		t.Errorf("ReadAt(%d bytes, 0) = %d, %v", n, got, err)
	}
}

func write(t *testing.T, node *storage.Node, n int64) {
	t.Helper()
	if got, err := node.WriteAt(t.Context(), make([]byte, n), 0); err != nil || int64(got) != n {
		t.Errorf("WriteAt(%d bytes, 0) = %d, %v", n, got, err)
	}
}

// near reports whether a time is what was reckoned, but for rounding and a burst of
// a few bytes.
func near(took, want time.Duration) bool { return (took - want).Abs() <= time.Millisecond }

// TestThroughput: whatever the sizes of requests, and however many ask, what goes
// through after the burst is the rate.
func TestThroughput(t *testing.T) {
	const kib = 1 << 10
	for _, c := range []struct {
		name          string
		opt           rate.Options
		askers        int
		size, each    int64 // of a request, how many of them
		readT, writeT time.Duration
	}{
		{"one", rate.Options{Read: 100 * kib, Write: 50 * kib}, 1, 4 * kib, 100, 3 * time.Second, 7 * time.Second},
		{"many", rate.Options{Read: 100 * kib, Write: 50 * kib}, 10, 4 * kib, 10, 3 * time.Second, 7 * time.Second},
		{"small burst", rate.Options{Read: 100 * kib, Write: 50 * kib, Burst: 1}, 4, kib, 100, 4 * time.Second, 8 * time.Second},
		{"large burst", rate.Options{Read: 100 * kib, Write: 50 * kib, Burst: 1 << 20}, 4, kib, 100, 0, 0},
		{"larger than the burst", rate.Options{Read: 100 * kib, Write: 100 * kib, Burst: 10 * kib}, 2, 110 * kib, 5, 10900 * time.Millisecond, 10900 * time.Millisecond},
		{"reads alone", rate.Options{Read: 100 * kib}, 1, 4 * kib, 100, 3 * time.Second, 0},
		{"writes alone", rate.Options{Write: 100 * kib}, 1, 4 * kib, 100, 0, 3 * time.Second},
		{"no bound", rate.Options{}, 4, 1 << 20, 10, 0, 0},
		{"a bound beyond all", rate.Options{Read: math.MaxInt64, Write: math.MaxInt64, Burst: math.MaxInt64}, 4, 1 << 20, 10, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				node, _ := over(t, c.opt, storagetest.MemOptions{Size: 2 << 20})
				begun := time.Now()
				var readers, writers sync.WaitGroup
				for range c.askers {
					readers.Go(func() {
						for range c.each {
							read(t, node, c.size)
						}
					})
					writers.Go(func() {
						for range c.each {
							write(t, node, c.size)
						}
					})
				}
				var readT, writeT time.Duration
				var both sync.WaitGroup
				both.Go(func() { readers.Wait(); readT = time.Since(begun) })
				both.Go(func() { writers.Wait(); writeT = time.Since(begun) })
				both.Wait()
				if !near(readT, c.readT) || !near(writeT, c.writeT) {
					t.Errorf("reads took %v, want %v; writes %v, want %v", readT, c.readT, writeT, c.writeT)
				}
			})
		})
	}
}

// TestRealClock: the bound holds by the clock on the wall.
func TestRealClock(t *testing.T) {
	node, _ := over(t, rate.Options{Read: 10 << 20, Burst: 1 << 20}, storagetest.MemOptions{Size: 1 << 20})
	begun := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 12 {
				read(t, node, 64<<10)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begun); took < 200*time.Millisecond || took > 5*time.Second { // 2 MiB after the burst
		t.Errorf("3 MiB took %v", took)
	}
}

// TestNeverMoreThanTheBound: at no time has more gone through than the burst and
// what the time is worth.
func TestNeverMoreThanTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound, burst = 1000, 5000
		begun, sum := time.Now(), float64(0) // by one asker after another: no lock
		node, _ := over(t, rate.Options{Read: bound, Burst: burst}, storagetest.MemOptions{Size: 1 << 20, Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpRead {
				sum += float64(op.Length)
				if most := burst + bound*time.Since(begun).Seconds() + 0.01; sum > most {
					t.Errorf("%v bytes after %v, at most %v", sum, time.Since(begun), most)
				}
			}
			return nil
		}})
		for _, n := range []int64{1, 4000, 20000, 0, 7, 1 << 20, 3} {
			read(t, node, n)
			time.Sleep(time.Duration(n) * 300 * time.Microsecond)
		}
		time.Sleep(24 * time.Hour) // saves up no more than the burst
		from, before := time.Now(), sum
		for sum-before < 8000 {
			read(t, node, 1000)
		}
		if took := time.Since(from); !near(took, 3*time.Second) {
			t.Errorf("8000 bytes after a day took %v, want 3s", took)
		}
	})
}

// TestWhatCarriesNoBytesIsFree, however deep the debt.
func TestWhatCarriesNoBytesIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, rate.Options{Read: 1, Write: 1}, storagetest.MemOptions{Size: 1 << 20})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = node.ReadAt(ctx, make([]byte, 1<<20), 0) })
		wg.Go(func() { _, _ = node.WriteAt(ctx, make([]byte, 1<<20), 0) })
		synctest.Wait()
		begun := time.Now()
		err := errors.Join(
			node.Zero(t.Context(), 0, 1<<20, false), node.Trim(t.Context(), 0, 1<<20), node.Truncate(t.Context(), 2<<20),
			node.Flush(t.Context()), node.Extents(t.Context(), 0, 1<<20, new(storage.ExtentList)))
		if err != nil || time.Since(begun) != 0 {
			t.Errorf("%v, after %v", err, time.Since(begun))
		}
		cancel()
		wg.Wait()
	})
}

// TestFirstComeFirstServed: a small request does not overtake a large one.
func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // protects order
		var order []int64
		node, _ := over(t, rate.Options{Write: 1000}, storagetest.MemOptions{Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpWrite {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, op.Length)
			}
			return nil
		}})
		sizes := []int64{900, 5000, 1, 2000, 2, 3, 100, 4}
		var wg sync.WaitGroup
		for _, n := range sizes {
			wg.Go(func() { write(t, node, n) })
			synctest.Wait() // it waits, or is done
		}
		wg.Wait()
		for i, n := range order {
			if n != sizes[i] {
				t.Fatalf("order %v, want %v", order, sizes)
			}
		}
	})
}

// TestWhoIsCancelledTakesNothing: neither the first who waits nor one behind it,
// and those behind move up.
func TestWhoIsCancelledTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, mem := over(t, rate.Options{Write: 1000}, storagetest.MemOptions{})
		write(t, node, 1000) // the burst
		begun := time.Now()
		var wg sync.WaitGroup
		for _, n := range []int64{1 << 20, 2 << 20, 3 << 20} {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			wg.Go(func() {
				if _, err := node.WriteAt(ctx, make([]byte, n), 0); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("WriteAt = %v", err)
				}
				if took := time.Since(begun); took != 500*time.Millisecond {
					t.Errorf("cancelled after %v", took)
				}
			})
			synctest.Wait()
		}
		write(t, node, 2000)
		if took := time.Since(begun); !near(took, 2*time.Second) {
			t.Errorf("what came behind took %v, want 2s", took)
		}
		wg.Wait()
		if size, err := mem.Size(t.Context()); size != 2000 || err != nil {
			t.Errorf("the file has %d bytes, %v", size, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := node.WriteAt(ctx, nil, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled before: %v", err)
		}
	})
}

// TestManyCancelled: nothing is lost or made, whoever is cancelled when.
func TestManyCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, rate.Options{Read: 1000, Burst: 1}, storagetest.MemOptions{Size: 1 << 20})
		begun, through := time.Now(), int64(1) // the burst makes up for the first
		var mu sync.Mutex                      // protects through
		var wg sync.WaitGroup
		for i := range int64(200) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*7919%300)*11*time.Millisecond)
			defer cancel()
			n := 1 + i*31%100
			wg.Go(func() {
				if _, err := node.ReadAt(ctx, make([]byte, n), 0); err == nil {
					mu.Lock()
					defer mu.Unlock()
					through += n
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		read(t, node, 1)
		took := time.Since(begun).Seconds()
		if want := float64(through-1) / 1000; took < want-0.001 || through < 1000 {
			t.Errorf("%d bytes took %v s, want %v", through, took, want)
		}
	})
}

func TestInvalid(t *testing.T) {
	for field, opt := range map[string]rate.Options{"read": {Read: -1}, "write": {Write: math.MinInt64}, "burst": {Burst: -5}} {
		_, err := rate.New(storage.NewNode("mem", storagetest.NewMemFile(nil), storage.NodeOptions{}), opt)
		if invalid, ok := errors.AsType[*storage.InvalidError](err); !ok || invalid.Field != field {
			t.Errorf("%s below 0: %v", field, err)
		}
	}
}
