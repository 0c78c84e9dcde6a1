package test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDParallelWriters: writers over HTTP, over NBD and by qemu-io, whose ranges
// interleave inside clusters that do not exist yet. Every byte is the one that its
// writer wrote, and around them stands what was there before.
func TestNBDParallelWriters(t *testing.T) {
	for _, name := range []string{"v3", "cluster-512", "over-short", "over-extended", "zlib", "lazy", "data-file", "raw", "v2-over"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, subjectNamed(t, name), "nbd-parallel-"+name)
			d.s = serveRacy(t, d.dir, overNBD()...)
			const workers = 6
			chunk := int64(1000) // two of a cluster of 2 KiB, and never aligned
			var wg sync.WaitGroup
			for worker := range int64(workers) {
				random := source(fmt.Sprint("nbd ", name, worker))
				write := d.writer(t, int(worker))
				wg.Go(func() {
					for at := worker * chunk; at+chunk <= min(d.size(), 500*kib); at += workers * chunk {
						p := make([]byte, chunk-random.Int64N(200))
						fillRandom(random, p)
						if random.IntN(10) == 0 {
							clear(p)
						}
						if err := write(at, p, random.IntN(10) == 0); err != nil {
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

// writer is one of several ways to write, by turns.
func (d *disk) writer(t *testing.T, worker int) func(off int64, p []byte, durable bool) error {
	t.Helper()
	switch worker % 3 {
	case 0:
		return func(off int64, p []byte, durable bool) error { return d.s.put(d.file, off, p, durable) }
	case 1:
		return startQemuIO(t, d.s.uri(d.file)).write
	}
	c := d.s.openNBD(t, d.file, worker > 3)
	return func(off int64, p []byte, durable bool) error {
		var flags wire.Flags
		if durable {
			flags = wire.FlagFUA
		}
		if len(bytes.Trim(p, "\x00")) == 0 {
			_, err := c.do(wire.CmdWriteZeroes, flags, off, int64(len(p)), nil)
			return err
		}
		_, err := c.do(wire.CmdWrite, flags, off, 0, p)
		return err
	}
}

// TestNBDMultiConn: a flush on one connection covers what was answered on another,
// and what one writes all others read at once: it is on disk when the server is
// killed.
func TestNBDMultiConn(t *testing.T) {
	for _, name := range []string{"raw", "qcow2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "multi")
			file := m.raw(".raw", 4*mib)
			if name == "qcow2" {
				file = m.create(".qcow2", 4*mib)
			}
			s := serve(t, m.dir, overNBD("--nbd", "127.0.0.1:0")...)
			want := make([]byte, 4*mib)
			var clients []*nbdClient
			for i := range 4 {
				c := dialNBD(t, s.nbd[i%2])
				must(t, c.open(file, i > 1))
				clients = append(clients, c)
			}
			random := source(t.Name())
			for i := range 60 {
				off := random.Int64N(4*mib - 70*kib)
				p := make([]byte, 1+random.Int64N(70*kib))
				fillRandom(random, p)
				copy(want[off:], p)
				_, err := clients[i%4].do(wire.CmdWrite, 0, off, 0, p)
				must(t, err)
				r, err := clients[(i+1)%4].do(wire.CmdRead, 0, off, int64(len(p)), nil)
				must(t, err)
				if !bytes.Equal(r.data, p) {
					t.Fatal("another connection reads something else")
				}
			}
			_, err := clients[3].do(wire.CmdFlush, 0, 0, 0, nil)
			must(t, err)
			s.kill()
			again := serve(t, m.dir)
			got, err := again.read(file, 0, 4*mib)
			must(t, err)
			if i := firstDifference(got, want); i >= 0 {
				t.Errorf("byte %d was flushed and is not there", i)
			}
		})
	}
}
