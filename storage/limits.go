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

// An Advertiser tells of other limits than those that bind it, for clients that
// follow advice.
type Advertiser interface {
	// Advertise is as [Limiter]'s Limit, for what is told.
	Advertise(ctx context.Context, which Limit) (int64, error)
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
	var l Limits
	for which := range limitCount {
		if err := l.ask(ctx, from, which); err != nil {
			return Limits{}, err
		}
	}
	return l, nil
}

// ask sets one limit, once those that bound it are set: see [Limit.bounds].
func (l *Limits) ask(ctx context.Context, from Limiter, which Limit) error {
	var v int64
	if from != nil {
		var err error
		if v, err = from.Limit(ctx, which); err != nil {
			return fmt.Errorf("limit %v: %w", which, err)
		}
	}
	return l.set(which, v)
}

// Complete fills the zero fields with their defaults, clamps the maxima, and
// reports an error that wraps [ErrContract] where a constraint is broken.
func (l Limits) Complete() (Limits, error) {
	for which := range limitCount {
		if err := l.set(which, *l.at(which)); err != nil {
			return l, err
		}
	}
	return l, nil
}

// Of is one of the limits.
func (l *Limits) Of(which Limit) int64 { return *l.at(which) }

func (l *Limits) at(which Limit) *int64 {
	return [limitCount]*int64{&l.Minimum, &l.Preferred, &l.MaxData, &l.MaxTrim, &l.MaxZero, &l.MaxCache}[which]
}

// bounds reports whether the limit other depends on l.
func (l Limit) bounds(other Limit) bool { return l < other && l <= MaxData }

// set sets one limit to what the answer v means, beside those that bound it.
func (l *Limits) set(which Limit, v int64) error {
	var valid bool
	var want string
	switch which {
	case Minimum:
		v = or(v, 1)
		valid, want = v <= maxMinimum && powerOfTwo(v), "a power of two from 1 to 65536"
	case Preferred:
		v = or(v, max(defaultPreferred, l.Minimum))
		valid = v >= max(minPreferred, l.Minimum) && v <= maxPreferred && powerOfTwo(v)
		want = "a power of two from max(512, minimum) to 2097152"
	case MaxData:
		v = min(or(v, maxData), maxData)
		valid, want = v >= l.Preferred && v%l.Minimum == 0, "a multiple of minimum, at least preferred"
	default:
		most := int64(maxRequest) - l.Minimum
		otherwise := most
		if which == MaxCache {
			otherwise = l.MaxData
		}
		v = min(or(v, otherwise), most)
		valid, want = v >= l.MaxData && v%l.Minimum == 0, "a multiple of minimum, at least max_data"
	}
	if !valid {
		return limitError(which, v, want)
	}
	*l.at(which) = v
	return nil
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
