package transfer_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/client/transfer"
)

// A stream is a source that hands out its data, or what has changed of it.
type stream struct {
	*source
	of      transfer.Streaming
	changes []transfer.Extent
}

func (s stream) Streaming() transfer.Streaming { return s.of }

func (s stream) Parts(_ context.Context, off, n int64, visit func(e transfer.Extent, r io.Reader) error) error {
	all := s.extents
	if s.of == transfer.OfChanges {
		all = s.changes
	}
	for _, e := range all {
		lo, hi := max(e.Offset, off), min(e.Offset+e.Length, off+n)
		if lo >= hi || e.Zero && s.of == transfer.OfData {
			continue
		}
		if s.chance.one(s.faults) {
			return errBroken
		}
		part, r := transfer.Extent{Offset: lo, Length: hi - lo, Zero: e.Zero}, bytes.NewReader(s.data[lo:hi])
		if e.Zero {
			r = bytes.NewReader(nil)
		}
		if err := visit(part, r); err != nil {
			return err
		}
	}
	return nil
}

// sizeOfSpans is at least least, and now and then of more than one span.
func sizeOfSpans(t *rapid.T, least int) int {
	size := rapid.IntRange(least, 2*mib).Draw(t, "size")
	if rapid.IntRange(0, 24).Draw(t, "spans") == 24 {
		size += 17 * mib
	}
	return size
}

// A streamed source is copied as one with a map is: whatever fails, and however often.
func TestStreamUntilDone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		size := sizeOfSpans(t, 0)
		zero := rapid.Bool().Draw(t, "target is zero")
		data, extents := content(r, size)
		c := newChance(r.Uint64())
		src := stream{source: &source{data: data, extents: extents, chance: c}, of: transfer.OfData}
		src.faults = rapid.SampledFrom([]int{0, 20, 50}).Draw(t, "faults of the source")
		fill := byte(0xee)
		if zero {
			fill = 0
		}
		dst := newTarget(size, fill, c)
		dst.limits.Minimum = rapid.SampledFrom([]int64{0, 512, 65536}).Draw(t, "minimum")
		dst.inside = int64(size)
		dst.losses = rapid.SampledFrom([]int{0, 3}).Draw(t, "losses")
		opt := transfer.Options{Workers: rapid.IntRange(1, 4).Draw(t, "workers"), TargetIsZero: zero, Interval: 50 * time.Microsecond}
		var last *transfer.Point
		opt.Save = func(p transfer.Point) error {
			last = &p
			dst.mu.Lock()
			defer dst.mu.Unlock()
			if !bytes.Equal(dst.durable[:p.Offset], data[:p.Offset]) {
				t.Errorf("what the point at %d says is not durable", p.Offset)
			}
			return nil
		}
		var result transfer.Result
		for try := 0; ; try++ {
			if try == 20 {
				src.faults, dst.losses = 0, 0
			}
			opt.From = last
			var err error
			if result, err = transfer.Copy(context.Background(), src, dst, opt); err == nil {
				break
			}
			dst.crash()
			opt.TargetIsZero = false
		}
		if !bytes.Equal(dst.durable[:size], data) {
			t.Fatal("the copy differs, or is not flushed")
		}
		if want := sum(data); result.Sum != want || result.Done != int64(size) || result.Copied+result.Skipped != int64(size) || dst.misused != nil {
			t.Errorf("%+v, want %s; %v", result, want, dst.misused)
		}
	})
}

// Of changes, what is in none stays as it is on the target, and all others become what
// the source has, whatever their ends.
func TestStreamOfChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		size := sizeOfSpans(t, 1)
		data, extents := content(r, size)
		c := newChance(r.Uint64())
		src := stream{source: &source{data: data, extents: extents, chance: c}, of: transfer.OfChanges}
		dst := newTarget(size, 0, c)
		minimum := rapid.SampledFrom([]int64{1, 512, 65536}).Draw(t, "minimum")
		dst.limits.Minimum = minimum
		dst.losses = rapid.SampledFrom([]int{0, 3}).Draw(t, "losses")
		copy(dst.now, data)
		copy(dst.durable, data)
		for off := int64(0); off < int64(size); {
			n := min(1+r.Int64N(1<<r.IntN(23)), int64(size)-off)
			if r.IntN(3) > 0 {
				off += n
				continue
			}
			zero := len(bytes.Trim(data[off:off+n], "\x00")) == 0
			src.changes = append(src.changes, transfer.Extent{Offset: off, Length: n, Zero: zero})
			for i := range n {
				dst.now[off+i], dst.durable[off+i] = 0xdd, 0xdd
			}
			off += n
		}
		result, err := transfer.Copy(context.Background(), src, dst, transfer.Options{Workers: rapid.IntRange(1, 4).Draw(t, "workers"), NoSum: true, Interval: 50 * time.Microsecond})
		if err != nil && dst.losses == 0 {
			t.Fatal(err)
		}
		if err == nil && (!bytes.Equal(dst.durable[:size], data) || result.Done != int64(size) || dst.misused != nil) {
			t.Fatalf("the target differs: %+v, %v", result, dst.misused)
		}
	})
}
