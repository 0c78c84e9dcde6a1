package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// TestParallelWriters: writers whose ranges interleave inside clusters that do
// not exist yet. Every byte is the one that its writer wrote, and around them
// stands what was there before.
func TestParallelWriters(t *testing.T) {
	for _, name := range []string{"v3", "cluster-512", "over-short", "over-extended", "zlib", "lazy", "data-file", "raw", "v2-over"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, subjectNamed(t, name), "parallel-"+name)
			if !d.subject.single {
				d.run("qemu-img", "snapshot", "-c", "before", d.file)
			}
			d.s = serveRacy(t, d.dir)
			const workers = 6
			chunk := int64(1000) // two of a cluster of 2 KiB, and never aligned
			var wg sync.WaitGroup
			for worker := range int64(workers) {
				random := source(fmt.Sprint(name, worker))
				wg.Go(func() {
					for at := worker * chunk; at+chunk <= min(d.size(), 700*kib); at += workers * chunk {
						p := make([]byte, chunk-random.Int64N(200))
						fillRandom(random, p)
						if err := d.s.put(d.file, at, p, random.IntN(10) == 0); err != nil {
							t.Error(err)
							return
						}
						copy(d.model[at:], p)
					}
				})
			}
			wg.Wait()
			must(t, d.verify(0, d.size()))
			mapped := d.s.stream(t, d.file)
			d.s.stop()
			d.judge(t, spansOfExtents(mapped))
		})
	}
}

func subjectNamed(t *testing.T, name string) *subject {
	t.Helper()
	for _, k := range subjects() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("there is no subject %s", name)
	return nil
}

