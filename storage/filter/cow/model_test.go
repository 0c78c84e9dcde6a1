package cow_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/cow"
	"github.com/extentd/extentd/storage/storagetest"
)

var errFault = errors.New("fault")

// faults fail one operation in ten while they are on, and cut some writes.
func faults(random *rand.Rand, on *atomic.Bool) storagetest.Hook {
	return func(_ context.Context, op *storagetest.Op) error {
		if !on.Load() || op.Kind == storagetest.OpSize || op.Kind == storagetest.OpLimit || random.IntN(10) > 0 {
			return nil
		}
		if op.Kind == storagetest.OpWrite || op.Kind == storagetest.OpRead {
			op.Length = random.Int64N(op.Length + 1)
		}
		return errFault
	}
}

// A run compares a filter with what it is to contain, one change after the other.
type run struct {
	random *rand.Rand
	f      *cow.Filter
	on     atomic.Bool // the faults are
	want   []byte
}

// TestModel makes random changes over a node and an overlay that fail now and
// then: what is read is as the model says, and after a failure old or new.
func TestModel(t *testing.T) {
	for _, minimum := range []int64{1, 512} {
		seed := rand.Uint64()
		t.Logf("changes of seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		r := &run{random: random, want: make([]byte, 300<<10)}
		for i := range r.want {
			r.want[i] = byte(random.IntN(256))
		}
		clear(r.want[70<<10 : 140<<10])
		hook := faults(random, &r.on)
		below := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: storage.Limits{Minimum: minimum, MaxData: 16 << 10}, Hook: hook})
		below.Put(r.want, 0)
		file := scratch(storagetest.MemOptions{Limits: storage.Limits{MaxData: 40 << 10, MaxTrim: 48 << 10, MaxZero: 100 << 10}, Litter: 0xdd, Hook: hook})
		var err error
		if r.f, err = cow.New(t.Context(), checked("below", readOnly{below}), cow.Options{File: checked("overlay", file)}); err != nil {
			t.Fatal(err)
		}
		before := below.Bytes()
		for step := range 200 {
			r.step(t, minimum)
			if step%8 == 0 || t.Failed() {
				r.check(t)
			}
		}
		if !bytes.Equal(below.Bytes(), before) {
			t.Error("the node below has changed")
		}
		if err := r.f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func (r *run) step(t *testing.T, unit int64) {
	const room = 400 << 10
	off := r.random.Int64N(room) / unit * unit
	n := r.random.Int64N(1<<(8+r.random.IntN(11))) / unit * unit
	if r.random.IntN(3) == 0 {
		off, n = off&^(cow.BlockSize-1), n&^(cow.BlockSize-1)
	}
	n = max(unit, min(n, room-off))
	size := int64(len(r.want))
	after := bytes.Clone(r.want)
	grown := append(bytes.Clone(r.want), make([]byte, max(0, off+n-size))...)
	ctx := t.Context()
	r.on.Store(r.random.IntN(2) == 0)
	defer r.on.Store(false)
	var err error
	switch r.random.IntN(8) {
	case 0, 1, 2:
		p := bytes.Repeat([]byte{byte(1 + r.random.IntN(255))}, int(n))
		_, err = r.f.WriteAt(ctx, p, off)
		after = grown
		copy(after[off:], p)
	case 3, 4:
		err = r.f.Zero(ctx, off, n, r.random.IntN(2) == 0)
		after = grown
		clear(after[off : off+n])
	case 5:
		err = r.f.Trim(ctx, off, n)
		r.trimmed(after, off, n)
	case 6:
		if unit == 1 {
			off = r.random.Int64N(room) // any size at all
		}
		err = r.f.Truncate(ctx, off)
		after = append(after, make([]byte, max(0, off-size))...)[:off]
	default:
		err = r.f.Flush(ctx)
	}
	if err == nil {
		r.want = after
		return
	}
	if !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	r.on.Store(false)
	r.settle(t, after)
}

// trimmed clears the whole blocks of [off, off+n), as a trim does.
func (r *run) trimmed(p []byte, off, n int64) {
	end, size := min(off+n, int64(len(p))), int64(len(p))
	lo, hi := (off+cow.BlockSize-1)&^(cow.BlockSize-1), end&^(cow.BlockSize-1)
	if end == size {
		hi = end
	}
	if lo < hi {
		clear(p[lo:hi])
	}
}

// settle takes what a failed change has left, if every byte is the old or the new
// one.
func (r *run) settle(t *testing.T, after []byte) {
	t.Helper()
	size, err := r.f.Size(t.Context())
	lo, hi := len(r.want), len(after)
	if err != nil || int(size) < min(lo, hi) || int(size) > max(lo, hi) {
		t.Fatalf("the size is %d, %v, of %d and %d", size, err, lo, hi)
	}
	if err := r.f.Truncate(t.Context(), int64(max(lo, hi))); err != nil { // a write past the end shows
		t.Fatal(err)
	}
	got := r.read(t, int64(max(lo, hi)))
	at := func(p []byte, i int) byte {
		if i < len(p) {
			return p[i]
		}
		return 0
	}
	for i, b := range got {
		if b != at(r.want, i) && b != at(after, i) {
			t.Fatalf("byte %d is %#x, was %#x and was to be %#x", i, b, at(r.want, i), at(after, i))
		}
	}
	r.want = got
}

func (r *run) read(t *testing.T, size int64) []byte {
	t.Helper()
	p := make([]byte, size+4096)
	n, err := r.f.ReadAt(t.Context(), p, 0)
	if int64(n) != size || !ended(err) {
		t.Fatalf("ReadAt = %d, %v, want %d", n, err, size)
	}
	return p[:n]
}

// check compares all bytes, and what extents say of them.
func (r *run) check(t *testing.T) {
	t.Helper()
	got := r.read(t, int64(len(r.want)))
	if !bytes.Equal(got, r.want) {
		for i := range got {
			if got[i] != r.want[i] {
				t.Fatalf("byte %d is %#x, want %#x", i, got[i], r.want[i])
			}
		}
	}
	node := checked("cow", r.f)
	for off, size := int64(0), int64(len(got)); off < size; {
		var l storage.ExtentList
		if err := node.Extents(t.Context(), off, size-off, &l); err != nil {
			t.Fatal(err)
		}
		for i := range l.Len() {
			e := l.At(i)
			if e.End() > size || e.Status.Has(storage.Zero) && len(bytes.Trim(got[e.Offset:e.End()], "\x00")) > 0 {
				t.Fatalf("extent at %d with length %d of %d is %v", e.Offset, e.Length, size, e.Status)
			}
		}
		off = l.End()
	}
}
