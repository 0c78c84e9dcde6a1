package storage

import (
	"context"
	"fmt"
)

// A Limit names one of the six block size limits of a node or image.
type Limit int

// The six limits; all in bytes.
const (
	Minimum   Limit = iota // offsets and lengths are multiples of it; a power of two, 1 to 64 KiB
	Preferred              // the best request size; a power of two, max(512, Minimum) to 2 MiB
	MaxData                // the longest read or write; a multiple of Minimum, >= Preferred
	MaxTrim                // the longest trim; a multiple of Minimum, >= MaxData
	MaxZero                // the longest zero; likewise
	MaxCache               // the longest cache request; likewise
	limitCount
)

// String is the limit's name on the wire.
func (l Limit) String() string {
	names := [limitCount]string{"minimum", "preferred", "max_data", "max_trim", "max_zero", "max_cache"}
	if l < 0 || l >= limitCount {
		return fmt.Sprintf("Limit(%d)", int(l))
	}
	return names[l]
}

// Bounds and defaults of the limits, bytes.
const (
	maxMinimum       = 64 << 10
	minPreferred     = 512
	maxPreferred     = 2 << 20
	defaultPreferred = 4 << 10
	maxData          = 64 << 20
	maxRequest       = 4 << 30 // trim, zero: the most is this less Minimum
)

// A Limiter answers with one limit: 0 lets the caller pick the default, an
// error means that it cannot be known. Nodes and mappers may be Limiters.
type Limiter interface {
	Limit(ctx context.Context, which Limit) (int64, error)
}

// Limits are the six together, complete and consistent when they come from
// [ResolveLimits].
type Limits struct {
	Minimum, Preferred, MaxData, MaxTrim, MaxZero, MaxCache int64
}

// ResolveLimits asks from for all six, puts in the defaults, clamps what is
// larger than the bounds, and refuses what contradicts them. A nil Limiter
// gives the defaults.
func ResolveLimits(ctx context.Context, from Limiter) (Limits, error) {
	var v [limitCount]int64
	if from != nil {
		for which := range v {
			n, err := from.Limit(ctx, Limit(which))
			if err != nil {
				return Limits{}, fmt.Errorf("limit %v: %w", Limit(which), err)
			}
			v[which] = n
		}
	}
	return Limits{v[Minimum], v[Preferred], v[MaxData], v[MaxTrim], v[MaxZero], v[MaxCache]}.Complete()
}

// Complete fills the zero fields with their defaults, clamps the maxima, and
// reports an error that wraps [ErrContract] where a constraint is broken.
func (l Limits) Complete() (Limits, error) {
	l.Minimum = or(l.Minimum, 1)
	if l.Minimum < 1 || l.Minimum > maxMinimum || !powerOfTwo(l.Minimum) {
		return l, limitError(Minimum, l.Minimum, "a power of two from 1 to 65536")
	}
	l.Preferred = or(l.Preferred, max(defaultPreferred, l.Minimum))
	if l.Preferred < max(minPreferred, l.Minimum) || l.Preferred > maxPreferred || !powerOfTwo(l.Preferred) {
		return l, limitError(Preferred, l.Preferred, "a power of two from max(512, minimum) to 2097152")
	}
	l.MaxData = min(or(l.MaxData, maxData), maxData)
	if l.MaxData < l.Preferred || l.MaxData%l.Minimum != 0 {
		return l, limitError(MaxData, l.MaxData, "a multiple of minimum, at least preferred")
	}
	most := int64(maxRequest) - l.Minimum
	l.MaxTrim = min(or(l.MaxTrim, most), most)
	l.MaxZero = min(or(l.MaxZero, most), most)
	l.MaxCache = min(or(l.MaxCache, l.MaxData), most)
	for _, m := range []struct {
		which Limit
		value int64
	}{{MaxTrim, l.MaxTrim}, {MaxZero, l.MaxZero}, {MaxCache, l.MaxCache}} {
		if m.value < l.MaxData || m.value%l.Minimum != 0 {
			return l, limitError(m.which, m.value, "a multiple of minimum, at least max_data")
		}
	}
	return l, nil
}

// CheckAlignment reports a *MisalignedError when [off, off+n) does not begin
// and end at multiples of the minimum. The end of the image or file, size, is
// allowed as an end whatever it is a multiple of.
func (l Limits) CheckAlignment(off, n, size int64) error {
	mask := l.Minimum - 1
	if off&mask == 0 && (n&mask == 0 || off+n == size) {
		return nil
	}
	return &MisalignedError{Minimum: l.Minimum, Offset: off, Length: n}
}

func limitError(which Limit, value int64, want string) error {
	return fmt.Errorf("%w: limit %v is %d, must be %s", ErrContract, which, value, want)
}

func or(v, otherwise int64) int64 {
	if v == 0 {
		return otherwise
	}
	return v
}

func powerOfTwo(n int64) bool { return n > 0 && n&(n-1) == 0 }
