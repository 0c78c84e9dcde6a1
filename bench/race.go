package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

// A side is one way to do a work. run does it once, and says how much it got
// done a second, or how long it took.
type side struct {
	name string
	warm []string // files that are read into the page cache before each run
	run  func(ctx context.Context) (float64, error)
}

// race runs the sides in turn, round by round, and returns the median of each.
// What disturbs the machine for a while then disturbs all of them.
func (s *setup) race(ctx context.Context, what string, sides ...side) ([]float64, error) {
	fmt.Fprintf(os.Stderr, "%s ", what)
	defer fmt.Fprintln(os.Stderr)
	samples := make([][]float64, len(sides))
	for range s.rounds {
		for i, side := range sides {
			for _, name := range side.warm {
				if err := s.warm(name); err != nil {
					return nil, err
				}
			}
			v, err := side.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", side.name, err)
			}
			samples[i] = append(samples[i], v)
			fmt.Fprint(os.Stderr, ".")
		}
	}
	medians := make([]float64, len(sides))
	for i := range samples {
		medians[i] = median(samples[i])
	}
	return medians, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// timed turns an action into a run that says how many seconds it took.
func timed(action func(ctx context.Context) error) func(ctx context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		begin := time.Now()
		err := action(ctx)
		return time.Since(begin).Seconds(), err
	}
}
