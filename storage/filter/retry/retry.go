// Package retry is the filter that tries again what failed for a reason that may
// pass: I/O errors of a network or a device. It waits between the tries, longer
// each time, and gives up after a bounded number of them.
//
// What is retried is done anew as a whole: a read that failed half-way fills its
// buffer from the beginning, and writes, zeroes, trims and truncates leave what
// doing them once leaves. Flushes are not retried: one that failed says that what
// was written may be lost, and that a second one succeeds does not bring it back.
// Nor are errors that will be the same the next time, which is to say those that
// wrap an error of package storage, but for [storage.ErrBackingUnavailable].
// When the caller's context has ended nothing is tried any more.
//
// Size and limits are passed on, and not retried.
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. The zero value is usable.
type Options struct {
	// Retries is how often an operation is tried after the first time, 1 to 100.
	// Default: 5.
	Retries int
	// Delay is the longest wait before the first retry, and twice as long before
	// each further one: what is waited is a random time between half of it and
	// all of it. Up to an hour. Default: 0, which is 100 ms.
	Delay time.Duration
	// MaxDelay is what it grows to, Delay to an hour. Default: 0, which is 10 s,
	// or Delay where that is longer.
	MaxDelay time.Duration
}

const longest = time.Hour

// complete puts the defaults in, and refuses what cannot be.
func (o Options) complete() (Options, error) {
	if o.Retries == 0 {
		o.Retries = 5
	}
	if o.Delay == 0 {
		o.Delay = 100 * time.Millisecond
	}
	if o.MaxDelay == 0 {
		o.MaxDelay = max(10*time.Second, o.Delay)
	}
	invalid := func(field, detail string, a ...any) (Options, error) {
		return Options{}, &storage.InvalidError{Field: field, Detail: fmt.Sprintf(detail, a...)}
	}
	switch {
	case o.Retries < 1 || o.Retries > 100:
		return invalid("retries", "is %d, must be 1 to 100", o.Retries)
	case o.Delay < 0 || o.Delay > longest:
		return invalid("delay", "is %v, must be 0 to %v", o.Delay, longest)
	case o.MaxDelay < o.Delay || o.MaxDelay > longest:
		return invalid("max_delay", "is %v, must be from delay, %v, to %v", o.MaxDelay, o.Delay, longest)
	}
	return o, nil
}

// New returns a filter over next, which it closes. It counts "retries", the tries
// after first ones, and "given_up", the operations that failed after at least one
// failure that might have passed.
func New(next *storage.Node, opt Options) (filter.Filter, error) {
	opt, err := opt.complete()
	if err != nil {
		return nil, err
	}
	return filter.Interpose(next, &retrier{opt: opt}), nil
}

type retrier struct {
	opt              Options
	retries, givenUp atomic.Int64
}

var _ filter.Counting = (*retrier)(nil)

// Interpose has the node below asked until it succeeds, or that is in vain.
func (t *retrier) Interpose(ctx context.Context, r filter.Request) (int, error) {
	n, err := r.Do(ctx)
	if err == nil || err == io.EOF || r.Op == filter.Flush { //nolint:errorlint // the end of a file is a bare io.EOF
		return n, err
	}
	return t.again(ctx, r, n, err)
}

// again goes on after the first try, which has ended with n and err.
func (t *retrier) again(ctx context.Context, r filter.Request, n int, err error) (int, error) {
	tries, delay := 1, t.opt.Delay
	for tries <= t.opt.Retries && mayPass(ctx, err) {
		if e := filter.Wait(ctx, delay-rand.N(delay/2+1)); e != nil {
			t.givenUp.Add(1)
			return 0, fmt.Errorf("%w after %s: %v", e, times(tries), err) //nolint:errorlint // which is why it ended: the caller's
		}
		delay = min(2*delay, t.opt.MaxDelay)
		tries++
		t.retries.Add(1)
		if n, err = r.Do(ctx); err == nil || err == io.EOF { //nolint:errorlint // as above
			return n, err
		}
	}
	if tries > 1 {
		t.givenUp.Add(1)
		err = fmt.Errorf("after %s: %w", times(tries), err)
	}
	return n, err
}

func times(tries int) string {
	if tries == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", tries)
}

// mayPass reports whether it makes sense to try again. A context's error while
// the caller's has not ended is of a time limit that the node below has set.
func mayPass(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	for _, stays := range [...]error{
		storage.ErrOutOfRange, storage.ErrMisaligned, storage.ErrCorrupt, storage.ErrUnsupported, storage.ErrRefused,
		storage.ErrBusy, storage.ErrNotFound, storage.ErrExists, storage.ErrReadOnly, storage.ErrConflict,
		storage.ErrNoSpace, storage.ErrOutOfService, storage.ErrInvalid, storage.ErrChanged, storage.ErrClosed,
		storage.ErrContract,
	} {
		if errors.Is(err, stays) {
			return false
		}
	}
	return true
}

// Counters are how often was tried again, and how often in vain.
func (t *retrier) Counters() []filter.Counter {
	return []filter.Counter{{Name: "retries", Value: t.retries.Load()}, {Name: "given_up", Value: t.givenUp.Load()}}
}
