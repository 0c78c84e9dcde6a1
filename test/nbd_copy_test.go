package test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// eventually tries again until there is no error, for some seconds.
func eventually(f func() error) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// TestNBDCopy copies with nbdcopy into images and out of them, with connections
// from one to many, sparse and not, over a socket and over TCP.
func TestNBDCopy(t *testing.T) {
	const size = 6*mib + 512
	for _, target := range []string{"raw", "qcow2", "extended", "data-file", "overlay"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "copy-"+target)
			source := m.raw("-source.raw", size)
			m.scatter(source, size, 64*kib, 25)
			want := readFile(t, m.path(source))
			s := serve(t, m.dir, overNBD("--nbd", "127.0.0.1:0")...)
			for i, flags := range [][]string{
				{"--connections=1", "--requests=1", "--synchronous"},
				{"--connections=2", "--sparse=0"},
				{"--connections=4", "--sparse=512", "--flush"},
				{"--connections=8", "--requests=32", "--request-size=65536"},
				{"--connections=8", "--allocated", "--flush"},
				{"--connections=3", "--target-is-zero"},
			} {
				file := copyTarget(m, target, i, size, flags)
				uri, back := uriOf(s.nbd[i%2], file), m.path(fmt.Sprint("back-", i))
				mustTool(t, "nbdcopy", append(flags, m.path(source), uri)...)
				got, err := s.read(file, 0, size)
				must(t, err)
				if at := firstDifference(got, want); at >= 0 {
					t.Fatalf("nbdcopy %v: byte %d differs", flags, at)
				}
				mustTool(t, "nbdcopy", append(outwards(flags), uri, back)...)
				if at := firstDifference(readFile(t, back), want); at >= 0 {
					t.Fatalf("nbdcopy %v: byte %d of the copy differs", flags, at)
				}
				must(t, os.Remove(back))
			}
			s.stop()
			files, err := filepath.Glob(m.path("copy-*-target.*"))
			if err != nil || len(files) != 6 {
				t.Fatalf("%v, %v", files, err)
			}
			for _, file := range files {
				file = filepath.Base(file)
				m.run("qemu-img", "compare", "-f", formatOf(file), "-F", "raw", file, source)
				if formatOf(file) == "qcow2" {
					m.checkClean(t, file)
				}
			}
		})
	}
}

// outwards are flags without those that are for the target alone.
func outwards(flags []string) []string {
	var out []string
	for _, f := range flags {
		if f != "--target-is-zero" && f != "--allocated" {
			out = append(out, f)
		}
	}
	return out
}

// copyTarget makes an image to copy to. Unless nbdcopy is told that it is zeros it
// is full of something else.
func copyTarget(m *maker, target string, i int, size int64, flags []string) string {
	m.t.Helper()
	suffix := fmt.Sprintf("-%d-target", i)
	var file string
	switch target {
	case "raw":
		file = m.raw(suffix+".raw", size)
	case "qcow2":
		file = m.create(suffix+".qcow2", size)
	case "extended":
		file = m.create(suffix+".qcow2", size, "extended_l2=on", "cluster_size=16k")
	case "data-file":
		file = m.create(suffix+".qcow2", size, "data_file="+m.file(suffix+"-data"))
	case "overlay":
		base := m.create(fmt.Sprintf("-%d-base.qcow2", i), size)
		if flags[1] != "--target-is-zero" {
			m.io(base, "write -P 165 0 "+fmt.Sprint(size))
		}
		return m.overlay(suffix+".qcow2", base, size, "cluster_size=4k")
	}
	if flags[1] != "--target-is-zero" {
		m.io(file, "write -P 165 0 "+fmt.Sprint(size))
	}
	return file
}

// TestNBDCopyBetween copies from one image to another of the same server, by
// nbdcopy and by qemu-img convert.
func TestNBDCopyBetween(t *testing.T) {
	t.Parallel()
	const size = 4 * mib
	m := newMaker(t, t.TempDir(), "x")
	source := m.create("-source.qcow2", size, "cluster_size=4k")
	m.scatter(source, size, 4*kib, 60)
	s := serve(t, m.dir, overNBD()...)
	byLibnbd, byQEMU := m.raw("-libnbd.raw", size), m.create("-qemu.qcow2", size)
	mustTool(t, "nbdcopy", "--connections=4", s.uri(source), s.uri(byLibnbd))
	mustTool(t, "qemu-img", "convert", "-n", "-m", "8", "-W", "-f", "raw", "-O", "raw", s.uri(source), s.uri(byQEMU))
	mustTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri(byLibnbd), s.uri(byQEMU))
	s.stop()
	m.run("qemu-img", "compare", source, byLibnbd)
	m.run("qemu-img", "compare", source, byQEMU)
	m.checkClean(t, source, byQEMU)
}
