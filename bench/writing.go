package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// fresh makes an image anew, and says how to be rid of it. Names are used once:
// nobody has an image open any more that another one has taken the name of.
func (s *setup) fresh(ctx context.Context, format string, size int64, options ...string) (name string, remove func(), err error) {
	s.named++
	name = fmt.Sprintf("written-%d.%s", s.named, format)
	args := []string{"qemu-img", "create", "-q", "-f", format}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	err = s.command(ctx, append(args, name, fmt.Sprint(size))...)
	return name, func() { _ = os.Remove(s.path(name)) }, err
}

// besideNBD calls do with qemu-nbd's URI of an image.
func (s *setup) besideNBD(ctx context.Context, image string, do func(uri string) error) error {
	uri, p, err := s.serveNBD(ctx, image, true)
	if err != nil {
		return err
	}
	defer p.stop() // it removes its socket
	return do(uri)
}

// serveWriting starts an extentd that gives images back soon.
func (s *setup) serveWriting(ctx context.Context) (*extentd, error) {
	return s.serveFresh(ctx, "--idle", "200ms")
}

// writeSequentially writes 1 MiB at a time into new images.
func writeSequentially(ctx context.Context, s *setup, results *table) error {
	length := s.diskSize()
	e, err := s.serveWriting(ctx)
	if err != nil {
		return err
	}
	defer e.stop()
	raw, _, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	for _, format := range []string{"raw", "qcow2"} {
		into := func(write func(image string) (float64, error)) func(ctx context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				image, remove, err := s.fresh(ctx, format, length)
				if err != nil {
					return 0, err
				}
				defer remove()
				return write(image)
			}
		}
		ours := func(connections int) side {
			return side{"extentd", nil, into(func(image string) (float64, error) {
				return timed(func(ctx context.Context) error { return upload(ctx, e.data(image), length, connections) })(ctx)
			})}
		}
		theirs := func(write func(uri string) (float64, error)) func(ctx context.Context) (float64, error) {
			return into(func(image string) (took float64, err error) {
				err = s.besideNBD(ctx, image, func(uri string) error {
					var err error
					took, err = write(uri)
					return err
				})
				return took, err
			})
		}
		for _, depth := range []int{1, 4} {
			what := fmt.Sprintf("sequential 1 MiB writes into a new %s, %s, %d in flight, flushed", format, size(length), depth)
			fio := side{"qemu-nbd + fio", nil, theirs(func(uri string) (float64, error) {
				_, took, err := s.fio(ctx, uri, "--rw=write", "--bs=1M", fmt.Sprint("--size=", length), fmt.Sprint("--iodepth=", depth), "--end_fsync=1")
				return took, err // without the time that fio takes to start
			})}
			if err := s.compare(ctx, results, what, 1, ours(depth), fio); err != nil {
				return err
			}
		}
		what := fmt.Sprintf("copy into a new %s, %s, flushed", format, size(length))
		nbdcopy := side{"qemu-nbd + nbdcopy", []string{raw}, theirs(func(uri string) (float64, error) {
			return timed(func(ctx context.Context) error {
				return s.command(ctx, "nbdcopy", "--flush", "--destination-is-zero", raw, uri)
			})(ctx)
		})}
		if err := s.compare(ctx, results, what, 1, ours(4), nbdcopy); err != nil {
			return err
		}
	}
	return nil
}

// overwrite writes random 4 KiB over data, 16 at once.
func overwrite(ctx context.Context, s *setup, results *table) error {
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
		v, err := s.race(ctx, "random overwrites of "+image,
			side{"extentd", []string{image}, func(ctx context.Context) (float64, error) { return s.putsFresh(ctx, image, s.diskSize()) }},
			side{"qemu-nbd", []string{image}, func(ctx context.Context) (float64, error) { return s.fioWrites(ctx, image, s.diskSize()) }})
		if err != nil {
			return err
		}
		results.add("random 4 KiB overwrites of "+strings.TrimPrefix(filepath.Ext(image), ".")+", 16 in flight", rate(v[0]), "qemu-nbd + fio "+rate(v[1]), v[0]/v[1], 0.75)
	}
	return nil
}

// putsFresh is puts with a server of its own, which has closed the image when it
// returns.
func (s *setup) putsFresh(ctx context.Context, image string, length int64) (float64, error) {
	e, err := s.serveWriting(ctx)
	if err != nil {
		return 0, err
	}
	defer e.stop()
	return s.puts(ctx, e.data(image), length)
}

func (s *setup) fioWrites(ctx context.Context, image string, length int64) (done float64, err error) {
	err = s.besideNBD(ctx, image, func(uri string) error {
		var err error
		done, _, err = s.fio(ctx, uri, "--rw=randwrite", "--bs=4k", "--norandommap", fmt.Sprint("--size=", length), "--iodepth=16",
			"--time_based", fmt.Sprint("--runtime=", s.seconds()))
		return err
	})
	return done, err
}

