package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// An OptionHeader is the header of an option, or of an answer to one.
type OptionHeader struct {
	Option Option
	Reply  OptionReply // of an answer
	Length uint32      // of the data that follows, bytes
}

// Lengths of headers, bytes.
const (
	OptionSize      = 16
	OptionReplySize = 20
)

// AppendOption appends an option with its data, which is no longer than
// MaxOption.
func AppendOption(b []byte, o Option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOption reads an option's header from p, of OptionSize.
func ParseOption(p []byte) (OptionHeader, error) {
	if magic := binary.BigEndian.Uint64(p); magic != OptionMagic {
		return OptionHeader{}, fmt.Errorf("%w: option with magic %#x", ErrProtocol, magic)
	}
	return OptionHeader{Option: Option(binary.BigEndian.Uint32(p[8:])), Length: binary.BigEndian.Uint32(p[12:])}, nil
}

// AppendOptionReply appends an answer with its data.
func AppendOptionReply(b []byte, o Option, r OptionReply, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, replyMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOptionReply reads the header of an answer to the option from p, of
// OptionReplySize. Data of more than MaxOption is an error.
func ParseOptionReply(p []byte, to Option) (OptionHeader, error) {
	h := OptionHeader{
		Option: Option(binary.BigEndian.Uint32(p[8:])),
		Reply:  OptionReply(binary.BigEndian.Uint32(p[12:])),
		Length: binary.BigEndian.Uint32(p[16:]),
	}
	switch magic := binary.BigEndian.Uint64(p); {
	case magic != replyMagic:
		return h, fmt.Errorf("%w: answer to an option with magic %#x", ErrProtocol, magic)
	case h.Option != to:
		return h, fmt.Errorf("%w: answer to option %d, want %d", ErrProtocol, h.Option, to)
	case h.Length > MaxOption:
		return h, fmt.Errorf("%w: answer of %d bytes to an option, at most %d", ErrProtocol, h.Length, MaxOption)
	}
	return h, nil
}

// A reader takes apart the data of a message.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) bytes(n uint64) []byte {
	if r.bad || n > uint64(len(r.p)) {
		r.bad = true
		return nil
	}
	b := r.p[:n]
	r.p = r.p[n:]
	return b
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text is a string with its length before it.
func (r *reader) text() string {
	n := r.uint32()
	s := r.bytes(uint64(n))
	if !ValidString(s) {
		r.bad = true
	}
	return string(s)
}

// end reports whether all was as it should be, and nothing is left over.
func (r *reader) end() bool { return !r.bad && len(r.p) == 0 }

// ValidString reports whether s may be a name or query: UTF-8 without NUL, of at
// most MaxString bytes.
func ValidString(s []byte) bool {
	if len(s) > MaxString || !utf8.Valid(s) {
		return false
	}
	for _, c := range s {
		if c == 0 {
			return false
		}
	}
	return true
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// A GoRequest is the data of OptInfo and OptGo.
type GoRequest struct {
	Name  string
	Infos []Info // of interest; the client may get others, and not get these
}

// AppendGo appends the data of OptInfo or OptGo.
func AppendGo(b []byte, r *GoRequest) []byte {
	b = appendText(b, r.Name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Infos)))
	for _, i := range r.Infos {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// ParseGo reads the data of OptInfo or OptGo. What is malformed is not ok: the
// client is told so, and may go on.
func ParseGo(p []byte) (g GoRequest, ok bool) {
	r := reader{p: p}
	g.Name = r.text()
	for range r.uint16() {
		if g.Infos = append(g.Infos, Info(r.uint16())); r.bad {
			return g, false
		}
	}
	return g, r.end()
}

// A MetaRequest is the data of OptListMetaContext and OptSetMetaContext.
type MetaRequest struct {
	Name    string // of the export
	Queries []string
}

// AppendMeta appends the data of OptListMetaContext or OptSetMetaContext.
func AppendMeta(b []byte, m *MetaRequest) []byte {
	b = appendText(b, m.Name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Queries)))
	for _, q := range m.Queries {
		b = appendText(b, q)
	}
	return b
}

// ParseMeta reads the data of OptListMetaContext or OptSetMetaContext, as ParseGo
// does.
func ParseMeta(p []byte) (m MetaRequest, ok bool) {
	r := reader{p: p}
	m.Name = r.text()
	for range r.uint32() {
		if m.Queries = append(m.Queries, r.text()); r.bad { // each takes four bytes of p at least
			return m, false
		}
	}
	return m, r.end()
}

// AppendMetaContext appends the data of RepMetaContext.
func AppendMetaContext(b []byte, id uint32, name string) []byte {
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, name...)
}

// ParseMetaContext reads the data of RepMetaContext.
func ParseMetaContext(p []byte) (id uint32, name string, err error) {
	r := reader{p: p}
	id = r.uint32()
	if r.bad || !ValidString(r.p) {
		return 0, "", fmt.Errorf("%w: a metadata context of %d bytes", ErrProtocol, len(p))
	}
	return id, string(r.p), nil
}

// AppendServer appends the data of RepServer: one export, with what is told of
// it.
func AppendServer(b []byte, name, description string) []byte {
	return append(appendText(b, name), description...)
}

// ParseServer reads the data of RepServer.
func ParseServer(p []byte) (name, description string, err error) {
	r := reader{p: p}
	name = r.text()
	if r.bad {
		return "", "", fmt.Errorf("%w: an export's name in %d bytes", ErrProtocol, len(p))
	}
	return name, string(r.p), nil
}

// An ExportInfo is what a server says of an export.
type ExportInfo struct {
	Size  uint64
	Flags Transmission
	// The block sizes, bytes; all 0 where the server does not say.
	Minimum, Preferred, Maximum uint32
}

// AppendInfoExport appends the data of RepInfo with InfoExport.
func AppendInfoExport(b []byte, size uint64, flags Transmission) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(InfoExport))
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, uint16(flags))
}

// AppendInfoBlockSize appends the data of RepInfo with InfoBlockSize.
func AppendInfoBlockSize(b []byte, minimum, preferred, maximum uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(InfoBlockSize))
	b = binary.BigEndian.AppendUint32(b, minimum)
	b = binary.BigEndian.AppendUint32(b, preferred)
	return binary.BigEndian.AppendUint32(b, maximum)
}

// AppendInfoText appends the data of RepInfo with InfoName or InfoDescription.
func AppendInfoText(b []byte, i Info, text string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(i))
	return append(b, text...)
}

// ParseInfo reads the data of RepInfo into e. Kinds that it does not know are
// ignored.
func ParseInfo(p []byte, e *ExportInfo) (Info, error) {
	r := reader{p: p}
	kind := Info(r.uint16())
	switch {
	case r.bad:
	case kind == InfoExport:
		e.Size, e.Flags = r.uint64(), Transmission(r.uint16())
	case kind == InfoBlockSize:
		e.Minimum, e.Preferred, e.Maximum = r.uint32(), r.uint32(), r.uint32()
	default:
		return kind, nil
	}
	if !r.end() {
		return kind, fmt.Errorf("%w: information of kind %d in %d bytes", ErrProtocol, kind, len(p))
	}
	return kind, nil
}
