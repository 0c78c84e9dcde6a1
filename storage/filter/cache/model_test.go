package cache_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/filter/cache"
	"github.com/extentd/extentd/storage/storagetest"
)

var errFault = errors.New("fault")

// faults fail one operation in so many, and cut some.
func faults(random *rand.Rand, on *atomic.Bool, kinds ...storagetest.OpKind) storagetest.Hook {
	return func(_ context.Context, op *storagetest.Op) error {
		for _, k := range kinds {
			if on.Load() && op.Kind == k && random.IntN(8) == 0 {
				op.Length = random.Int64N(op.Length + 1)
				return errFault
			}
		}
		return nil
	}
}

// TestModel makes random changes and reads through tiny caches, over a node and a
// file that fail now and then. What is read is what the node has: after a failure
// nobody knows better.
func TestModel(t *testing.T) {
	for _, blocks := range []int64{1, 2, 4, 64} {
		seed := rand.Uint64()
		t.Logf("changes of seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		var nextFails, fileFails atomic.Bool
		next := storagetest.NewMemFileWith(storagetest.MemOptions{
			Size: 100 << 10,
			Hook: faults(random, &nextFails, storagetest.OpRead, storagetest.OpWrite, storagetest.OpZero, storagetest.OpTrim, storagetest.OpTruncate),
		})
		f := over(t, next, blocks, 4096, faults(random, &fileFails, storagetest.OpRead, storagetest.OpWrite))
		for step := range 1000 {
			nextFails.Store(random.IntN(4) == 0)
			fileFails.Store(blocks == 64 && step > 700 && random.IntN(4) == 0)
			if random.IntN(3) == 0 {
				if err := change(t, f, random); err != nil && !errors.Is(err, errFault) {
					t.Fatal(err)
				}
			}
			check(t, f, next.Bytes(), random, nextFails.Load())
		}
		counted := counters(f)
		if counted["hits"] == 0 || counted["misses"] == 0 || blocks < 64 && counted["evictions"] == 0 || (blocks == 64) != (counted["errors"] > 0) {
			t.Errorf("%d blocks: %v", blocks, counted)
		}
		if counted["cached_bytes"] < 0 || counted["cached_bytes"] > blocks*4096 {
			t.Errorf("%d bytes are cached in %d blocks", counted["cached_bytes"], blocks)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func change(t *testing.T, f *cache.Filter, random *rand.Rand) error {
	off, n := random.Int64N(150<<10), random.Int64N(10<<10)
	switch random.IntN(5) {
	case 0, 1:
		_, err := f.WriteAt(t.Context(), bytes.Repeat([]byte{byte(random.IntN(256))}, int(n)), off)
		return err
	case 2:
		return f.Zero(t.Context(), off, n, random.IntN(2) == 0)
	case 3:
		return f.Trim(t.Context(), off, n)
	default:
		return f.Truncate(t.Context(), off)
	}
}

// check reads somewhere, mostly near the beginning.
func check(t *testing.T, f *cache.Filter, want []byte, random *rand.Rand, mayFail bool) {
	t.Helper()
	off, n := random.Int64N(40<<10), random.Int64N(20<<10)
	if random.IntN(4) == 0 {
		off = random.Int64N(160 << 10)
	}
	size := int64(len(want))
	p := make([]byte, n)
	got, err := f.ReadAt(t.Context(), p, off)
	off = min(off, size)
	if !bytes.Equal(p[:got], want[off:off+int64(got)]) {
		t.Fatalf("%d bytes at %d are wrong", n, off)
	}
	if mayFail && errors.Is(err, errFault) {
		return
	}
	left := min(n, size-off)
	if int64(got) != left || left == n && err != nil && !ended(err) || left < n && !ended(err) {
		t.Fatalf("ReadAt(%d bytes, %d) of %d = %d, %v", n, off, size, got, err)
	}
}

func counters(f *cache.Filter) map[string]int64 {
	all := map[string]int64{}
	for _, c := range f.Counters() {
		all[c.Name] = c.Value
	}
	return all
}

// TestConcurrentModel has writers, each with a stripe that does not end at a
// block, and readers of all of it: who reads after a write has returned sees it.
func TestConcurrentModel(t *testing.T) {
	const workers, stripe, steps = 2, 6000, 200
	next := storagetest.NewMemFileWith(storagetest.MemOptions{Size: workers * stripe, Hook: jitter()})
	f := over(t, next, 3, 4096, jitter())
	var done, begun [workers]atomic.Int64
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			for v := range int64(steps) {
				begun[k].Store(v)
				p := bytes.Repeat([]byte{byte(v)}, stripe)
				var err error
				if v%16 == 0 && byte(v) == 0 {
					err = f.Zero(t.Context(), int64(k*stripe), stripe, v%32 == 0)
				} else {
					_, err = f.WriteAt(t.Context(), p, int64(k*stripe))
				}
				if err != nil {
					t.Error(err)
				}
				done[k].Store(v)
				time.Sleep(time.Duration(rand.Int64N(3000)) * time.Microsecond) // what is stale would be seen
			}
		})
		wg.Go(func() {
			p := make([]byte, stripe)
			for i := 0; i < steps || done[k].Load() < steps-1; i++ {
				k := (k + i) % workers
				least := done[k].Load()
				_, err := f.ReadAt(t.Context(), p, int64(k*stripe))
				most := begun[k].Load()
				for i, b := range p { // the node may show a part of a write
					if age := int64(byte(most) - b); err != nil && !ended(err) || age > most-least {
						t.Errorf("byte %d of stripe %d is of %d versions ago, at most %d; %v", i, k, age, most-least, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, workers*stripe)
	for off := range int64(3) { // no slot was lost
		for range 2 {
			if _, err := f.ReadAt(t.Context(), p[:1], off*4096); err != nil {
				t.Error(err)
			}
		}
	}
	if c := counters(f); c["cached_bytes"] != workers*stripe || c["hits"] == 0 || c["errors"] > 0 {
		t.Errorf("%v", c)
	}
}
