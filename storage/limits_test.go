package storage_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// answers is a Limiter that says what it is told.
type answers storage.Limits

func (a *answers) Limit(_ context.Context, which storage.Limit) (int64, error) {
	return [...]int64{a.Minimum, a.Preferred, a.MaxData, a.MaxTrim, a.MaxZero, a.MaxCache}[which], nil
}

func TestLimits(t *testing.T) {
	defaults := storage.Limits{Minimum: 1, Preferred: 4 * kib, MaxData: 64 * mib, MaxTrim: 4*gib - 1, MaxZero: 4*gib - 1, MaxCache: 64 * mib}
	with := func(change func(l *storage.Limits)) storage.Limits {
		l := defaults
		change(&l)
		return l
	}
	type limits = storage.Limits
	for _, c := range []struct {
		name string
		in   limits
		want limits // zero: refused
	}{
		{"defaults", limits{}, defaults},
		{"complete ones stay", defaults, defaults},

		{"minimum 512", limits{Minimum: 512}, with(func(l *limits) { l.Minimum, l.MaxTrim, l.MaxZero = 512, 4*gib-512, 4*gib-512 })},
		{"minimum 4 KiB", limits{Minimum: 4 * kib}, with(func(l *limits) { l.Minimum, l.MaxTrim, l.MaxZero = 4*kib, 4*gib-4*kib, 4*gib-4*kib })},
		{"largest minimum", limits{Minimum: 64 * kib}, with(func(l *limits) {
			l.Minimum, l.Preferred, l.MaxTrim, l.MaxZero = 64*kib, 64*kib, 4*gib-64*kib, 4*gib-64*kib
		})},
		{"minimum too large", limits{Minimum: 128 * kib}, limits{}},
		{"minimum no power of two", limits{Minimum: 3}, limits{}},
		{"minimum negative", limits{Minimum: -1}, limits{}},

		{"smallest preferred", limits{Preferred: 512}, with(func(l *limits) { l.Preferred = 512 })},
		{"largest preferred", limits{Preferred: 2 * mib}, with(func(l *limits) { l.Preferred = 2 * mib })},
		{"preferred too small", limits{Preferred: 256}, limits{}},
		{"preferred below minimum", limits{Minimum: 4 * kib, Preferred: 2 * kib}, limits{}},
		{"preferred too large", limits{Preferred: 4 * mib}, limits{}},
		{"preferred no power of two", limits{Preferred: 3 * kib}, limits{}},
		{"preferred negative", limits{Preferred: -4096}, limits{}},

		{"max_data as preferred", limits{MaxData: 4 * kib}, with(func(l *limits) { l.MaxData, l.MaxCache = 4*kib, 4*kib })},
		{"max_data no power of two", limits{MaxData: 5 * kib}, with(func(l *limits) { l.MaxData, l.MaxCache = 5*kib, 5*kib })},
		{"max_data is clamped", limits{MaxData: 64*mib + 1}, defaults},
		{"max_data is clamped from far", limits{MaxData: 1 << 62}, defaults},
		{"max_data below preferred", limits{MaxData: 4*kib - 1}, limits{}},
		{"max_data no multiple of minimum", limits{Minimum: 512, MaxData: 4*kib + 1}, limits{}},
		{"max_data negative", limits{MaxData: -1}, limits{}},

		{"max_trim as max_data", limits{MaxTrim: 64 * mib}, with(func(l *limits) { l.MaxTrim = 64 * mib })},
		{"max_trim is clamped", limits{MaxTrim: 8 * gib}, defaults},
		{"max_trim is clamped below 4 GiB", limits{Minimum: 512, MaxTrim: 4 * gib}, with(func(l *limits) { l.Minimum, l.MaxTrim, l.MaxZero = 512, 4*gib-512, 4*gib-512 })},
		{"max_trim below max_data", limits{MaxTrim: 64*mib - 1}, limits{}},
		{"max_trim no multiple of minimum", limits{Minimum: 512, MaxTrim: 64*mib + 1}, limits{}},
		{"max_trim negative", limits{MaxTrim: -1}, limits{}},

		{"max_zero as max_data", limits{MaxZero: 64 * mib}, with(func(l *limits) { l.MaxZero = 64 * mib })},
		{"max_zero is clamped", limits{MaxZero: 1 << 62}, defaults},
		{"max_zero below max_data", limits{MaxZero: 64*mib - 1}, limits{}},
		{"max_zero no multiple of minimum", limits{Minimum: 512, MaxZero: 64*mib + 1}, limits{}},

		{"max_cache larger", limits{MaxCache: gib}, with(func(l *limits) { l.MaxCache = gib })},
		{"max_cache is clamped", limits{MaxCache: 8 * gib}, with(func(l *limits) { l.MaxCache = 4*gib - 1 })},
		{"max_cache below max_data", limits{MaxCache: 64*mib - 1}, limits{}},
		{"max_cache no multiple of minimum", limits{Minimum: 512, MaxCache: 64*mib + 1}, limits{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := answers(c.in)
			got, err := storage.ResolveLimits(t.Context(), &in)
			if (c.want == limits{}) {
				if !errors.Is(err, storage.ErrContract) {
					t.Errorf("%+v, %v, want %v", got, err, storage.ErrContract)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		})
	}
}

// TestLimitsConstraints: whatever is answered, what comes out keeps the table of
// constraints, and completing it again changes nothing.
func TestLimitsConstraints(t *testing.T) {
	value := rapid.OneOf(
		rapid.Just(int64(0)),
		rapid.Map(rapid.IntRange(0, 40), func(bits int) int64 { return 1 << bits }),
		rapid.Map(rapid.Int64Range(1, 1<<20), func(n int64) int64 { return n * 512 }),
		rapid.Int64(),
	)
	powerOfTwo := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	rapid.Check(t, func(t *rapid.T) {
		in := storage.Limits{
			Minimum: rapid.OneOf(rapid.Just(int64(0)), value).Draw(t, "minimum"), Preferred: value.Draw(t, "preferred"), MaxData: value.Draw(t, "data"),
			MaxTrim: value.Draw(t, "trim"), MaxZero: value.Draw(t, "zero"), MaxCache: value.Draw(t, "cache"),
		}
		l, err := in.Complete()
		if err != nil {
			if !errors.Is(err, storage.ErrContract) {
				t.Fatal(err)
			}
			return
		}
		if !powerOfTwo(l.Minimum) || l.Minimum > 64*kib {
			t.Errorf("minimum of %+v", l)
		}
		if !powerOfTwo(l.Preferred) || l.Preferred < max(512, l.Minimum) || l.Preferred > 2*mib {
			t.Errorf("preferred of %+v", l)
		}
		if l.MaxData%l.Minimum != 0 || l.MaxData < l.Preferred || l.MaxData > 64*mib {
			t.Errorf("max_data of %+v", l)
		}
		for _, n := range []int64{l.MaxTrim, l.MaxZero, l.MaxCache} {
			if n%l.Minimum != 0 || n < l.MaxData || n > 4*gib-l.Minimum {
				t.Errorf("maxima of %+v", l)
			}
		}
		if again, err := l.Complete(); err != nil || again != l {
			t.Errorf("%+v completed again is %+v, %v", l, again, err)
		}
	})
}

func TestNoLimiter(t *testing.T) {
	got, err := storage.ResolveLimits(t.Context(), nil)
	want, _ := storage.Limits{}.Complete()
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLimitNames(t *testing.T) {
	for which, want := range []string{"minimum", "preferred", "max_data", "max_trim", "max_zero", "max_cache"} {
		if got := storage.Limit(which).String(); got != want {
			t.Errorf("limit %d is %q, want %q", which, got, want)
		}
	}
	if got := fmt.Sprint(storage.Limit(6), storage.Limit(-1)); got != "Limit(6) Limit(-1)" {
		t.Errorf("unknown limits are %q", got)
	}
}

func TestCheckAlignment(t *testing.T) {
	const most = 1<<63 - 1
	for _, c := range []struct {
		minimum, off, n, size int64
		ok                    bool
	}{
		{1, 3, 7, 100, true},
		{512, 0, 512, 1024, true},
		{512, 512, 0, 1024, true},
		{512, 1, 512, 1024, false},
		{512, 0, 511, 1024, false},
		{512, 511, 1, 1024, false},
		{512, 512, 100, 612, true},   // up to the end
		{512, 500, 112, 612, false},  // up to the end from nowhere
		{512, 512, 99, 612, false},   // not quite
		{512, 512, 101, 612, false},  // past it
		{512, 1024, 100, 612, false}, // elsewhere
		{4096, most - 4095, 4096, 612, true},
		{4096, most - 4095, most, 612, false}, // the sum overflows
		{4096, -4096, 4096, 612, true},        // the range is not its concern
	} {
		err := storage.Limits{Minimum: c.minimum}.CheckAlignment(c.off, c.n, c.size)
		if c.ok {
			if err != nil {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		misaligned, ok := errors.AsType[*storage.MisalignedError](err)
		if !errors.Is(err, storage.ErrMisaligned) || !ok || *misaligned != (storage.MisalignedError{Minimum: c.minimum, Offset: c.off, Length: c.n}) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestCheckRange(t *testing.T) {
	const most = 1<<63 - 1
	for _, c := range []struct {
		off, n, size int64
		ok           bool
	}{
		{0, 0, 0, true},
		{0, 1, 0, false},
		{1, 0, 0, false},
		{0, 10, 10, true},
		{10, 0, 10, true},
		{9, 1, 10, true},
		{9, 2, 10, false},
		{10, 1, 10, false},
		{11, 0, 10, false},
		{-1, 1, 10, false},
		{0, -1, 10, false},
		{5, -5, 10, false},
		{1, most, 10, false},
		{most, 1, 10, false},
		{most, most, 10, false},
		{most, 0, most, true},
		{most, 1, most, false},
		{1, most, most, false},
		{0, most, most, true},
		{most - 1, 1, most, true},
		{-most - 1, -most - 1, most, false},
		{-most - 1, most, most, false},
		{most, -most - 1, most, false},
		{storage.MaxSize, storage.MaxSize, storage.MaxSize, false},
	} {
		err := storage.CheckRange(c.off, c.n, c.size)
		if c.ok && err != nil || !c.ok && !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("CheckRange(%d, %d, %d) = %v", c.off, c.n, c.size, err)
		}
	}
}
