package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A changedExtent is a line of a map that says what has changed.
type changedExtent struct {
	Offset, Length int64
	Zero           bool
	Changed        *bool
}

// changedSince is the map at a path, as lines.
func (s *server) changedSince(path string) ([]changedExtent, error) {
	a, err := s.send(http.MethodGet, path, nil, "Accept", "application/x-ndjson")
	if err := accepted("GET "+path, a, err, http.StatusOK); err != nil {
		return nil, err
	}
	var list []changedExtent
	end := int64(0)
	for line := range strings.Lines(string(a.body)) {
		var e changedExtent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, err
		}
		if e.Changed == nil || e.Offset != end || e.Length < 1 {
			return nil, fmt.Errorf("%s: %s after %d", path, line, end)
		}
		end += e.Length
		list = append(list, e)
	}
	return list, nil
}

// incremental brings a copy of one snapshot up to another, by what has changed, and
// returns how much that was, bytes.
func (s *server) incremental(backup *os.File, image, since, now string) (int64, error) {
	list, err := s.changedSince(snapshotPath(image, now, "/extents?since="+since))
	if err != nil {
		return 0, err
	}
	sent := int64(0)
	for _, e := range list {
		if !*e.Changed {
			continue
		}
		path := snapshotPath(image, now, "/data")
		a, err := s.send(http.MethodGet, path, nil, "Range", fmt.Sprintf("bytes=%d-%d", e.Offset, e.Offset+e.Length-1))
		if err := accepted("GET "+path, a, err, http.StatusPartialContent); err != nil {
			return sent, err
		}
		if e.Zero && bytes.Count(a.body, []byte{0}) != len(a.body) {
			return sent, fmt.Errorf("%d bytes at %d are no zeros", e.Length, e.Offset)
		}
		if _, err := backup.WriteAt(a.body, e.Offset); err != nil {
			return sent, err
		}
		sent += e.Length
	}
	return sent, nil
}

// disturb writes, zeros and trims at random until its context ends.
func (s *server) disturb(ctx context.Context, random *rand.Rand, image string, size int64) error {
	for ctx.Err() == nil {
		if err := s.disturbOnce(random, image, size); err != nil {
			return err
		}
	}
	return nil
}

// disturbOnce writes, zeros or trims something.
func (s *server) disturbOnce(random *rand.Rand, image string, size int64) error {
	length := 1 + random.Int64N(48*kib)
	off := random.Int64N(size - length)
	switch random.IntN(12) {
	case 0:
		return s.zero(image, off, length, random.IntN(2) == 0)
	case 1:
		return s.trim(image, off, length)
	}
	p := make([]byte, length)
	fillRandom(random, p)
	return s.put(image, off, p, random.IntN(8) == 0)
}

// TestBackupUnderWrites backs a disk up that is written to all the time: in full from
// one snapshot, then what has changed up to others, with QEMU as the writer in
// between. Each time the copy is the snapshot, byte for byte.
func TestBackupUnderWrites(t *testing.T) {
	const size = 32 * mib
	for name, options := range map[string][]string{"plain": nil, "extended": {"extended_l2=on", "cluster_size=128k"}} {
		t.Run(name, func(t *testing.T) {
			m := newMaker(t, t.TempDir(), "backup")
			base := m.create("-base.qcow2", size)
			m.scatter(base, size, 64*kib, 40)
			file := m.overlay(".qcow2", base, size, options...)
			m.scatter(file, size, 64*kib, 100)
			backup, err := os.Create(filepath.Join(t.TempDir(), "backup.raw"))
			must(t, err)
			defer backup.Close()
			compare := func(name string) {
				t.Helper()
				want := filepath.Join(t.TempDir(), "want.raw")
				must(t, os.WriteFile(want, qemuSnapshot(t, m.dir, file, name), 0o600))
				mustTool(t, "qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", backup.Name(), want)
			}
			// underWrites calls do while others write, and stops the server.
			underWrites := func(do func(s *server)) {
				t.Helper()
				s := serve(t, m.dir)
				ctx, stop := context.WithCancel(t.Context())
				var writers sync.WaitGroup
				for n := range 3 {
					random := source(fmt.Sprint("backup ", name, n))
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
			underWrites(func(s *server) {
				_, err := s.takeSnapshot(file, "s1")
				must(t, err)
				whole, err := s.readWhole(snapshotPath(file, "s1", "/data"))
				must(t, err)
				_, err = backup.WriteAt(whole, 0)
				must(t, err)
				_, err = s.takeSnapshot(file, "s2")
				must(t, err)
			})
			compare("s1")
			underWrites(func(s *server) {
				sent, err := s.incremental(backup, file, "s1", "s2")
				must(t, err)
				if sent == 0 || sent == size {
					t.Errorf("%d bytes have changed", sent)
				}
				must(t, s.deleteSnapshot(file, "s1"))
			})
			compare("s2")
			m.scatter(file, size, 64*kib, 10)
			m.run("qemu-img", "snapshot", "-c", "s3", file)
			m.scatter(file, size, 64*kib, 10)
			underWrites(func(s *server) {
				_, err := s.incremental(backup, file, "s2", "s3")
				must(t, err)
			})
			compare("s3")
			underWrites(func(s *server) { must(t, s.revert(file, "s2")) })
			underWrites(func(s *server) {
				_, err := s.takeSnapshot(file, "s4")
				must(t, err)
				_, err = s.incremental(backup, file, "s3", "s4")
				must(t, err)
			})
			compare("s4")
			m.checkClean(t, file)
		})
	}
}

// TestDifferencesMissNothing compares two snapshots byte by byte, over HTTP, after
// random changes, and rounds to clusters: what differs is changed, and what no change
// has met is not.
func TestDifferencesMissNothing(t *testing.T) {
	for name, cluster := range map[string]int64{"4k": 4 * kib, "64k": 64 * kib} {
		t.Run(name, func(t *testing.T) {
			const size = 8 * mib
			m := newMaker(t, t.TempDir(), "differences")
			file := m.create(".qcow2", size, fmt.Sprint("cluster_size=", cluster))
			s := serve(t, m.dir)
			random := source("differences " + name)
			var before []byte
			for round := range 6 {
				p := make([]byte, 1+random.Int64N(3*cluster))
				touched := map[int64]bool{}
				for range random.IntN(12) {
					fillRandom(random, p)
					off := random.Int64N(size - int64(len(p)))
					must(t, s.put(file, off, p, false))
					for c := off / cluster; c <= (off+int64(len(p))-1)/cluster; c++ {
						touched[c] = true
					}
				}
				_, err := s.takeSnapshot(file, fmt.Sprint(round))
				must(t, err)
				now, err := s.readWhole(snapshotPath(file, fmt.Sprint(round), "/data"))
				must(t, err)
				if round > 0 {
					list, err := s.changedSince(snapshotPath(file, fmt.Sprint(round), fmt.Sprint("/extents?since=", round-1)))
					must(t, err)
					for _, e := range list {
						for at := e.Offset; at < e.Offset+e.Length; at += cluster {
							differs := !bytes.Equal(now[at:at+cluster], before[at:at+cluster])
							if differs && !*e.Changed || !touched[at/cluster] && *e.Changed {
								t.Errorf("round %d: at %d changed is %v, differs %v, touched %v", round, at, *e.Changed, differs, touched[at/cluster])
							}
						}
					}
				}
				before = now
			}
		})
	}
}
