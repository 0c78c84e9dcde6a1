package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// nbdCopies copies whole images with nbdcopy, over as many connections as it
// opens by itself (4).
func nbdCopies(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	qemu, nbdkit := goal{s.nbdQEMU(), 1.3}, goal{s.nbdNbdkit(), 1}
	peers := map[string][]goal{raw: {qemu, nbdkit}, qcow2: {qemu}}
	for _, network := range networks {
		for _, image := range []string{raw, qcow2} {
			what := fmt.Sprintf("nbdcopy of %s to null:, %s, NBD over %s", image, size(s.diskSize()), network)
			err := s.raceNBD(ctx, results, what, false, func(kind nbdKind) side {
				return s.nbdSide(kind, network, image, false, s.nbdcopy(func(uri string) []string { return []string{uri, "null:"} }))
			}, peers[image]...)
			if err != nil {
				return err
			}
		}
		for _, format := range []string{"raw", "qcow2"} {
			what := fmt.Sprintf("nbdcopy into a new %s, %s, flushed, NBD over %s", format, size(s.diskSize()), network)
			err := s.raceNBD(ctx, results, what, false, func(kind nbdKind) side {
				return s.nbdAnew(kind, network, format, s.diskSize(), []string{raw}, s.nbdcopy(func(uri string) []string {
					return []string{"--flush", "--destination-is-zero", raw, uri}
				}))
			}, peers["random."+format]...)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// nbdcopy says how long a copy takes.
func (s *setup) nbdcopy(args func(uri string) []string) func(ctx context.Context, uri string) (float64, error) {
	return func(ctx context.Context, uri string) (float64, error) {
		return timed(func(ctx context.Context) error { return s.command(ctx, append([]string{"nbdcopy"}, args(uri)...)...) })(ctx)
	}
}

// nbdMap asks for the whole map of the comb with nbdinfo, which prints it, or
// only adds it up: printing takes it several times as long as asking.
func nbdMap(ctx context.Context, s *setup, results *table) error {
	image, extents, err := s.comb(ctx, false)
	if err != nil {
		return err
	}
	for _, network := range networks {
		for _, way := range []struct {
			option string
			lines  int64
		}{{"--map", extents}, {"--map --totals", 2}} {
			what := fmt.Sprintf("nbdinfo %s of %d extents, NBD over %s", way.option, extents, network)
			err := s.raceNBD(ctx, results, what, false, func(kind nbdKind) side {
				return s.nbdSide(kind, network, image, false, func(ctx context.Context, uri string) (float64, error) {
					return timed(func(ctx context.Context) error {
						return countMap(ctx, way.lines, append(strings.Fields(way.option), uri)...)
					})(ctx)
				})
			}, goal{s.nbdQEMU(), 2})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// countMap runs nbdinfo, and fails unless it prints as many lines.
func countMap(ctx context.Context, want int64, args ...string) error {
	var lines lineCounter
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "nbdinfo", args...)
	cmd.Stdout, cmd.Stderr = &lines, &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nbdinfo: %w\n%s", err, &complaint)
	}
	if int64(lines) != want {
		return fmt.Errorf("nbdinfo %v prints %d lines, want %d", args, lines, want)
	}
	return nil
}

type lineCounter int64

var _ io.Writer = (*lineCounter)(nil)

func (l *lineCounter) Write(p []byte) (int, error) {
	*l += lineCounter(bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}