// allocate writes random 4 KiB into images where most of them are the first of
// their cluster.
func allocate(ctx context.Context, s *setup, results *table) error {
	const length = 32 * gib
	for _, options := range [][]string{nil, {"extended_l2=on"}} {
		anew := func(write func(ctx context.Context, image string, length int64) (float64, error)) func(ctx context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				image, remove, err := s.fresh(ctx, "qcow2", length, options...)
				if err != nil {
					return 0, err
				}
				defer remove()
				return write(ctx, image, length)
			}
		}
		what := strings.Join(append([]string{"random 4 KiB allocating writes, qcow2"}, options...), ", ")
		v, err := s.race(ctx, what, side{"extentd", nil, anew(s.putsFresh)}, side{"qemu-nbd", nil, anew(s.fioWrites)})
		if err != nil {
			return err
		}
		results.add(what+", 16 in flight", rate(v[0]), "qemu-nbd + fio "+rate(v[1]), v[0]/v[1], 0.75)
	}
	return nil
}

// vast is the size of the images that are zeroed and trimmed as a whole.
func (s *setup) vast() int64 {
	if s.small {
		return 64 * gib
	}
	return 1024 * gib
}

// clear zeros and trims a whole image: one that is empty, and one whose every
// cluster is mapped.
func clearWhole(ctx context.Context, s *setup, results *table) error {
	length := s.vast()
	for _, w := range []struct {
		what, call, command string
		options             []string
	}{
		{"zero of an empty qcow2", "zero", "write -z -u", nil},
		{"trim of an empty qcow2", "trim", "discard", nil},
		{"zero of a qcow2 with all its map", "zero", "write -z -u", []string{"preallocation=metadata"}},
		{"trim of a qcow2 with all its map", "trim", "discard", []string{"preallocation=metadata"}},
	} {
		var written int64
		anew := func(do func(ctx context.Context, image string) (float64, error)) func(ctx context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				image, remove, err := s.fresh(ctx, "qcow2", length, w.options...)
				if err != nil {
					return 0, err
				}
				defer remove()
				return do(ctx, image)
			}
		}
		ours := anew(func(ctx context.Context, image string) (took float64, err error) {
			e, err := s.serveWriting(ctx)
			if err != nil {
				return 0, err
			}
			defer e.stop()
			address := e.url + "/v1/images/" + image
			took, err = timed(func(ctx context.Context) error {
				return errors.Join(post(ctx, address+"/"+w.call, map[string]any{"offset": 0, "length": length}), post(ctx, address+"/flush", map[string]any{}))
			})(ctx)
			if err == nil {
				written, err = e.writtenSoFar()
			}
			return took, err
		})
		theirs := anew(func(ctx context.Context, image string) (float64, error) {
			args := []string{"qemu-io", "-d", "unmap", "-f", "qcow2"}
			for off := int64(0); off < length; off += gib {
				args = append(args, "-c", fmt.Sprintf("%s %d %d", w.command, off, gib))
			}
			return timed(func(ctx context.Context) error { return s.command(ctx, append(args, "-c", "flush", image)...) })(ctx)
		})
		what := fmt.Sprintf("%s, %d GiB, flushed", w.what, length/gib)
		if err := s.compare(ctx, results, what, 1, side{name: "extentd", run: ours}, side{name: "qemu-io", run: theirs}); err != nil {
			return err
		}
		// What is written is tables: 8 bytes a cluster of the image, and what
		// counts as many clusters of the file.
		tables := length >> 16 * 8
		results.atMost("bytes written for it", fmt.Sprintf("%d KiB", written>>10), fmt.Sprintf("its L2 tables %d KiB", tables>>10), float64(written)/float64(tables), 2)
	}
	return nil
}

// checkWhole checks the comb.
func checkWhole(ctx context.Context, s *setup, results *table) error {
	image, extents, err := s.comb(ctx, false)
	if err != nil {
		return err
	}
	var peaks [2]int64
	checking := func(peak *int64, args ...string) func(ctx context.Context) (float64, error) {
		return timed(func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Dir = s.images
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%v: %w\n%s", args, err, out)
			}
			usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
			*peak = usage.Maxrss << 10
			return nil
		})
	}
	what := fmt.Sprintf("check of %d extents", extents)
	err = s.compare(ctx, results, what, 1,
		side{"extentd", []string{image}, checking(&peaks[0], s.binary, "check", image)},
		side{"qemu-img check", []string{image}, checking(&peaks[1], "qemu-img", "check", "-f", "qcow2", image)})
	if err != nil {
		return err
	}
	results.atMost("memory for it, MiB", size(peaks[0]), "qemu-img "+size(peaks[1]), float64(peaks[0])/float64(mib), 100)
	return nil
}
