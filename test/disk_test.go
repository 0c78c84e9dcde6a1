package test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"testing"
)

// A disk is an image that is changed step by step, beside a model of its bytes.
type disk struct {
	*maker
	subject *subject
	s       *server // nil while QEMU has the image
	file    string
	model   []byte
	random  *rand.Rand
	before  map[string][]byte // what each snapshot holds, by name
}

func newDisk(t *testing.T, k *subject, name string) *disk {
	m := newMaker(t, t.TempDir(), name)
	d := &disk{maker: m, subject: k, random: source(name + " steps"), before: map[string][]byte{}}
	d.file = k.make(m)
	d.adopt(t)
	return d
}

// adopt takes for the model what QEMU reads.
func (d *disk) adopt(t *testing.T) {
	t.Helper()
	if d.subject.format() == "raw" { // QEMU counts in sectors
		var err error
		if d.model, err = os.ReadFile(d.path(d.file)); err != nil {
			t.Fatal(err)
		}
		return
	}
	path, err := convert(d.dir, d.file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(path) }()
	if d.model, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
}

func (d *disk) size() int64 { return int64(len(d.model)) }

func (d *disk) note(format string, args ...any) { d.log = append(d.log, fmt.Sprintf(format, args...)) }

// someBytes are worth writing: mostly random, now and then zeros.
func (d *disk) someBytes(n int64) []byte {
	p := make([]byte, n)
	if d.random.IntN(10) == 0 {
		return p
	}
	fillRandom(d.random, p)
	return p
}

func fillRandom(r *rand.Rand, p []byte) {
	for i := 0; i < len(p); i += 8 {
		word := r.Uint64() | 1
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(word >> (8 * (j - i)))
		}
	}
}

// someRange is a range of the disk: some are whole clusters, some a few bytes,
// some begin at an edge.
func (d *disk) someRange() (off, length int64) {
	c := d.subject.cluster
	off = d.random.Int64N(d.size())
	length = 1 + d.random.Int64N(min(3*c, 300*kib))
	switch d.random.IntN(4) {
	case 0:
		off -= off % c
		length = c * (1 + d.random.Int64N(max(1, min(6, 512*kib/c))))
	case 1:
		off -= off % 512
		length = (length + 511) &^ 511
	}
	return off, min(length, d.size()-off)
}

// someClusters is a range of whole clusters, or up to the end.
func (d *disk) someClusters() (off, length int64) {
	c := d.subject.cluster
	off = d.random.Int64N(d.size()/c+1) * c
	if off >= d.size() {
		off = 0
	}
	return off, min(c*(1+d.random.Int64N(3)), d.size()-off)
}

