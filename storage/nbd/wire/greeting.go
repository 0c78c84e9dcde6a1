package wire

import (
	"encoding/binary"
	"fmt"
)

// Lengths of the first messages, bytes.
const (
	// GreetingSize is that of the server's first message.
	GreetingSize = 18
	// ClientFlagsSize is that of the client's answer.
	ClientFlagsSize = 4
	// ExportSize is that of the answer to OptExportName, without padding.
	ExportSize = 10
	// ExportPadding is how many zeros follow it unless both sides have
	// FlagNoZeroes.
	ExportPadding = 124
)

// AppendGreeting appends the server's first message.
func AppendGreeting(b []byte, flags uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, InitMagic)
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	return binary.BigEndian.AppendUint16(b, flags)
}

// ParseGreeting reads the server's first message from p, of GreetingSize. A
// server that negotiates nothing is an error.
func ParseGreeting(p []byte) (flags uint16, err error) {
	if magic := binary.BigEndian.Uint64(p); magic != InitMagic {
		return 0, fmt.Errorf("%w: a server that begins with %#x", ErrProtocol, magic)
	}
	switch magic := binary.BigEndian.Uint64(p[8:]); magic {
	case OptionMagic:
		return binary.BigEndian.Uint16(p[16:]), nil
	case oldMagic:
		return 0, fmt.Errorf("%w: a server of the old style, which negotiates nothing", ErrProtocol)
	default:
		return 0, fmt.Errorf("%w: a server with magic %#x", ErrProtocol, magic)
	}
}

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(b []byte, flags uint32) []byte {
	return binary.BigEndian.AppendUint32(b, flags)
}

// ParseClientFlags reads the client's answer from p, of ClientFlagsSize. Flags
// that the server did not offer are an error.
func ParseClientFlags(p []byte, offered uint16) (uint16, error) {
	flags := binary.BigEndian.Uint32(p)
	if flags&^uint32(offered) != 0 {
		return 0, fmt.Errorf("%w: client flags %#x, offered were %#x", ErrProtocol, flags, offered)
	}
	return uint16(flags), nil
}

// AppendExport appends the answer to OptExportName, padded with zeros unless both
// sides have FlagNoZeroes.
func AppendExport(b []byte, size uint64, flags Transmission, padded bool) []byte {
	b = binary.BigEndian.AppendUint64(b, size)
	b = binary.BigEndian.AppendUint16(b, uint16(flags))
	if padded {
		b = append(b, make([]byte, ExportPadding)...)
	}
	return b
}

// ParseExport reads the answer to OptExportName from p, of ExportSize.
func ParseExport(p []byte) ExportInfo {
	return ExportInfo{Size: binary.BigEndian.Uint64(p), Flags: Transmission(binary.BigEndian.Uint16(p[8:]))}
}
