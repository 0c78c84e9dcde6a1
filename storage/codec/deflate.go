package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Deflate returns a codec for raw deflate (RFC 1951), as QEMU inflates it: the
// stream may be longer than the block, but what is unpacked ahead of its end
// must be sound.
func Deflate() Codec { return new(deflate) }

type deflate struct {
	inflaters sync.Pool // of *inflater
}

// An inflater keeps its 40 KiB of tables and window between blocks.
type inflater struct {
	in   bytes.Reader
	out  io.ReadCloser // a flate.Resetter
	rest [1]byte
}

func (d *deflate) Unpack(dst, src []byte) error {
	f, _ := d.inflaters.Get().(*inflater)
	if f == nil {
		f = new(inflater)
		f.out = flate.NewReader(&f.in)
	}
	defer d.inflaters.Put(f)
	return f.unpack(dst, src)
}

func (f *inflater) unpack(dst, src []byte) error {
	f.in.Reset(src)
	defer f.in.Reset(nil) // a pooled inflater must not keep src alive
	if err := f.out.(flate.Resetter).Reset(&f.in, nil); err != nil {
		return fmt.Errorf("deflate: %w: %w", ErrCorrupt, err)
	}
	if n, err := io.ReadFull(f.out, dst); err != nil {
		return fmt.Errorf("deflate: %w: %d bytes of %d: %w", ErrCorrupt, n, len(dst), err)
	}
	if _, err := f.out.Read(f.rest[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("deflate: %w: after the block: %w", ErrCorrupt, err)
	}
	return nil
}