// step does one thing at random by HTTP, and the same to the model.
func (d *disk) step(t *testing.T) {
	t.Helper()
	var err error
	switch n := d.random.IntN(100); {
	case n < 40:
		err = d.stepWrite()
	case n < 52:
		err = d.stepZero()
	case n < 64:
		err = d.stepTrim()
	case n < 74:
		err = d.stepUpdate()
	case n < 80:
		err = d.stepAllocation()
	case n < 84:
		d.note("flush")
		err = d.s.flush(d.file)
	case n < 88:
		err = d.stepResize()
	default:
		off, length := d.someRange()
		err = d.verify(off, length)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (d *disk) stepWrite() error {
	off, length := d.someRange()
	flush := d.random.IntN(8) == 0
	p := d.someBytes(length)
	d.note("write %d %d flush=%v", off, length, flush)
	copy(d.model[off:], p)
	return d.s.put(d.file, off, p, flush)
}

func (d *disk) stepZero() error {
	off, length := d.someRange()
	anchor := d.random.IntN(2) == 0
	d.note("zero %d %d anchor=%v", off, length, anchor)
	clear(d.model[off : off+length])
	return d.s.zero(d.file, off, length, anchor)
}

// stepTrim: what a trim leaves is read: each sector is what it was, or zeros,
// and the whole clusters of a format that can say so are zeros.
func (d *disk) stepTrim() error {
	off, length := d.someRange()
	d.note("trim %d %d", off, length)
	err := d.s.trim(d.file, off, length)
	if d.subject.v2 && isRefusal(err, http.StatusUnprocessableEntity, "unsupported-feature") {
		return d.verify(off, length) // the backing would show
	}
	if err != nil {
		return err
	}
	got, err := d.s.read(d.file, off, length)
	if err != nil {
		return err
	}
	return d.trimmed(off, got)
}

func (d *disk) trimmed(off int64, got []byte) error {
	end := off + int64(len(got))
	c := d.subject.cluster
	for at := off; at < end; {
		next := min((at/512+1)*512, end)
		now, was := got[at-off:next-off], d.model[at:next]
		zero := len(bytes.Trim(now, "\x00")) == 0
		whole := at/c*c >= off && (at/c+1)*c <= end && d.subject.format() != "raw" && !d.subject.v2
		if !zero && (whole || !bytes.Equal(now, was)) {
			return fmt.Errorf("trim of %d bytes at %d: at %d there is neither what was there nor zeros (whole cluster: %v)", len(got), off, at, whole)
		}
		copy(was, now)
		at = next
	}
	return nil
}

// stepUpdate is an update of the map that needs no allocation.
func (d *disk) stepUpdate() error {
	off, length := d.someClusters()
	kinds := []object{target(off, length, "unmapped"), target(off, length, "zero"), target(off, length, "zero", "anchored", true)}
	u := kinds[d.random.IntN(len(kinds))]
	d.note("update %v", u)
	if err := d.s.update(d.file, []object{u}); err != nil {
		if d.subject.v2 && isRefusal(err, http.StatusUnprocessableEntity, "unsupported-feature") {
			return d.verify(off, length)
		}
		return err
	}
	clear(d.model[off : off+length])
	return d.verify(off, length)
}

func isRefusal(err error, status int, name string) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == status && r.name() == name
}

// stepAllocation allocates, fills, maps a part or all, and gives the rest back.
func (d *disk) stepAllocation() error {
	off, length := d.someClusters()
	c := d.subject.cluster
	whole := (length + c - 1) / c * c
	extra := d.random.Int64N(2) * c
	d.note("allocate %d and %d for %d", whole, extra, off)
	g, err := d.s.allocate(d.file, object{"length": whole + extra, "contiguous": d.random.IntN(2) == 0})
	if d.subject.fixed {
		if isRefusal(err, http.StatusUnprocessableEntity, "unsupported-feature") {
			return nil
		}
		return fmt.Errorf("an allocation of what cannot be allocated: %w", err)
	}
	if err != nil {
		return err
	}
	p := d.someBytes(whole)
	if err := d.s.fill(d.file, g.ID, extra, p); err != nil {
		return err
	}
	u := target(off, length, "data", "allocation", g.ID, "allocation_offset", extra)
	if err := d.s.update(d.file, []object{u}); err != nil {
		return err
	}
	copy(d.model[off:off+length], p)
	if err := d.s.giveBack(d.file, g.ID); err != nil {
		return err
	}
	return d.verify(off, length)
}

// stepResize grows or shrinks a little. What has snapshots may refuse.
func (d *disk) stepResize() error {
	was := d.size()
	size := was + d.random.Int64N(400*kib) - 200*kib
	if d.subject.name != "raw-odd" {
		size &^= 511
	}
	size = max(size, 256*kib)
	d.note("resize %d to %d", was, size)
	if err := d.s.resize(d.file, size, size < was); err != nil {
		if len(d.before) > 0 && isRefusal(err, http.StatusUnprocessableEntity, "unsupported-feature") {
			return nil
		}
		return err
	}
	if size <= was {
		d.model = d.model[:size]
	} else {
		d.model = append(slices.Clip(d.model), make([]byte, size-was)...)
	}
	return d.verify(max(0, min(size, was)-100*kib), size-max(0, min(size, was)-100*kib))
}

// verify reads a range and compares it with the model.
func (d *disk) verify(off, length int64) error {
	got, err := d.s.read(d.file, off, length)
	if err != nil {
		return err
	}
	if i := firstDifference(got, d.model[off:off+length]); i >= 0 {
		at := off + int64(i)
		return fmt.Errorf("read of %d bytes at %d: byte %d is %x, want %x", length, off, at, got[i:min(i+8, len(got))], d.model[at:min(at+8, d.size())])
	}
	return nil
}
