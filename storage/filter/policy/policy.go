// Package policy is a filter that overrides the limits of a node: with stricter
// ones that bind, or with any that clients are told of.
//
// It guarantees that the six limits fit each other: what an option does not say
// is the next node's, brought into line with what the others say. It changes
// nothing else, and does not make a node take what it does not.
package policy

import (
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// A Mode says what the limits are for.
type Mode string

// The modes.
const (
	// Enforce: they bind. A request that breaks them fails before the next node
	// is asked.
	Enforce Mode = "enforce"
	// Allow: clients are told of them, and what the next node takes is taken.
	Allow Mode = "allow"
)

// Options configure the filter. The zero value changes nothing.
type Options struct {
	// Limits, bytes. 0: the next node's, which is rounded down to a multiple of
	// a minimum that is larger, and lowered or raised where the others demand it
	// of the preferred size. Bounds are those of [storage.Limits]; to enforce,
	// the minimum is at least the next node's, and each max_* at most.
	Limits storage.Limits
	// Mode is what they are for. Default: [Enforce].
	Mode Mode
}

// A Filter has limits of its own.
type Filter struct {
	filter.Sizes
	filter.Reads
	filter.Maps
	filter.Changes
	filter.Starts
	filter.Flushes
	filter.Closes

	next    *storage.Node
	enforce bool
	limits  storage.Limits
}

var (
	_ filter.Filter      = (*Filter)(nil)
	_ storage.Advertiser = (*Filter)(nil)
)

// New returns a filter over next, which belongs to it. The limits of next are
// asked for once, now. Options that do not fit them, or each other, fail with a
// [*storage.InvalidError].
func New(ctx context.Context, next *storage.Node, opt Options) (*Filter, error) {
	f := &Filter{
		Sizes: filter.Sizes{Next: next}, Reads: filter.Reads{Next: next}, Maps: filter.Maps{Next: next},
		Changes: filter.Changes{Next: next}, Starts: filter.Starts{Next: next},
		Flushes: filter.Flushes{Next: next}, Closes: filter.Closes{Next: next},
		next: next, enforce: opt.Mode != Allow,
	}
	if opt.Mode != "" && opt.Mode != Enforce && opt.Mode != Allow {
		return nil, &storage.InvalidError{Field: "mode", Detail: "must be enforce or allow"}
	}
	below, err := f.below(ctx)
	if err != nil {
		return nil, err
	}
	if err := check(opt.Limits, below, f.enforce); err != nil {
		return nil, err
	}
	f.limits, err = combine(opt.Limits, below, f.enforce)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// below are the limits that the options override.
func (f *Filter) below(ctx context.Context) (storage.Limits, error) {
	if f.enforce {
		return f.next.Limits(ctx)
	}
	return f.next.Advertised(ctx)
}

// Limit is the filter's own if it enforces them, else the next node's.
func (f *Filter) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	if f.enforce {
		return f.limits.Of(which), nil
	}
	return f.next.Limit(ctx, which)
}

// Advertise is the filter's own limit.
func (f *Filter) Advertise(_ context.Context, which storage.Limit) (int64, error) {
	return f.limits.Of(which), nil
}
