package wire

import (
	"encoding/binary"
	"fmt"
)

// A Reply is the header of a simple reply, or of one chunk of a structured or
// extended one.
type Reply struct {
	Simple bool
	Errno  Errno // of a simple reply
	Flags  uint16
	Chunk  Chunk
	Cookie uint64
	Offset uint64 // of an extended reply: the request's
	Length uint64 // of the chunk's payload, bytes
}

// PutSimple writes a simple reply to p, which is of SimpleReplySize.
func PutSimple(p []byte, cookie uint64, errno Errno) {
	binary.BigEndian.PutUint32(p, simpleMagic)
	binary.BigEndian.PutUint32(p[4:], uint32(errno))
	binary.BigEndian.PutUint64(p[8:], cookie)
}

// PutChunk writes a chunk's header to p and returns its size:
// StructuredReplySize, or ExtReplySize if extended.
func PutChunk(p []byte, r *Reply, extended bool) int {
	magic := structuredMagic
	if extended {
		magic = extReplyMagic
	}
	binary.BigEndian.PutUint32(p, magic)
	binary.BigEndian.PutUint16(p[4:], r.Flags)
	binary.BigEndian.PutUint16(p[6:], uint16(r.Chunk))
	binary.BigEndian.PutUint64(p[8:], r.Cookie)
	if !extended {
		binary.BigEndian.PutUint32(p[16:], uint32(r.Length))
		return StructuredReplySize
	}
	binary.BigEndian.PutUint64(p[16:], r.Offset)
	binary.BigEndian.PutUint64(p[24:], r.Length)
	return ExtReplySize
}

// ReplySize is the size of the header that begins with the four bytes in p.
func ReplySize(p []byte, extended bool) (int, error) {
	magic := binary.BigEndian.Uint32(p)
	switch {
	case magic == simpleMagic && !extended:
		return SimpleReplySize, nil
	case magic == structuredMagic && !extended:
		return StructuredReplySize, nil
	case magic == extReplyMagic && extended:
		return ExtReplySize, nil
	}
	return 0, fmt.Errorf("%w: reply with magic %#x", ErrProtocol, magic)
}

// ParseReply reads a reply's header from p, of the size that ReplySize says. A
// payload that no chunk may have is an error.
func ParseReply(p []byte) (Reply, error) {
	r := Reply{Cookie: binary.BigEndian.Uint64(p[8:])}
	switch magic := binary.BigEndian.Uint32(p); magic {
	case simpleMagic:
		r.Simple, r.Errno = true, Errno(binary.BigEndian.Uint32(p[4:]))
		return r, nil
	case structuredMagic:
		r.Length = uint64(binary.BigEndian.Uint32(p[16:]))
	case extReplyMagic:
		r.Offset, r.Length = binary.BigEndian.Uint64(p[16:]), binary.BigEndian.Uint64(p[24:])
	default:
		return r, fmt.Errorf("%w: reply with magic %#x", ErrProtocol, magic)
	}
	r.Flags = binary.BigEndian.Uint16(p[4:])
	r.Chunk = Chunk(binary.BigEndian.Uint16(p[6:]))
	return r, r.check()
}

// check verifies that the payload has a length that its type allows.
func (r *Reply) check() error {
	least, most := uint64(0), uint64(MaxPayload)
	switch r.Chunk {
	case ChunkNone:
		most = 0
		if r.Flags&FlagDone == 0 {
			return fmt.Errorf("%w: an empty chunk that is not the last", ErrProtocol)
		}
	case ChunkOffsetData:
		least = 9
	case ChunkOffsetHole:
		least, most = 12, 12
	case ChunkBlockStatus:
		least = 4 + 8
		if (r.Length-4)%8 != 0 {
			least = MaxPayload + 1
		}
	case ChunkBlockStatusExt:
		least = 8 + 16
		if (r.Length-8)%16 != 0 {
			least = MaxPayload + 1
		}
	case ChunkError:
		least = 6
		most = 6 + MaxString
	case ChunkErrorOffset:
		least, most = 14, 14+MaxString
	}
	if r.Length < least || r.Length > most {
		return fmt.Errorf("%w: a chunk of type %d with %d bytes", ErrProtocol, r.Chunk, r.Length)
	}
	return nil
}
