package blocksize_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/storagetest"
)

// budget is a part of what SOAK says, or the default.
func budget(t *testing.T, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	const parts = 2 // soak tests of this package share it
	return d / parts
}

// linger makes the windows between reading a block and writing it back wide.
func linger(_ context.Context, op *storagetest.Op) error {
	if op.Kind != storagetest.OpLimit && op.Kind != storagetest.OpSize && rand.IntN(4) == 0 {
		time.Sleep(time.Duration(rand.IntN(40)) * time.Microsecond)
	}
	return nil
}

// TestSoakWritersInOneBlock: writers of parts of blocks, each with bytes of its
// own, and beside them one who changes whole blocks, and one who moves the end of
// the file. Nobody's bytes are lost.
func TestSoakWritersInOneBlock(t *testing.T) {
	for _, l := range []storage.Limits{
		{Minimum: 512},
		{Minimum: 4096, Preferred: 4096, MaxData: 8192, MaxZero: 8192, MaxTrim: 8192},
		{Minimum: 64 << 10, Preferred: 64 << 10, MaxData: 64 << 10},
	} {
		t.Run(name(l), func(t *testing.T) {
			t.Parallel()
			r := &rivals{block: l.Minimum, f: open(t, file(l, linger))}
			r.run(t, budget(t, 1500*time.Millisecond))
		})
	}
}

// rivals share a file: the stripes have the blocks before common, which the
// rewriter changes as a whole, with guests in it; then comes the end.
type rivals struct {
	f     *blocksize.Filter
	block int64
	// started and done count what the rewriter does: see value.
	started, done atomic.Int64
}

const (
	stripes = 7 // in three blocks
	guests  = 3
)

func (r *rivals) common() int64 { return 3 * r.block }
func (r *rivals) end() int64    { return 5 * r.block }

func (r *rivals) run(t *testing.T, d time.Duration) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	if err := r.f.Truncate(t.Context(), r.end()+100); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(d)
	var failed atomic.Bool
	var wg sync.WaitGroup
	start := func(who string, id uint64, step func(ctx context.Context, random *rand.Rand) error) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, id))
			for n := 0; time.Now().Before(deadline) && !failed.Load(); n++ {
				if err := step(t.Context(), random); err != nil {
					failed.Store(true)
					t.Errorf("%s %d, step %d: %v", who, id, n, err)
				}
			}
		})
	}
	for k := range uint64(stripes) {
		start("stripe", k, r.stripe(int64(k)))
	}
	for k := range uint64(guests) {
		start("guest", 10+k, r.guest(int64(k)))
	}
	start("rewriter", 20, r.rewrite)
	start("tail", 30, r.tail(0, 40))
	start("tail", 31, r.tail(41, 100))
	start("mover", 40, r.move)
	wg.Wait()
}

// write writes and reads back.
func (r *rivals) write(ctx context.Context, p []byte, off int64) error {
	if _, err := r.f.WriteAt(ctx, p, off); err != nil {
		return err
	}
	return r.same(ctx, p, off)
}

func (r *rivals) read(ctx context.Context, n int, off int64) ([]byte, error) {
	got := make([]byte, n)
	if k, err := r.f.ReadAt(ctx, got, off); k != n || err != nil && err != io.EOF { //nolint:errorlint // must be bare
		return nil, errors.Join(fmt.Errorf("read of %d bytes at %d = %d", n, off, k), err)
	}
	return got, nil
}

// same compares what is at an offset.
func (r *rivals) same(ctx context.Context, want []byte, off int64) error {
	got, err := r.read(ctx, len(want), off)
	if err != nil {
		return err
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d of %d bytes at %d is %#x, want %#x", i, len(want), off, got[i], want[i])
		}
	}
	return nil
}

// stripe owns bytes of three blocks that no block ends with, and leaves one byte
// between itself and the next, which stays what it is.
func (r *rivals) stripe(k int64) func(context.Context, *rand.Rand) error {
	size := r.common()/stripes - 1
	begin := k * (size + 1)
	own := make([]byte, size+1) // with the byte that nobody writes
	return func(ctx context.Context, random *rand.Rand) error {
		off := random.Int64N(size)
		part := own[off : off+1+random.Int64N(min(size-off, 2*r.block))]
		if len(part) > int(size-off) {
			part = part[:size-off]
		}
		if random.IntN(4) == 0 {
			clear(part)
			if err := r.f.Zero(ctx, begin+off, int64(len(part)), random.IntN(2) == 0); err != nil {
				return err
			}
		} else {
			for i := range part {
				part[i] = byte(1 + random.IntN(255))
			}
			if _, err := r.f.WriteAt(ctx, part, begin+off); err != nil {
				return err
			}
		}
		return r.same(ctx, own, begin)
	}
}