// TestReadersDuringReuse: clusters are freed and used again for others under
// readers. No reader sees, at an offset, what was written for another.
func TestReadersDuringReuse(t *testing.T) {
	for name, options := range map[string][]string{
		"4k": {"cluster_size=4k"}, "512": {"cluster_size=512"}, "extended": {"extended_l2=on", "cluster_size=16k"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "reuse")
			file := m.create(".qcow2", mib, options...)
			s := serveRacy(t, m.dir)
			done := make(chan struct{})
			var readers, writers sync.WaitGroup
			var reads atomic.Int64
			for worker := range 3 {
				random := source(fmt.Sprint("reader", worker))
				readers.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						off := random.Int64N(mib/sector) * sector
						length := min(mib-off, sector*(1+random.Int64N(600)))
						data, err := s.read(file, off, length)
						for at := int64(0); err == nil && at < length; at += sector {
							_, err = stampOf(data[at:at+sector], off+at)
						}
						if err != nil {
							t.Error(err)
							return
						}
						reads.Add(1)
					}
				})
			}
			for worker := range int64(3) {
				a := newArea(t.Name(), file, worker*mib/4, mib/4, int(worker))
				a.s = s
				writers.Go(func() {
					for range 150 {
						first := a.random.Int64N(a.count)
						if err := a.step(first, min(1+a.random.Int64N(100), a.count-first)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			writers.Wait()
			close(done)
			readers.Wait()
			t.Logf("%d reads", reads.Load())
			s.stop()
			m.checkClean(t, file)
		})
	}
}

// TestCheckDuringWrites: a check beside writers finds nothing.
func TestCheckDuringWrites(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "checked")
	file := m.create(".qcow2", 4*mib, "cluster_size=4k")
	s := serveRacy(t, m.dir)
	var writers sync.WaitGroup
	var left atomic.Int64
	left.Store(3)
	for worker := range int64(3) {
		a := newArea(t.Name(), file, worker*mib, mib, int(worker))
		a.s = s
		writers.Go(func() {
			defer left.Add(-1)
			for range 150 {
				first := a.random.Int64N(a.count)
				if err := a.step(first, min(1+a.random.Int64N(100), a.count-first)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	checks := 0
	for repairs := []string{"none", "leaks"}; left.Load() > 0; checks++ {
		if v, err := s.check(file, repairs[checks%2]); err != nil || v.Corruptions+v.Leaks+v.LeaksFixed != 0 {
			t.Errorf("check %d beside writers: %+v, %v", checks, v, err)
			break
		}
	}
	writers.Wait()
	t.Logf("%d checks", checks)
	s.stop()
	m.checkClean(t, file)
}

// TestResizeDuringWrites: the end moves under writers, who are refused beyond
// it, and what they were told is written is there as long as the image reaches.
func TestResizeDuringWrites(t *testing.T) {
	for name, options := range map[string][]string{
		"64k": nil, "512": {"cluster_size=512"}, "extended": {"extended_l2=on"}, "raw": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "resized")
			file := ""
			if name == "raw" {
				file = m.raw(".raw", 2*mib)
			} else {
				file = m.create(".qcow2", 2*mib, options...)
			}
			s := serveRacy(t, m.dir)
			low := newArea(t.Name(), file, 0, mib, 0) // never cut
			low.s = s
			var wg sync.WaitGroup
			wg.Go(func() {
				for range 80 {
					first := low.random.Int64N(low.count)
					if err := low.step(first, min(1+low.random.Int64N(60), low.count-first)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			wg.Go(func() {
				random := source("high")
				for range 80 {
					off := mib + random.Int64N(2*mib/sector)*sector
					err := s.put(file, off, stamped(off, 20*sector, 1), false)
					if err != nil && !isRefusal(err, http.StatusBadRequest, "out-of-range") {
						t.Error(err)
						return
					}
				}
			})
			random := source("sizes")
			size := int64(0)
			for range 40 {
				size = mib + random.Int64N(2*mib/sector)*sector
				must(t, s.resize(file, size, true))
			}
			wg.Wait()
			data, err := s.read(file, 0, size)
			must(t, err)
			low.durable(0, low.count) // not a crash: what is there now
			must(t, low.verify(data))
			for at := mib; at < size; at += sector {
				if _, err := stampOf(data[at:at+sector], at); err != nil {
					t.Fatal(err)
				}
			}
			s.stop()
			if name != "raw" {
				m.checkClean(t, file)
			}
		})
	}
}

// TestDeleteDuringDownload: a download of an image that is deleted goes on to
// its end, and the image is gone.
func TestDeleteDuringDownload(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"raw", "v3"} {
		for _, written := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " written=", written), func(t *testing.T) {
				const size = 32 * mib
				m := newMaker(t, t.TempDir(), "gone")
				file := ""
				if name == "raw" {
					file = m.raw(".raw", size)
				} else {
					file = m.create(".qcow2", size)
				}
				m.io(file, fmt.Sprintf("write -P 7 0 %d", size))
				s := serveRacy(t, m.dir, "--idle", "200ms")
				if written {
					must(t, s.put(file, 0, bytes.Repeat([]byte{7}, 4096), false))
				}
				resp := s.get(t, imagePath(file, "/data"))
				defer resp.Body.Close()
				first := make([]byte, mib)
				if _, err := io.ReadFull(resp.Body, first); err != nil {
					t.Fatal(err)
				}
				a, err := s.send(http.MethodDelete, imagePath(file, ""), nil)
				must(t, accepted("DELETE", a, err, http.StatusNoContent))
				s.expectProblem(t, http.StatusNotFound, "not-found", imagePath(file, ""))
				if _, err := os.Stat(m.path(file)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the file is still there: %v", err)
				}
				rest, err := io.ReadAll(resp.Body)
				if err != nil || int64(len(rest)) != size-mib {
					t.Errorf("the download ended after %d bytes: %v", mib+int64(len(rest)), err)
				}
				if i := firstDifference(rest, bytes.Repeat([]byte{7}, len(rest))); i >= 0 {
					t.Errorf("byte %d of the download is wrong", mib+int64(i))
				}
				must(t, s.awaitClosed(m.path(file)+" (deleted)"))
			})
		}
	}
}
