package test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// copyDirty brings a copy up to date with what a bitmap marks, from a path of data,
// and returns how much that was.
func (s *server) copyDirty(backup *os.File, image, name, from string) (int64, error) {
	list, err := s.dirty(image, name)
	if err != nil {
		return 0, err
	}
	sent := int64(0)
	for _, f := range list {
		if f.Flags == 0 {
			continue
		}
		a, err := s.send(http.MethodGet, from, nil, "Range", fmt.Sprintf("bytes=%d-%d", f.Start, f.Start+f.Length-1))
		if err := accepted("GET "+from, a, err, http.StatusPartialContent); err != nil {
			return sent, err
		}
		if _, err := backup.WriteAt(a.body, f.Start); err != nil {
			return sent, err
		}
		sent += f.Length
	}
	return sent, nil
}

func newBackup(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "backup.raw"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestBitmapBackup backs a disk up again and again by what was written since the last
// time. The writer is extentd over HTTP, QEMU, extentd over NBD, and QEMU again; each
// freezes the bitmap that the other began. Also where the disk is a raw file beside a
// qcow2 image that has its bitmaps.
func TestBitmapBackup(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	for name, options := range map[string][]string{
		"plain": nil, "extended": {"extended_l2=on", "cluster_size=128k"}, "data-file": {"data_file=backup.data", "data_file_raw=on"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMaker(t, t.TempDir(), "backup")
			file := m.create(".qcow2", size, options...)
			m.scatter(file, size, 64*kib, 20)
			m.run("qemu-img", "bitmap", "--add", file, "b0")
			backup := newBackup(t)
			m.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, backup.Name())
			generation := func(n int) string { return fmt.Sprint("b", n) }
			for round := range 6 {
				s := serve(t, m.dir, overNBD()...)
				was, next := generation(round), generation(round+1)
				switch round % 3 {
				case 0:
					random := source(fmt.Sprint("bitmap backup", round))
					for range 40 {
						must(t, s.disturbOnce(random, file, size))
					}
					must(t, s.changeBitmaps(file, "create", next, file, "disable", was))
					s.stop()
				case 1:
					s.stop()
					m.scatter(file, size, 64*kib, 10)
					m.run("qemu-img", "bitmap", "--add", "-g", "4096", file, next)
					m.run("qemu-img", "bitmap", "--disable", file, was)
				case 2:
					m.io(s.uri(file), "write -P 17 1M 100k", "write -z 2M 1M", "discard 4M 1M", "write -P 18 9999999 77")
					must(t, s.createBitmap(file, next, 64*kib))
					s.stop()
					m.run("qemu-img", "bitmap", "--disable", file, was)
				}
				s = serve(t, m.dir)
				sent, err := s.copyDirty(backup, file, was, imagePath(file, "/data"))
				must(t, err)
				if sent == 0 || sent == size {
					t.Errorf("round %d: %d bytes are dirty", round, sent)
				}
				s.stop()
				m.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", backup.Name(), file)
				m.checkClean(t, file)
			}
		})
	}
}

// TestBitmapBackupUnderWrites backs a disk up that is written to all the time: in full
// from one snapshot, then by bitmaps up to others, with QEMU as the writer in between
// and a way back to an older snapshot. Each bitmap is created before one snapshot and
// frozen after the next, so that it has all that differs between them.
func TestBitmapBackupUnderWrites(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	m := newMaker(t, t.TempDir(), "busy")
	file := m.create(".qcow2", size)
	m.scatter(file, size, 64*kib, 40)
	backup := newBackup(t)
	compare := func(name string) {
		t.Helper()
		got := readFile(t, backup.Name())
		if want := qemuSnapshot(t, m.dir, file, name); !bytes.Equal(got, want) {
			t.Fatalf("the copy is not %s", name)
		}
	}
	underWrites := func(do func(s *server)) {
		t.Helper()
		s := serve(t, m.dir)
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for n := range 2 {
			random := source(fmt.Sprint("busy ", n))
			writers.Go(func() {
				if err := s.disturb(ctx, random, file, size); err != nil {
					t.Error(err)
				}
			})
		}
		do(s)
		stop()
		writers.Wait()
		s.stop()
	}
	take := func(s *server, name string) {
		_, err := s.takeSnapshot(file, name)
		must(t, err)
	}
	from := func(name string) string { return snapshotPath(file, name, "/data") }
	underWrites(func(s *server) {
		must(t, s.changeBitmaps(file, "create", "b1"))
		take(s, "s1")
		whole, err := s.readWhole(from("s1"))
		must(t, err)
		_, err = backup.WriteAt(whole, 0)
		must(t, err)
	})
	compare("s1")
	underWrites(func(s *server) {
		must(t, s.changeBitmaps(file, "create", "b2"))
		take(s, "s2")
		must(t, s.changeBitmaps(file, "disable", "b1"))
		_, err := s.copyDirty(backup, file, "b1", from("s2"))
		must(t, err)
	})
	compare("s2")
	m.scatter(file, size, 64*kib, 10)
	m.run("qemu-img", "bitmap", "--add", file, "b3")
	m.run("qemu-img", "snapshot", "-c", "s3", file)
	m.scatter(file, size, 64*kib, 10)
	underWrites(func(s *server) {
		must(t, s.changeBitmaps(file, "disable", "b2"))
		_, err := s.copyDirty(backup, file, "b2", from("s3"))
		must(t, err)
	})
	compare("s3")
	underWrites(func(s *server) {
		must(t, s.revert(file, "s1"))
		take(s, "s4")
		must(t, s.changeBitmaps(file, "disable", "b3"))
		_, err := s.copyDirty(backup, file, "b3", from("s4"))
		must(t, err)
	})
	compare("s4")
	m.checkClean(t, file)
}
