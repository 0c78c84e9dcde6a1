package main

import (
	"context"
	"fmt"
	"os"
)

// copyLocally copies from file to file, beside qemu-img and nbdcopy. All end with
// a flush; extentd also computes its checksum, and is measured without it too.
func copyLocally(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	holes, _, err := s.comb(ctx, false)
	if err != nil {
		return err
	}
	for _, w := range []struct {
		what, from string
		peers      []side
	}{
		{"raw to raw, " + size(s.diskSize()), raw, []side{
			s.convertSide("raw", raw),
			s.copySide("nbdcopy", raw, "nbdcopy", "--flush", raw, "copied.raw"),
		}},
		{"qcow2 to raw, " + size(s.diskSize()), qcow2, []side{
			s.convertSide("qcow2", qcow2),
		}},
		{"comb of 4 KiB to raw", holes, []side{
			s.convertSide("qcow2", holes),
		}},
	} {
		if err := s.raceCopies(ctx, results, w.what, w.from, w.from, w.peers...); err != nil {
			return err
		}
	}
	return nil
}

// copyRemotely copies what a server has to a file, beside curl, which takes the
// whole image, and nbdcopy from qemu-nbd.
func copyRemotely(ctx context.Context, s *setup, results *table) error {
	raw, qcow2, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	for _, image := range []string{raw, qcow2} {
		uri, p, err := s.serveNBD(ctx, image, false)
		if err != nil {
			return err
		}
		err = s.raceCopies(ctx, results, image+" by HTTP to raw, "+size(s.diskSize()), image, e.url+"/"+image,
			s.copySide("curl, whole", image, "sh", "-c", `curl -s "$0" -o copied.raw && sync copied.raw`, e.data(image)),
			s.copySide("qemu-nbd + nbdcopy", image, "sh", "-c", `nbdcopy --flush "$0" copied.raw && sync copied.raw`, uri))
		p.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// copySide is a command that makes copied.raw.
func (s *setup) copySide(name, warm string, args ...string) side {
	return side{name, []string{warm}, func(ctx context.Context) (float64, error) {
		if err := os.Remove(s.path("copied.raw")); err != nil && !os.IsNotExist(err) {
			return 0, err
		}
		if args[0] == "nbdcopy" { // which wants its target to be there
			if err := s.command(ctx, "truncate", "-s", fmt.Sprint(s.diskSize()), "copied.raw"); err != nil {
				return 0, err
			}
		}
		return timed(func(ctx context.Context) error { return s.command(ctx, args...) })(ctx)
	}}
}

// convertSide is qemu-img, which does not flush by itself.
func (s *setup) convertSide(format, image string) side {
	return s.copySide("qemu-img convert -W", image, "sh", "-c", `qemu-img convert -W -f "$0" -O raw "$1" copied.raw && sync copied.raw`, format, image)
}

// raceCopies races extentd, with and without its checksum, with peers.
func (s *setup) raceCopies(ctx context.Context, results *table, what, warm, from string, peers ...side) error {
	defer func() { _ = os.Remove(s.path("copied.raw")) }()
	for _, way := range []struct {
		what  string
		flags []string
		goal  float64
	}{{", with a checksum", nil, 0.5}, {"", []string{"--checksum=false"}, 0.9}} {
		ours := s.copySide("extentd", warm, append(append([]string{s.binary, "copy"}, way.flags...), from, "copied.raw")...)
		v, err := s.race(ctx, "copy of "+what+way.what, append([]side{ours}, peers...)...)
		if err != nil {
			return err
		}
		for i, peer := range peers {
			results.add("copy of "+what+way.what, seconds(v[0]), peer.name+" "+seconds(v[i+1]), v[i+1]/v[0], way.goal)
		}
	}
	return nil
}
