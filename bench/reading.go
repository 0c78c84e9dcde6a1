package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// clients are the two ways to download: what people use, and the cheapest.
var clients = []struct {
	name string
	get  func(ctx context.Context, address string, want int64, headers ...string) error
}{
	{"curl", curl},
	{"bare socket", drain},
}

func readRaw(ctx context.Context, s *setup, results *table) error {
	raw, _, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	return s.readBeside(ctx, results, "raw", raw, raw, 0.95)
}

func readQCOW2(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	if err := s.readBeside(ctx, results, "qcow2", qcow2, raw, 0.9); err != nil {
		return err
	}
	return s.readBesideNBD(ctx, results, "whole read of qcow2, "+size(s.diskSize())+", bare socket", qcow2, s.diskSize(), 2)
}

// readBeside reads an image from extentd, and a raw one of the same content
// from nginx, with each client.
func (s *setup) readBeside(ctx context.Context, results *table, what, image, raw string, goal float64) error {
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	nginx, err := s.serveNginx(ctx)
	if err != nil {
		return err
	}
	for _, client := range clients {
		get := func(address string) func(ctx context.Context) (float64, error) {
			return timed(func(ctx context.Context) error { return client.get(ctx, address, s.diskSize()) })
		}
		err := s.compare(ctx, results, fmt.Sprintf("whole read of %s, %s, %s", what, size(s.diskSize()), client.name), goal,
			side{"extentd", []string{image}, get(e.data(image))},
			side{"nginx (raw)", []string{raw}, get(nginx + "/" + raw)})
		if err != nil {
			return err
		}
	}
	return nil
}

// readBesideNBD reads an image from extentd over one connection, and from
// qemu-nbd with nbdcopy over four, both to nowhere.
func (s *setup) readBesideNBD(ctx context.Context, results *table, what, image string, length int64, goal float64) error {
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	uri, p, err := s.serveNBD(ctx, image, false)
	if err != nil {
		return err
	}
	defer p.stop()
	return s.compare(ctx, results, what, goal,
		side{"extentd", []string{image}, timed(func(ctx context.Context) error { return drain(ctx, e.data(image), length) })},
		side{"qemu-nbd + nbdcopy", []string{image}, timed(func(ctx context.Context) error { return s.command(ctx, "nbdcopy", uri, "null:") })})
}

func readPacked(ctx context.Context, s *setup, results *table, compression string) error {
	image, err := s.packed(ctx, compression)
	if err != nil {
		return err
	}
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("whole read of %s-compressed, %s, bare socket", compression, size(s.packedSize()))
	out := filepath.Join(s.memory, "out.raw")
	err = s.compare(ctx, results, what, 1.15,
		side{"extentd", []string{image}, timed(func(ctx context.Context) error { return drain(ctx, e.data(image), s.packedSize()) })},
		side{"qemu-img convert", []string{image}, func(ctx context.Context) (float64, error) {
			defer func() { _ = os.Remove(out) }()
			return timed(func(ctx context.Context) error {
				return s.command(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out)
			})(ctx)
		}})
	if err != nil {
		return err
	}
	return s.readBesideNBD(ctx, results, what, image, s.packedSize(), 1)
}

// randomRanges asks with 16 connections for 4 KiB at a time.
func randomRanges(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	nginx, err := s.serveNginx(ctx)
	if err != nil {
		return err
	}
	get := func(address string) func(ctx context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) { return s.ranges(ctx, address, s.diskSize()) }
	}
	v, err := s.race(ctx, "random 4 KiB ranges",
		side{"extentd, raw", []string{raw}, get(e.data(raw))},
		side{"nginx", []string{raw}, get(nginx + "/" + raw)},
		side{"extentd, qcow2", []string{qcow2}, get(e.data(qcow2))})
	if err != nil {
		return err
	}
	results.add("random 4 KiB ranges of raw, 16 connections", rate(v[0]), "nginx (raw) "+rate(v[1]), v[0]/v[1], 0.5)
	results.add("random 4 KiB ranges of qcow2, 16 connections", rate(v[2]), "nginx (raw) "+rate(v[1]), v[2]/v[1], 0.5)
	return nil
}

// coldRange asks a server that has just started for 4 KiB of a 1 TiB image of
// which nothing is cached, and the same of a 1 GiB image.
func coldRange(ctx context.Context, s *setup, results *table) error {
	names := []string{"large.qcow2", "little.qcow2"}
	for i, length := range []string{"1T", "1G"} {
		err := s.make(names[i], func(path string) error {
			return s.command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, length)
		})
		if err != nil {
			return err
		}
	}
	read := make(map[string]int64)
	first := func(name string, off int64) func(ctx context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			e, err := s.serveFresh(ctx)
			if err != nil {
				return 0, err
			}
			defer e.stop()
			// The server is warm, the image is not.
			if err := curl(ctx, e.url+"/healthz", -1); err != nil {
				return 0, err
			}
			if err := s.chill(name); err != nil {
				return 0, err
			}
			before, err := e.readSoFar()
			if err != nil {
				return 0, err
			}
			took, err := timed(func(ctx context.Context) error {
				return drain(ctx, e.data(name), 4096, fmt.Sprintf("Range: bytes=%d-%d", off, off+4095))
			})(ctx)
			if err != nil {
				return 0, err
			}
			after, err := e.readSoFar()
			read[name] = after - before
			return took, err
		}
	}
	v, err := s.race(ctx, "cold", side{name: names[0], run: first(names[0], 700*gib)}, side{name: names[1], run: first(names[1], gib/2)})
	if err != nil {
		return err
	}
	results.add("first 4 KiB of a cold 1 TiB qcow2", seconds(v[0]), "1 GiB "+seconds(v[1]), v[1]/v[0], 0.5)
	results.atMost("bytes read for it", fmt.Sprintf("%d KiB", read[names[0]]>>10), fmt.Sprintf("1 GiB %d KiB", read[names[1]]>>10),
		float64(read[names[0]])/float64(max(read[names[1]], 1)), 1.5)
	return nil
}
