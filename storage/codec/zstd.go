package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxWindow is the largest window that a frame may declare, bytes: that of
// QEMU's decoder. No memory is allocated for it, since dst is the window.
const maxWindow = 128 << 20

// Zstd returns a codec for Zstandard frames (RFC 8878). A block may consist of
// several frames, as in QEMU; the one that fills it must end there.
func Zstd() Codec { return new(zstandard) }

type zstandard struct {
	decoders sync.Pool // of *zstd.Decoder
}

func (z *zstandard) Unpack(dst, src []byte) error {
	d, _ := z.decoders.Get().(*zstd.Decoder)
	if d == nil {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
	}
	defer z.decoders.Put(d)
	for filled := 0; filled < len(dst); {
		frame, err := nextFrame(src)
		if err == nil {
			src = src[len(frame):]
			filled, err = unpackFrame(d, dst, filled, frame)
		}
		if err != nil {
			return fmt.Errorf("zstd: %w: %d bytes of %d: %w", ErrCorrupt, filled, len(dst), err)
		}
	}
	return nil
}

// unpackFrame appends what frame holds to the filled bytes of dst. The decoder
// may run past dst by a block, in memory of its own, before it notices.
func unpackFrame(d *zstd.Decoder, dst []byte, filled int, frame []byte) (int, error) {
	room := dst[filled:]
	out, err := d.DecodeAll(frame, room[:0:len(room)])
	if err != nil {
		return filled, err
	}
	if len(out) > len(room) {
		return filled, errors.New("the frame is longer than the block")
	}
	if len(out) > 0 && &out[0] != &room[0] {
		copy(room, out)
	}
	return filled + len(out), nil
}

// nextFrame is the first frame of src, data or skippable. The decoder wants it
// without what follows.
func nextFrame(src []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return nil, err
	}
	end := uint64(h.HeaderSize)
	if h.Skippable {
		end += uint64(h.SkippableSize)
		if end > uint64(len(src)) {
			return nil, io.ErrUnexpectedEOF
		}
		return src[:end], nil
	}
	for last := false; !last; {
		if end+3 > uint64(len(src)) {
			return nil, io.ErrUnexpectedEOF
		}
		// Block_Header: Last_Block, 2 bits Block_Type, 21 bits Block_Size.
		block := uint64(binary.LittleEndian.Uint16(src[end:])) | uint64(src[end+2])<<16
		last = block&1 != 0
		end += 3
		if rle := block>>1&3 == 1; rle {
			end++
		} else {
			end += block >> 3
		}
	}
	if h.HasCheckSum {
		end += 4
	}
	if end > uint64(len(src)) {
		return nil, io.ErrUnexpectedEOF
	}
	return src[:end], nil
}
