package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol: the other side broke the protocol in a way after which nothing
// that it sends can be understood. The connection must be closed.
var ErrProtocol = errors.New("nbd: protocol error")

// A Request is a command on its way to the server.
type Request struct {
	Flags   Flags
	Command Command
	Cookie  uint64 // the reply bears it
	Offset  uint64
	// Length of the effect, bytes. With a payload that is the payload's length,
	// but for a block status with FlagPayloadLen.
	Length uint64
}

// Payload is how many bytes follow the request's header.
func (r *Request) Payload(extended bool) uint64 {
	if r.Command == CmdWrite || extended && r.Flags&FlagPayloadLen != 0 {
		return r.Length
	}
	return 0
}

// PutRequest writes the request's header to p, which is of RequestSize, or of
// ExtRequestSize if extended.
func PutRequest(p []byte, r *Request, extended bool) {
	magic := requestMagic
	if extended {
		magic = extRequestMagic
	}
	binary.BigEndian.PutUint32(p, magic)
	binary.BigEndian.PutUint16(p[4:], uint16(r.Flags))
	binary.BigEndian.PutUint16(p[6:], uint16(r.Command))
	binary.BigEndian.PutUint64(p[8:], r.Cookie)
	binary.BigEndian.PutUint64(p[16:], r.Offset)
	if extended {
		binary.BigEndian.PutUint64(p[24:], r.Length)
	} else {
		binary.BigEndian.PutUint32(p[24:], uint32(r.Length))
	}
}

// ParseRequest reads a request's header from p, of the size that PutRequest says.
func ParseRequest(p []byte, extended bool) (Request, error) {
	want := requestMagic
	if extended {
		want = extRequestMagic
	}
	if magic := binary.BigEndian.Uint32(p); magic != want {
		return Request{}, fmt.Errorf("%w: request with magic %#x, want %#x", ErrProtocol, magic, want)
	}
	r := Request{
		Flags:   Flags(binary.BigEndian.Uint16(p[4:])),
		Command: Command(binary.BigEndian.Uint16(p[6:])),
		Cookie:  binary.BigEndian.Uint64(p[8:]),
		Offset:  binary.BigEndian.Uint64(p[16:]),
	}
	if extended {
		r.Length = binary.BigEndian.Uint64(p[24:])
	} else {
		r.Length = uint64(binary.BigEndian.Uint32(p[24:]))
	}
	return r, nil
}