// value is what the rewriter makes all bytes at its nth step: by a write, a zero,
// or a trim.
func value(n int64) byte {
	switch n % 8 {
	case 6:
		return 0
	case 3: // where data is
		return litter
	}
	return byte(1 + n%100)
}

// rewrite changes two whole blocks, and looks at the bytes that are no guest's.
func (r *rivals) rewrite(ctx context.Context, _ *rand.Rand) error {
	n := r.started.Add(1)
	p := bytes.Repeat([]byte{value(n)}, int(2*r.block))
	var err error
	switch n % 8 {
	case 6:
		err = r.f.Zero(ctx, r.common(), 2*r.block, n%16 == 6)
	case 3:
		err = r.f.Trim(ctx, r.common(), 2*r.block)
	default:
		_, err = r.f.WriteAt(ctx, p, r.common())
	}
	r.done.Store(n)
	if n%3 == 0 { // for a guest who has read before to write after
		time.Sleep(50 * time.Microsecond)
	}
	quarter := r.block / 4
	return errors.Join(err, r.same(ctx, p[:quarter-8], r.common()), r.same(ctx, p[:quarter], r.common()+2*r.block-quarter))
}

// guest writes a few bytes in the rewriter's blocks: they are there afterwards, or
// what the rewriter made of them meanwhile.
func (r *rivals) guest(k int64) func(context.Context, *rand.Rand) error {
	n := r.block/2 - 5
	off := r.common() + r.block/4 + k*n + 1 // the second in both blocks
	return func(ctx context.Context, random *rand.Rand) error {
		mine := byte(101 + random.IntN(100))
		before := r.done.Load()
		if _, err := r.f.WriteAt(ctx, bytes.Repeat([]byte{mine}, int(n)), off); err != nil {
			return err
		}
		got, err := r.read(ctx, int(n), off)
		after := r.started.Load()
		for i, b := range got {
			may := b == mine
			for v := before + 1; v <= after && !may; v++ {
				may = b == value(v)
			}
			if !may {
				return fmt.Errorf("byte %d at %d is %#x, want %#x or one of %d later ones", i, off, b, mine, after-before)
			}
		}
		return err
	}
}

// tail owns bytes of the last block that are never cut off.
func (r *rivals) tail(from, to int64) func(context.Context, *rand.Rand) error {
	own := make([]byte, to-from)
	return func(ctx context.Context, random *rand.Rand) error {
		off := random.Int64N(to - from)
		for i := range own[off:] {
			own[off+int64(i)] = byte(1 + random.IntN(255))
		}
		if err := r.write(ctx, own[off:], r.end()+from+off); err != nil {
			return err
		}
		return r.same(ctx, own, r.end()+from)
	}
}

// move makes the file longer and shorter again, with zeros in between, or with
// what it writes there.
func (r *rivals) move(ctx context.Context, random *rand.Rand) error {
	begin := r.end() + 100
	size := begin + random.Int64N(2*r.block)
	grow := random.IntN(3)
	want := make([]byte, size-begin)
	var err error
	switch {
	case grow == 0:
		err = r.f.Truncate(ctx, size)
	case grow == 1 && size > begin:
		err = r.f.Zero(ctx, size-1, 1, false)
	case size > begin:
		k := random.Int64N(size - begin)
		for i := range want[k:] {
			want[k+int64(i)] = byte(1 + random.IntN(255))
		}
		_, err = r.f.WriteAt(ctx, want[k:], begin+k)
	}
	if err != nil {
		return err
	}
	if now, err := r.f.Size(ctx); err != nil {
		return err
	} else if now != size {
		return fmt.Errorf("the size is %d, want %d", now, size)
	}
	if err := r.same(ctx, want, begin); err != nil {
		return err
	}
	return r.f.Truncate(ctx, begin)
}
