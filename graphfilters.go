package main

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/filter/delay"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/filter/log"
	"github.com/extentd/extentd/storage/filter/offset"
	"github.com/extentd/extentd/storage/filter/policy"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/filter/readahead"
	"github.com/extentd/extentd/storage/filter/readonly"
	"github.com/extentd/extentd/storage/filter/retry"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/filter/swab"
)

// filterKinds are the filters of this build.
func filterKinds() map[string]func() filterOptions {
	return map[string]func() filterOptions{
		"blocksize": func() filterOptions { return new(blocksizeFilter) },
		"cache":     func() filterOptions { return new(cacheFilter) },
		"cow":       func() filterOptions { return new(cowFilter) },
		"delay":     func() filterOptions { return new(delayFilter) },
		"error":     func() filterOptions { return new(errorFilter) },
		"log":       func() filterOptions { return new(logFilter) },
		"offset":    func() filterOptions { return new(offsetFilter) },
		"policy":    func() filterOptions { return new(policyFilter) },
		"rate":      func() filterOptions { return new(rateFilter) },
		"readahead": func() filterOptions { return new(readaheadFilter) },
		"readonly":  func() filterOptions { return new(readonlyFilter) },
		"retry":     func() filterOptions { return new(retryFilter) },
		"stats":     func() filterOptions { return new(statsFilter) },
		"swab":      func() filterOptions { return new(swabFilter) },
	}
}

// opened is how a filter is opened that needs nothing but options.
func opened[F storage.File, O any](open func(context.Context, *storage.Node, O) (F, error), opt O) service.GraphFilter {
	return service.GraphFilter{Open: func(ctx context.Context, next *storage.Node) (storage.File, error) {
		f, err := open(ctx, next, opt)
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}

// stacked is likewise for one that asks nothing when it is opened.
func stacked[F storage.File, O any](open func(*storage.Node, O) (F, error), opt O) service.GraphFilter {
	return opened(func(_ context.Context, next *storage.Node, opt O) (F, error) { return open(next, opt) }, opt)
}

// given is what a pointer leads to, the zero value if that is nowhere.
func given[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

type blocksizeFilter struct{}

func (blocksizeFilter) filter(wiring) service.GraphFilter {
	return stacked(blocksize.New, blocksize.Options{})
}

type delayFilter struct {
	Read     time.Duration `json:"read,omitempty" validate:"min=0"`
	Extents  time.Duration `json:"extents,omitempty" validate:"min=0"`
	Write    time.Duration `json:"write,omitempty" validate:"min=0"`
	Zero     time.Duration `json:"zero,omitempty" validate:"min=0"`
	Trim     time.Duration `json:"trim,omitempty" validate:"min=0"`
	Truncate time.Duration `json:"truncate,omitempty" validate:"min=0"`
	Flush    time.Duration `json:"flush,omitempty" validate:"min=0"`
}

func (f *delayFilter) filter(wiring) service.GraphFilter {
	return stacked(delay.New, delay.Options(*f))
}

// An errorFilter has the kind "error".
type errorFilter struct {
	Operations []string `json:"operations,omitempty" validate:"omitempty,dive,oneof=read extents write zero trim truncate flush"`
	Rate       *float64 `json:"rate,omitempty" validate:"omitempty,gt=0,lte=1"`
	File       hostPath `json:"file,omitempty"`
	Error      string   `json:"error,omitempty" validate:"omitempty,oneof=io no-space"`
}

func (f *errorFilter) filter(wiring) service.GraphFilter {
	opt := fault.Options{Rate: given(f.Rate)}
	for op := range filter.Ops {
		if slices.Contains(f.Operations, op.String()) {
			opt.Operations = append(opt.Operations, op)
		}
	}
	if f.File != "" {
		opt.Trigger = func() bool {
			_, err := os.Stat(string(f.File))
			return err == nil
		}
	}
	if f.Error == "no-space" {
		opt.Err = storage.ErrNoSpace
	}
	return stacked(fault.New, opt)
}

type logFilter struct{}

func (logFilter) filter(w wiring) service.GraphFilter {
	return stacked(log.New, log.Options{Logger: w.log})
}

type offsetFilter struct {
	Offset byteSize  `json:"offset,omitempty"`
	Length *byteSize `json:"length,omitempty" validate:"omitempty,min=1"`
}

func (f *offsetFilter) filter(wiring) service.GraphFilter {
	return opened(offset.New, offset.Options{Offset: int64(f.Offset), Length: int64(given(f.Length))})
}

type policyFilter struct {
	Minimum   byteSize `json:"minimum,omitempty" validate:"omitempty,power_of_two,max=65536"`
	Preferred byteSize `json:"preferred,omitempty" validate:"omitempty,power_of_two,min=512,max=2097152"`
	MaxData   byteSize `json:"max_data,omitempty"`
	MaxTrim   byteSize `json:"max_trim,omitempty"`
	MaxZero   byteSize `json:"max_zero,omitempty"`
	MaxCache  byteSize `json:"max_cache,omitempty"`
	Mode      string   `json:"mode,omitempty" validate:"omitempty,oneof=enforce allow"`
}

func (f *policyFilter) filter(wiring) service.GraphFilter {
	return opened(policy.New, policy.Options{
		Limits: storage.Limits{
			Minimum: int64(f.Minimum), Preferred: int64(f.Preferred), MaxData: int64(f.MaxData),
			MaxTrim: int64(f.MaxTrim), MaxZero: int64(f.MaxZero), MaxCache: int64(f.MaxCache),
		},
		Mode: policy.Mode(f.Mode),
	})
}

type rateFilter struct {
	Read  byteSize `json:"read,omitempty"`
	Write byteSize `json:"write,omitempty"`
	Burst byteSize `json:"burst,omitempty"`
}

func (f *rateFilter) filter(wiring) service.GraphFilter {
	return stacked(rate.New, rate.Options{Read: int64(f.Read), Write: int64(f.Write), Burst: int64(f.Burst)})
}

type readaheadFilter struct {
	Size *byteSize `json:"size,omitempty" validate:"omitempty,min=65536,max=67108864"`
}

func (f *readaheadFilter) filter(wiring) service.GraphFilter {
	return stacked(readahead.New, readahead.Options{Size: int64(given(f.Size))})
}

type readonlyFilter struct{}

func (readonlyFilter) filter(wiring) service.GraphFilter {
	f := stacked(readonly.New, readonly.Options{})
	f.ReadOnly = true
	return f
}

type retryFilter struct {
	Retries  *int           `json:"retries,omitempty" validate:"omitempty,min=1,max=100"`
	Delay    *time.Duration `json:"delay,omitempty" validate:"omitempty,gt=0,max=1h"`
	MaxDelay *time.Duration `json:"max_delay,omitempty" validate:"omitempty,gt=0,max=1h"`
}

func (f *retryFilter) filter(wiring) service.GraphFilter {
	return stacked(retry.New, retry.Options{Retries: given(f.Retries), Delay: given(f.Delay), MaxDelay: given(f.MaxDelay)})
}

type statsFilter struct{}

func (statsFilter) filter(wiring) service.GraphFilter {
	f := stacked(stats.New, stats.Options{})
	f.Keep = true // what it has counted ends with it
	return f
}

type swabFilter struct {
	Bits *int `json:"bits,omitempty" validate:"required,oneof=16 32 64"`
}

func (f *swabFilter) filter(wiring) service.GraphFilter {
	return stacked(swab.New, swab.Options{Bits: *f.Bits})
}
