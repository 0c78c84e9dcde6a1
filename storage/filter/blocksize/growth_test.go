package blocksize_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
)

// TestSoakGrowth: who makes the file longer, to sizes that are no multiple of its
// minimum, does not cut off others, nor do others get in the way of who writes
// where it ends.
func TestSoakGrowth(t *testing.T) {
	for _, l := range []storage.Limits{{Minimum: 512}, {Minimum: 4096, Preferred: 4096, MaxData: 4096}} {
		t.Run(name(l), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			f := open(t, file(l, linger))
			for deadline := time.Now().Add(budget(t, time.Second)); time.Now().Before(deadline) && !t.Failed(); {
				if err := f.Truncate(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				grow(t, f, random, l.Minimum)
			}
		})
	}
}

// grow makes changes at the end of the file and behind it, all at once.
func grow(t *testing.T, f storage.Writer, random *rand.Rand, block int64) {
	ctx := t.Context()
	var want []byte
	changes := []func(context.Context) error{func(ctx context.Context) error { return f.Flush(ctx) }}
	at := random.Int64N(block)
	first := bytes.Repeat([]byte{0xff}, int(at)+1)
	if _, err := f.WriteAt(ctx, first, 0); err != nil {
		t.Fatal(err)
	}
	want = append(want, first...)
	for k := range 6 {
		from := int64(len(want)) + random.Int64N(block)/4
		end := from + 1 + random.Int64N(2*block)
		switch random.IntN(4) {
		case 0: // nobody who changes a part of a block
			from, end = (from+block-1)/block*block, (end+2*block)/block*block
		case 1:
			end = (end + block) / block * block
		}
		p := bytes.Repeat([]byte{byte(k + 1)}, int(end-from))
		if random.IntN(4) == 0 {
			clear(p)
			changes = append(changes, func(ctx context.Context) error { return f.Zero(ctx, from, end-from, k%2 == 0) })
		} else {
			changes = append(changes, func(ctx context.Context) error { _, err := f.WriteAt(ctx, p, from); return err })
		}
		want = append(append(want, make([]byte, from-int64(len(want)))...), p...)
	}
	// Over and over again, where the file ended before.
	first[at] = 0xee
	want[at] = 0xee
	for range 4 {
		changes = append(changes, func(ctx context.Context) error { _, err := f.WriteAt(ctx, first[at:], at); return err })
	}
	var wg sync.WaitGroup
	for _, change := range changes {
		wg.Go(func() {
			if err := change(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(want)+1)
	n, _ := f.(storage.File).ReadAt(ctx, got, 0)
	if n != len(want) {
		t.Errorf("the file has %d bytes, want %d", n, len(want))
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("byte %d of %d is %#x, want %#x", i, n, got[i], want[i])
			return
		}
	}
}
