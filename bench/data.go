package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// make makes a data file unless it is there.
func (s *setup) make(name string, how func(path string) error) error {
	if s.made[name] {
		return nil
	}
	fmt.Fprintf(os.Stderr, "making %s\n", name)
	if err := how(s.path(name)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.made[name] = true
	return nil
}

func (s *setup) path(name string) string { return filepath.Join(s.images, name) }

// warm reads a file into the page cache.
func (s *setup) warm(name string) error {
	f, err := os.Open(s.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		if _, err := f.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// chill drops a file from the page cache.
func (s *setup) chill(name string) error {
	f, err := os.Open(s.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// diskSize is the size of the images that are read as a whole.
func (s *setup) diskSize() int64 {
	if s.small {
		return 256 * mib
	}
	return 2 * gib
}

// packedSize is the size of the compressed images.
func (s *setup) packedSize() int64 {
	if s.small {
		return 128 * mib
	}
	return gib
}

// randomRaw is a raw image of random bytes, and a plain qcow2 one of the same.
func (s *setup) randomRaw(ctx context.Context) (raw, qcow2 string, err error) {
	raw, qcow2 = "random.raw", "random.qcow2"
	err = s.make(raw, func(path string) error {
		source := rand.NewChaCha8([32]byte{1})
		return fill(path, s.diskSize(), func(p []byte) { _, _ = source.Read(p) })
	})
	if err != nil {
		return "", "", err
	}
	err = s.make(qcow2, func(path string) error {
		return s.command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.path(raw), path)
	})
	return raw, qcow2, err
}

// packed is a compressed qcow2 image of text that shrinks to about a third.
func (s *setup) packed(ctx context.Context, compression string) (string, error) {
	err := s.make("text.raw", func(path string) error {
		r := rand.New(rand.NewPCG(1, 2))
		words := vocabulary(r)
		return fill(path, s.packedSize(), func(p []byte) {
			for len(p) > 0 {
				// Few words are frequent and most are rare, as in text.
				at := r.Float64() * r.Float64() * r.Float64() * r.Float64()
				p = p[copy(p, words[int(at*float64(len(words)))]):]
			}
		})
	})
	if err != nil {
		return "", err
	}
	name := compression + ".qcow2"
	return name, s.make(name, func(path string) error {
		return s.command(ctx, "qemu-img", "convert", "-c", "-W", "-f", "raw", "-O", "qcow2",
			"-o", "compression_type="+compression, s.path("text.raw"), path)
	})
}

func vocabulary(r *rand.Rand) []string {
	words := make([]string, 4_000)
	for i := range words {
		var b strings.Builder
		for range 2 + r.IntN(9) {
			b.WriteByte(byte('a' + r.IntN(26)))
		}
		words[i] = b.String() + " "
	}
	return words
}

// fill writes a file of a size in pieces.
func fill(path string, size int64, piece func(p []byte)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	buf := make([]byte, 64<<10)
	for done := int64(0); done < size; done += int64(len(buf)) {
		piece(buf)
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}
