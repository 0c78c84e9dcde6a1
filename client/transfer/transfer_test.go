package transfer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/client/transfer"
)

// Whatever fails, and however often: a copy that is gone on with until it succeeds
// has copied everything, and what a point says is there was flushed.
func TestCopyUntilDone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		size := rapid.IntRange(0, 6*mib).Draw(t, "size")
		more := rapid.SampledFrom([]int{0, 1, 4096, mib}).Draw(t, "more")
		zero := rapid.Bool().Draw(t, "target is zero")
		minimum := rapid.SampledFrom([]int64{0, 1, 512, 65536}).Draw(t, "minimum")
		data, extents := content(r, size)
		c := newChance(r.Uint64())
		src := &source{data: data, extents: extents, chance: c, limits: transfer.Limits{Preferred: r.Int64N(4 * mib)}}
		src.limits.Minimum = rapid.SampledFrom([]int64{0, 512, 4096}).Draw(t, "source's minimum")
		src.faults = rapid.SampledFrom([]int{0, 5, 50}).Draw(t, "faults of the source")
		fill := byte(0xee)
		if zero {
			fill = 0
		}
		dst := newTarget(size+more, fill, c)
		dst.limits = transfer.Limits{Minimum: minimum}
		dst.inside = int64(size)
		dst.faults = rapid.SampledFrom([]int{0, 10, 50}).Draw(t, "faults of the target")
		dst.losses = rapid.SampledFrom([]int{0, 3, 10}).Draw(t, "losses")
		opt := transfer.Options{
			Workers:      rapid.IntRange(1, 5).Draw(t, "workers"),
			TargetIsZero: zero,
			Interval:     50 * time.Microsecond,
			Save: func(p transfer.Point) error {
				dst.mu.Lock()
				defer dst.mu.Unlock()
				if !bytes.Equal(dst.durable[:p.Offset], data[:p.Offset]) {
					t.Errorf("what the point at %d says is not durable", p.Offset)
				}
				return nil
			},
		}
		result := until(t, src, dst, opt)
		if !bytes.Equal(dst.durable[:size], data) {
			t.Fatal("the copy differs, or is not flushed")
		}
		if dst.misused != nil {
			t.Fatal(dst.misused)
		}
		checkBehind(t, dst.now[size:], fill, minimum)
		if want := sum(data); result.Sum != want {
			t.Errorf("the checksum is %s, want %s", result.Sum, want)
		}
		if result.Done != int64(size) || result.Copied+result.Skipped != int64(size) {
			t.Errorf("%+v", result)
		}
	})
}

