package test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestNBDDifferential writes to every kind of image with qemu-io over NBD, beside
// readers over HTTP, and compares with a model of the bytes and with what QEMU
// says of the image.
func TestNBDDifferential(t *testing.T) {
	soak(t, func(t *testing.T, round int) {
		for _, k := range subjects() {
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				nbdDiffer(t, k, fmt.Sprintf("nbd-%s-%d", k.name, round))
			})
		}
	})
}

func nbdDiffer(t *testing.T, k *subject, name string) {
	d := newDisk(t, k, name)
	for session := range 2 {
		d.s = serve(t, d.dir, overNBD()...)
		for range 3 {
			d.nbdBatch(t, 12)
		}
		mapped := d.s.stream(t, d.file)
		checkZeros(t, mapped, d.model)
		d.s.stop()
		d.note("stop")
		d.judge(t, spansOfExtents(mapped))
		if session == 0 {
			d.qemuSession(t, "between")
		}
	}
}

// nbdBatch takes steps over NBD beside a reader over HTTP, which must see at each
// place what was there before, during or after; then both read the same.
func (d *disk) nbdBatch(t *testing.T, steps int) {
	t.Helper()
	q := startQemuIO(t, d.s.uri(d.file))
	defer q.close()
	could := newPossible(d.model)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	var reads []seen
	var failed error
	random := source(fmt.Sprint(d.name, " reader ", len(d.log)))
	reader.Go(func() {
		for failed == nil && len(reads) < 200 {
			select {
			case <-stop:
				return
			default:
			}
			off := random.Int64N(d.size())
			var p []byte
			p, failed = d.s.read(d.file, off, min(d.size()-off, 1+random.Int64N(100*kib)))
			reads = append(reads, seen{off, p})
		}
	})
	for range steps {
		must(t, d.nbdStep(q, could))
	}
	close(stop)
	reader.Wait()
	must(t, failed)
	for _, r := range reads {
		must(t, could.allows(r))
	}
	must(t, d.verify(0, d.size()))
	got, err := d.s.openNBD(t, d.file, len(d.log)%2 == 0).readAll(0, d.size())
	must(t, err)
	if i := firstDifference(got, d.model); i >= 0 {
		t.Fatalf("over NBD byte %d is %x, want %x", i, got[i], d.model[i])
	}
}

// nbdStep does one thing at random, and the same to the model.
func (d *disk) nbdStep(q *qemuIO, could *possible) error {
	off, length := d.someRange()
	switch n := d.random.IntN(100); {
	case n < 45:
		p := d.someBytes(length)
		fua := d.random.IntN(8) == 0
		d.note("qemu-io write %d %d fua=%v", off, length, fua)
		copy(d.model[off:], p)
		could.add(off, p)
		return q.write(off, p, fua)
	case n < 65:
		keep := d.random.IntN(2) == 0
		d.note("qemu-io zero %d %d keep=%v", off, length, keep)
		clear(d.model[off : off+length])
		could.add(off, make([]byte, length))
		return q.zero(off, length, keep)
	case n < 72:
		d.note("qemu-io zero %d %d only if fast", off, length)
		could.add(off, make([]byte, length))
		// qemu-io says EIO of it all when it cannot be fast; nothing changed then.
		if err := q.do("write -z -n %d %d", off, length); err != nil {
			if strings.Contains(err.Error(), "not supported") {
				return d.verify(off, length)
			}
			return err
		}
		clear(d.model[off : off+length])
		return d.verify(off, length)
	case n < 88:
		d.note("qemu-io discard %d %d", off, length)
		could.add(off, make([]byte, length))
		if err := q.trim(off, length); err != nil {
			return err
		}
		got, err := d.s.read(d.file, off, length)
		if err != nil {
			return err
		}
		return d.trimmed(off, got)
	case n < 93:
		d.note("qemu-io flush")
		return q.flush()
	}
	return d.verify(off, length)
}

// A possible is what a reader may see of an image that is being written to.
type possible struct {
	before []byte
	writes []seen
}

// A seen is what was read, or written, at an offset.
type seen struct {
	off  int64
	data []byte
}

func newPossible(model []byte) *possible { return &possible{before: slices.Clone(model)} }

func (p *possible) add(off int64, data []byte) { p.writes = append(p.writes, seen{off, data}) }

// allows reports a byte that nobody wrote where it was read.
func (p *possible) allows(r seen) error {
	good := make([]bool, len(r.data))
	match := func(off int64, data []byte) {
		for at := max(off, r.off); at < min(off+int64(len(data)), r.off+int64(len(r.data))); at++ {
			good[at-r.off] = good[at-r.off] || data[at-off] == r.data[at-r.off]
		}
	}
	match(0, p.before)
	for _, w := range p.writes {
		match(w.off, w.data)
	}
	if i := slices.Index(good, false); i >= 0 {
		return fmt.Errorf("a reader saw %x at %d, which nobody wrote there", r.data[i], r.off+int64(i))
	}
	return nil
}
