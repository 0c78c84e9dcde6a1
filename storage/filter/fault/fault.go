// Package fault is the filter that configurations call "error": it fails some of
// the operations that go through it, for tests of what stands above. An
// operation that it fails never reaches the node below, and its error says
// where it comes from.
//
// Size and limits are passed on, and never fail here.
package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. The zero value fails everything.
type Options struct {
	// Operations are those that may fail. Default: all of them.
	Operations []filter.Op
	// Rate is the share of these that fail, more than 0, and at most 1. Default:
	// 1, all of them.
	Rate float64
	// Trigger is asked for each operation that would fail, which it does only
	// if the answer is true. Called concurrently. Default: always.
	Trigger func() bool
	// Err is what an injected error wraps: a sentinel of package storage, or an
	// error of the operating system. Default: [syscall.EIO].
	Err error
	// Seed makes the choice of operations repeatable, as far as their order is.
	// Default: 0, a random one.
	Seed uint64
}

// New returns a filter over next, which it closes. It counts what it injects.
func New(next *storage.Node, opt Options) (filter.Filter, error) {
	f := &faults{rate: opt.Rate, trigger: opt.Trigger}
	if f.rate == 0 {
		f.rate = 1
	}
	if !(f.rate > 0 && f.rate <= 1) { // nor is it no number
		return nil, &storage.InvalidError{Field: "rate", Detail: fmt.Sprintf("is %v, must be more than 0 and at most 1", f.rate)}
	}
	for _, op := range opt.Operations {
		if op >= filter.Ops {
			return nil, &storage.InvalidError{Field: "operations", Detail: fmt.Sprintf("has %v, which is none", op)}
		}
		f.fails[op] = true
	}
	if len(opt.Operations) == 0 {
		f.fails = [filter.Ops]bool{true, true, true, true, true, true, true}
	}
	if opt.Err == nil {
		opt.Err = syscall.EIO
	}
	f.err = fmt.Errorf("injected by the error filter: %w", opt.Err)
	for opt.Seed == 0 {
		opt.Seed = rand.Uint64()
	}
	f.state.Store(opt.Seed)
	return filter.Interpose(next, f), nil
}

type faults struct {
	fails   [filter.Ops]bool
	rate    float64
	trigger func() bool // nil: always
	err     error

	state    atomic.Uint64 // of the generator of random numbers
	injected atomic.Int64
	closed   atomic.Bool
}

var _ filter.Counting = (*faults)(nil)

// Interpose fails the operation, or has the node below asked.
func (f *faults) Interpose(ctx context.Context, r filter.Request) (int, error) {
	if !f.fails[r.Op] || f.rate < 1 && f.random() >= f.rate || f.closed.Load() || ctx.Err() != nil {
		return r.Do(ctx)
	}
	if f.trigger != nil && !f.trigger() {
		return r.Do(ctx)
	}
	f.injected.Add(1)
	return 0, f.err
}

// random is a number in [0, 1): SplitMix64, of which each step is one addition
// to the state, so that no lock is needed.
func (f *faults) random() float64 {
	z := f.state.Add(0x9e3779b97f4a7c15)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// Counters are how many faults were injected.
func (f *faults) Counters() []filter.Counter {
	return []filter.Counter{{Name: "injected", Value: f.injected.Load()}}
}

// Close makes what is called afterwards fail as the node below does.
func (f *faults) Close() error {
	f.closed.Store(true)
	return nil
}
