package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// nbdDepths are how many requests fio has in flight, over one connection.
var nbdDepths = []int{16, 64}

// nbdRandom calls do for each network and depth, with what names them.
func nbdRandom(do func(network string, depth int, where string) error) error {
	for _, network := range networks {
		for _, depth := range nbdDepths {
			if err := do(network, depth, fmt.Sprintf("NBD over %s, %d in flight", network, depth)); err != nil {
				return err
			}
		}
	}
	return nil
}

// nbdReads reads random 4 KiB.
func nbdReads(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	return nbdRandom(func(network string, depth int, where string) error {
		reads := func(image string) func(kind nbdKind) side {
			return func(kind nbdKind) side {
				return s.nbdSide(kind, network, image, false, s.fioRandom("randread", s.diskSize(), depth))
			}
		}
		what := "random 4 KiB reads of %s, " + where
		err := s.raceNBD(ctx, results, fmt.Sprintf(what, "raw"), true, reads(raw), goal{s.nbdQEMU(), 1.8}, goal{s.nbdNbdkit(), 1.1})
		if err != nil {
			return err
		}
		return s.raceNBD(ctx, results, fmt.Sprintf(what, "qcow2"), true, reads(qcow2), goal{s.nbdQEMU(), 1.8})
	})
}

// nbdOverwrites writes random 4 KiB over data.
func nbdOverwrites(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	for _, source := range []string{raw, qcow2} {
		// A copy: the others read what is random.
		image := "overwritten" + filepath.Ext(source)
		if err := s.make(image, func(path string) error { return s.command(ctx, "cp", "--sparse=never", s.path(source), path) }); err != nil {
			return err
		}
		err := nbdRandom(func(network string, depth int, where string) error {
			what := fmt.Sprintf("random 4 KiB overwrites of %s, %s", strings.TrimPrefix(filepath.Ext(image), "."), where)
			return s.raceNBD(ctx, results, what, true, func(kind nbdKind) side {
				return s.nbdSide(kind, network, image, true, s.fioRandom("randwrite", s.diskSize(), depth))
			}, goal{s.nbdQEMU(), 1.1})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nbdAllocations writes random 4 KiB into images where most of them are the first
// of their cluster.
func nbdAllocations(ctx context.Context, s *setup, results *table) error {
	const length = 32 * gib
	return nbdRandom(func(network string, depth int, where string) error {
		return s.raceNBD(ctx, results, "random 4 KiB allocating writes, qcow2, "+where, true, func(kind nbdKind) side {
			return s.nbdAnew(kind, network, "qcow2", length, nil, s.fioRandom("randwrite", length, depth))
		}, goal{s.nbdQEMU(), 1.1})
	})
}

// fioRandom does random 4 KiB of an image for a while, and says how many it got
// done a second.
func (s *setup) fioRandom(pattern string, length int64, depth int) func(ctx context.Context, uri string) (float64, error) {
	return func(ctx context.Context, uri string) (float64, error) {
		report, err := s.fioReport(ctx, uri, "--rw="+pattern, "--bs=4k", "--norandommap", fmt.Sprint("--size=", length),
			fmt.Sprint("--iodepth=", depth), "--time_based", fmt.Sprint("--runtime=", s.seconds()))
		if err != nil {
			return 0, err
		}
		return report.Read.IOPS + report.Write.IOPS, nil // one of them is 0
	}
}
