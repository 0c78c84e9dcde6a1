package wire

import (
	"encoding/binary"
	"fmt"
)

// Lengths of what goes before the data of a chunk, bytes.
const (
	// DataHeaderSize is that of ChunkOffsetData.
	DataHeaderSize = 8
	// HoleSize is that of ChunkOffsetHole, all of it.
	HoleSize = 12
)

// MaxDescriptors is the most that a chunk of block status may hold.
const MaxDescriptors = 1 << 20

// AppendChunk appends a chunk's header.
func AppendChunk(b []byte, r *Reply, extended bool) []byte {
	var head [ExtReplySize]byte
	return append(b, head[:PutChunk(head[:], r, extended)]...)
}

// AppendDataHeader appends what goes before the data of ChunkOffsetData.
func AppendDataHeader(b []byte, offset uint64) []byte {
	return binary.BigEndian.AppendUint64(b, offset)
}

// ParseDataHeader reads what goes before the data of ChunkOffsetData from p, of
// DataHeaderSize at least.
func ParseDataHeader(p []byte) (offset uint64) { return binary.BigEndian.Uint64(p) }

// AppendHole appends the payload of ChunkOffsetHole.
func AppendHole(b []byte, offset uint64, length uint32) []byte {
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// ParseHole reads the payload of ChunkOffsetHole.
func ParseHole(p []byte) (offset uint64, length uint32, err error) {
	r := reader{p: p}
	offset, length = r.uint64(), r.uint32()
	if !r.end() || length == 0 {
		return 0, 0, fmt.Errorf("%w: a hole of %d bytes in a chunk of %d", ErrProtocol, length, len(p))
	}
	return offset, length, nil
}

// AppendError appends the payload of ChunkError. A text that is too long is cut.
func AppendError(b []byte, errno Errno, text string) []byte {
	text = text[:min(len(text), MaxString)]
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// ParseError reads the payload of a chunk that is an error, with its offset if it
// is ChunkErrorOffset. An errno of 0, which would be no error, is read as EINVAL.
func ParseError(c Chunk, p []byte) (errno Errno, text string, offset uint64, err error) {
	r := reader{p: p}
	errno = Errno(r.uint32())
	text = string(r.bytes(uint64(r.uint16())))
	if c == ChunkErrorOffset {
		offset = r.uint64()
	}
	if r.bad {
		return 0, "", 0, fmt.Errorf("%w: an error in a chunk of %d bytes", ErrProtocol, len(p))
	}
	if errno == 0 {
		errno = EINVAL
	}
	return errno, text, offset, nil
}

// A Descriptor is a part of a block status: what is so from where the last one
// ended.
type Descriptor struct {
	Length uint64 // bytes
	Flags  uint64
}

// DescriptorSize is the size of a descriptor, bytes.
func DescriptorSize(extended bool) int {
	if extended {
		return 16
	}
	return 8
}

// StatusHeaderSize is the size of what goes before the descriptors, bytes.
func StatusHeaderSize(extended bool) int {
	if extended {
		return 8
	}
	return 4
}

// PutStatusHeader writes what goes before n descriptors to p, which is of
// StatusHeaderSize.
func PutStatusHeader(p []byte, context uint32, n int, extended bool) {
	binary.BigEndian.PutUint32(p, context)
	if extended {
		binary.BigEndian.PutUint32(p[4:], uint32(n))
	}
}

// AppendDescriptor appends a descriptor. Unless extended, its length and flags are
// of 32 bits.
func AppendDescriptor(b []byte, d Descriptor, extended bool) []byte {
	if extended {
		b = binary.BigEndian.AppendUint64(b, d.Length)
		return binary.BigEndian.AppendUint64(b, d.Flags)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(d.Length))
	return binary.BigEndian.AppendUint32(b, uint32(d.Flags))
}

// ParseStatus reads the payload of a chunk of block status, and appends its
// descriptors to into. One without length is an error, as is a sum of lengths
// beyond 2^63, and more than MaxDescriptors.
func ParseStatus(p []byte, into []Descriptor, extended bool) (context uint32, _ []Descriptor, err error) {
	size := DescriptorSize(extended)
	bad := func() (uint32, []Descriptor, error) {
		return 0, into, fmt.Errorf("%w: a block status of %d bytes", ErrProtocol, len(p))
	}
	head := StatusHeaderSize(extended)
	n := (len(p) - head) / size
	if n < 1 || n > MaxDescriptors || len(p) != head+n*size {
		return bad()
	}
	context = binary.BigEndian.Uint32(p)
	if extended && binary.BigEndian.Uint32(p[4:]) != uint32(n) {
		return bad()
	}
	var sum uint64
	for p := p[head:]; len(p) > 0; p = p[size:] {
		var d Descriptor
		if extended {
			d = Descriptor{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])}
		} else {
			d = Descriptor{uint64(binary.BigEndian.Uint32(p)), uint64(binary.BigEndian.Uint32(p[4:]))}
		}
		if d.Length == 0 || d.Length > 1<<63-sum {
			return bad()
		}
		sum += d.Length
		into = append(into, d)
	}
	return context, into, nil
}

// AppendStatusQuery appends the payload of CmdBlockStatus with FlagPayloadLen:
// the length of the effect, and the contexts of interest.
func AppendStatusQuery(b []byte, length uint64, contexts []uint32) []byte {
	b = binary.BigEndian.AppendUint64(b, length)
	for _, c := range contexts {
		b = binary.BigEndian.AppendUint32(b, c)
	}
	return b
}

// ParseStatusQuery reads the payload of CmdBlockStatus with FlagPayloadLen, of
// at most most contexts. One that is named twice is not ok.
func ParseStatusQuery(p []byte, most int) (length uint64, contexts []uint32, ok bool) {
	r := reader{p: p}
	length = r.uint64()
	if r.bad || len(r.p)%4 != 0 || len(r.p)/4 > most {
		return 0, nil, false
	}
	for len(r.p) > 0 {
		c := r.uint32()
		for _, other := range contexts {
			if c == other {
				return 0, nil, false
			}
		}
		contexts = append(contexts, c)
	}
	return length, contexts, len(contexts) > 0
}

// MarkDone sets FlagDone in a chunk's header, which p begins with.
func MarkDone(p []byte) { p[5] |= byte(FlagDone) }