// until copies again and again, each time from the last point, as one that went
// through a file.
func until(t *rapid.T, src *source, dst *target, opt transfer.Options) transfer.Result {
	save := opt.Save
	for try := 0; ; try++ {
		if try == 60 { // it has to end some time
			src.faults, dst.faults, dst.losses = 0, 0, 0
		}
		opt.Save = func(p transfer.Point) error {
			text, err := json.Marshal(p)
			if err != nil {
				return err
			}
			opt.From = new(transfer.Point)
			return errors.Join(save(p), json.Unmarshal(text, opt.From))
		}
		result, err := transfer.Copy(context.Background(), src, dst, opt)
		if err == nil {
			return result
		}
		if !errors.Is(err, errBroken) && !errors.Is(err, transfer.ErrLost) {
			t.Fatal(err)
		}
		dst.crash()
		opt.TargetIsZero = false // nobody knows anymore
		if opt.From != nil {
			if err := opt.From.Samples.Match(context.Background(), dst); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// checkBehind makes sure that what lies behind the source's end is untouched, up to
// the block that it ends in.
func checkBehind(t *rapid.T, rest []byte, fill byte, minimum int64) {
	touched := len(bytes.TrimRight(rest, string(rune(fill))))
	if fill == 0xee {
		touched = len(rest) - bytes.Count(rest, []byte{fill})
	}
	if int64(touched) >= max(minimum, 1) {
		t.Errorf("%d bytes behind the end of the source were written to", touched)
	}
}

// A resumed copy reads nothing of what is finished again.
func TestResumeReadsTheRest(t *testing.T) {
	c := newChance(1)
	data, _ := content(rand.New(rand.NewPCG(1, 2)), 8*mib)
	for i := range data {
		data[i] |= 1
	}
	src := &source{data: data, extents: []transfer.Extent{{Length: 8 * mib}}, chance: c}
	dst := newTarget(8*mib, 0, c)
	var last transfer.Point
	stop := errors.New("stop")
	_, err := transfer.Copy(t.Context(), src, dst, transfer.Options{
		Workers: 1, TargetIsZero: true, Interval: time.Microsecond,
		Save: func(p transfer.Point) error {
			if last = p; p.Offset >= 3*mib {
				return stop
			}
			return nil
		},
	})
	if !errors.Is(err, stop) && err != nil || last.Offset == 0 {
		t.Fatalf("%v at %d", err, last.Offset)
	}
	src.reads = nil
	result, err := transfer.Copy(t.Context(), src, dst, transfer.Options{From: &last})
	if err != nil || result.Sum != sum(data) || !bytes.Equal(dst.durable, data) {
		t.Fatalf("%v, %+v", err, result)
	}
	for block, n := range src.reads {
		if block < last.Offset/mib || n != mib {
			t.Errorf("%d bytes of block %d were read, after a point at %d", n, block, last.Offset)
		}
	}
}

// Zeros of any size cost nothing, and their checksum little.
func TestSparse(t *testing.T) {
	const size = 1 << 40
	src := &huge{size: size}
	dst := &huge{size: size}
	begin := time.Now()
	result, err := transfer.Copy(t.Context(), src, dst, transfer.Options{TargetIsZero: true})
	if err != nil || result.Skipped != size || src.calls+dst.calls != 0 {
		t.Errorf("%v, %+v, %d reads, %d writes", err, result, src.calls, dst.calls)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("1 TiB of zeros takes %v", took)
	}
	if _, err := transfer.Copy(t.Context(), src, dst, transfer.Options{}); err != nil || dst.calls != size>>30 {
		t.Errorf("%v, %d zeros written", err, dst.calls)
	}
}

func TestRefusals(t *testing.T) {
	c := newChance(1)
	data, extents := content(rand.New(rand.NewPCG(1, 2)), 3*mib)
	for name, test := range map[string]struct {
		change func(src *source, dst *target, opt *transfer.Options)
		is     error
		want   string
	}{
		"a small target":   {func(_ *source, dst *target, _ *transfer.Options) { dst.now = dst.now[:mib] }, nil, "1048576 bytes"},
		"a changed source": {func(src *source, _ *target, _ *transfer.Options) { src.changed = transfer.ErrChanged }, transfer.ErrChanged, ""},
		"a gap":            {func(src *source, _ *target, _ *transfer.Options) { src.extents = src.extents[1:] }, nil, "comes next"},
		"an early end":     {func(src *source, _ *target, _ *transfer.Options) { src.extents = src.extents[:len(src.extents)-1] }, nil, "ends at"},
		"odd limits":       {func(src *source, _ *target, _ *transfer.Options) { src.limits.Minimum = 100 }, nil, "power of two"},
		"a huge minimum":   {func(_ *source, dst *target, _ *transfer.Options) { dst.limits.Minimum = mib }, nil, "power of two"},
		"a point beyond":   {func(_ *source, _ *target, o *transfer.Options) { o.From = &transfer.Point{Offset: 4 * mib} }, nil, "go on"},
		"a point between":  {func(_ *source, _ *target, o *transfer.Options) { o.From = &transfer.Point{Offset: 5} }, nil, "go on"},
		"a sum of nonsense": {func(_ *source, _ *target, o *transfer.Options) {
			o.From = &transfer.Point{Offset: mib, Sum: []byte("x")}
		}, nil, "checksum"},
		"always lost": {func(_ *source, dst *target, _ *transfer.Options) { dst.losses = 1 }, transfer.ErrLost, "again and again"},
		"no place for the state": {func(_ *source, _ *target, o *transfer.Options) {
			o.Save = func(transfer.Point) error { return errBroken }
		}, errBroken, "keep"},
	} {
		t.Run(name, func(t *testing.T) {
			src := &source{data: data, extents: extents, chance: c}
			dst := newTarget(3*mib, 0, c)
			opt := transfer.Options{TargetIsZero: true}
			test.change(src, dst, &opt)
			_, err := transfer.Copy(t.Context(), src, dst, opt)
			if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %v %q", err, test.is, test.want)
			}
		})
	}
}

// A copy ends with its context, and leaves nothing behind.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	src := &huge{size: 1 << 40}
	dst := &huge{size: 1 << 40, zero: func() { cancel() }}
	if _, err := transfer.Copy(ctx, src, dst, transfer.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
