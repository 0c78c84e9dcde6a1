package nbd

import (
	"bytes"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// holeSize is the shortest run of zeros that is told instead of sent where a
// reply has data too, bytes; and where it begins is a multiple of it.
const holeSize = 16 << 10

// mappedFrom is the shortest read that asks the map, bytes.
const mappedFrom = 64 << 10

// zeros are compared with, and written.
var zeros = make([]byte, 64<<10)

// read reads what the request asks for, and builds the reply.
func (s *session) read(r *request, d *block.Device) error {
	if r.Length == 0 {
		return nil
	}
	r.buf = s.c.s.pool.get(int64(r.Length))
	data := r.buf.data[:r.Length]
	if s.structured && r.Flags&wire.FlagDF == 0 && r.Length >= mappedFrom && !d.Units().Fixed {
		return s.readMapped(r, d, data)
	}
	if err := d.ReadAt(r.ctx, data, int64(r.Offset)); err != nil {
		return err
	}
	switch {
	case !s.structured:
		r.simple(0)
		r.parts = append(r.parts, data)
	case r.Flags&wire.FlagDF != 0 || r.Length < holeSize:
		s.whole(r, data)
	default:
		s.split(r, data)
	}
	return nil
}

// readMapped reads what the map does not say to be zeros. Where blocks lie in a
// file at their own offsets that is not worth it: asking the file costs more
// than looking at what was read.
func (s *session) readMapped(r *request, d *block.Device, data []byte) error {
	off, end := int64(r.Offset), r.Offset+r.Length
	from := off      // what is to be read, up to the hole
	var lo, hi int64 // the hole
	flush := func() error {
		if lo == hi {
			return nil
		}
		if err := s.readPart(r, d, data, from, lo); err != nil {
			return err
		}
		s.hole(r, uint64(lo), uint64(hi-lo))
		from = hi
		return nil
	}
	for m, err := range d.Walk(r.ctx, off, int64(len(data)), block.WalkOptions{}) {
		switch {
		case err != nil:
			return err
		case !m.Status.Has(storage.Zero) || m.Length < holeSize && m.Length < int64(len(data)):
			continue
		case m.Offset > hi || lo == hi:
			if err := flush(); err != nil {
				return err
			}
			lo = m.Offset
		}
		hi = m.End()
	}
	if err := flush(); err != nil {
		return err
	}
	if err := s.readPart(r, d, data, from, int64(end)); err != nil {
		return err
	}
	s.last(r)
	return nil
}

// readPart reads [lo, hi) to its place in data, and adds a chunk.
func (s *session) readPart(r *request, d *block.Device, data []byte, lo, hi int64) error {
	if lo == hi {
		return nil
	}
	p := data[lo-int64(r.Offset) : hi-int64(r.Offset)]
	if err := d.ReadAt(r.ctx, p, lo); err != nil {
		return err
	}
	s.data(r, uint64(lo), p)
	return nil
}

// whole replies with one chunk.
func (s *session) whole(r *request, data []byte) {
	if isZeros(data) {
		s.hole(r, r.Offset, r.Length)
	} else {
		s.data(r, r.Offset, data)
	}
	s.last(r)
}

// split replies with a chunk for each run of data or of zeros.
func (s *session) split(r *request, data []byte) {
	off, end := r.Offset, r.Offset+r.Length
	for at := off; at < end; {
		zero := false
		next := at
		for next < end {
			stop := min(end, next&^(holeSize-1)+holeSize)
			z := isZeros(data[next-off : stop-off])
			if next > at && z != zero {
				break
			}
			zero, next = z, stop
		}
		if zero {
			s.hole(r, at, next-at)
		} else {
			s.data(r, at, data[at-off:next-off])
		}
		at = next
	}
	s.last(r)
}

// isZeros reports whether p is all zeros. Data seldom begins with them.
func isZeros(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
