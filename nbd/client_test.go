package nbd_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// A client is as small as can be, and does whatever it is told to.
type client struct {
	t          testing.TB
	nc         net.Conn
	structured bool
	extended   bool
	info       wire.ExportInfo
	cookie     uint64
}

// patience bounds every wait of a client.
const patience = 20 * time.Second

// dial greets the server with the flags.
func (v *server) dial(t testing.TB, flags uint32) *client {
	t.Helper()
	nc, err := net.Dial(v.network, v.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, nc: nc}
	offered, err := wire.ParseGreeting(c.read(wire.GreetingSize))
	if err != nil || offered != wire.FlagFixedNewstyle|wire.FlagNoZeroes {
		t.Fatalf("greeting: %#x, %v", offered, err)
	}
	c.write(wire.AppendClientFlags(nil, flags))
	return c
}

const bothFlags = uint32(wire.FlagFixedNewstyle | wire.FlagNoZeroes)

// greet is dial with the flags of most clients.
func (v *server) greet(t testing.TB) *client { t.Helper(); return v.dial(t, bothFlags) }

// A mode is how a client wants replies.
type mode int

const (
	simple mode = iota
	structured
	extended
)

func (m mode) String() string { return [...]string{"simple", "structured", "extended"}[m] }

// open chooses an export with all that a mode can have.
func (v *server) open(t testing.TB, name string, m mode) *client {
	t.Helper()
	c := v.greet(t)
	c.agree(m)
	if m != simple {
		c.setContexts(name, wire.BaseAllocation, wire.AllocationDepth)
	}
	c.choose(name)
	return c
}

func (c *client) agree(m mode) {
	c.t.Helper()
	switch m {
	case structured:
		c.want(wire.OptStructuredReply, nil, wire.RepAck)
	case extended:
		c.want(wire.OptExtendedHeaders, nil, wire.RepAck)
	}
	c.structured, c.extended = m != simple, m == extended
}

func (c *client) write(p []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(p); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.nc, p); err != nil {
		c.t.Fatalf("read of %d bytes: %v", n, err)
	}
	return p
}

// gone fails unless the server has closed the connection without another word.
func (c *client) gone() {
	c.t.Helper()
	n, err := c.nc.Read(make([]byte, 1))
	var timeout net.Error
	if n > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("the connection is open still: %d bytes, %v", n, err)
	}
}

// An answer is one of those to an option.
type answer struct {
	reply wire.OptionReply
	data  []byte
}

// option sends an option and returns all answers; the last is the final one.
func (c *client) option(o wire.Option, data []byte) []answer {
	c.t.Helper()
	c.write(wire.AppendOption(nil, o, data))
	return c.answers(o)
}

func (c *client) answers(o wire.Option) []answer {
	c.t.Helper()
	var all []answer
	for {
		h, err := wire.ParseOptionReply(c.read(wire.OptionReplySize), o)
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, answer{h.Reply, c.read(int(h.Length))})
		if h.Reply == wire.RepAck || h.Reply.IsError() {
			return all
		}
	}
}

// want sends an option, and fails unless its final answer is the one given. It
// returns the others.
func (c *client) want(o wire.Option, data []byte, final wire.OptionReply) []answer {
	c.t.Helper()
	all := c.option(o, data)
	last := all[len(all)-1]
	if last.reply != final {
		c.t.Fatalf("option %d: %#x (%s), want %#x", o, last.reply, last.data, final)
	}
	return all[:len(all)-1]
}

func (c *client) setContexts(export string, queries ...string) []string {
	c.t.Helper()
	return names(c.t, c.want(wire.OptSetMetaContext, wire.AppendMeta(nil, &wire.MetaRequest{Name: export, Queries: queries}), wire.RepAck))
}

func names(t testing.TB, all []answer) []string {
	t.Helper()
	var out []string
	for _, a := range all {
		_, name, err := wire.ParseMetaContext(a.data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, name)
	}
	return out
}

// choose enters the transmission phase.
func (c *client) choose(name string) {
	c.t.Helper()
	g := wire.GoRequest{Name: name, Infos: []wire.Info{wire.InfoBlockSize}}
	for _, a := range c.want(wire.OptGo, wire.AppendGo(nil, &g), wire.RepAck) {
		if _, err := wire.ParseInfo(a.data, &c.info); err != nil {
			c.t.Fatal(err)
		}
	}
}

// secure begins TLS.
func (c *client) secure(config *tls.Config) {
	c.t.Helper()
	c.want(wire.OptStartTLS, nil, wire.RepAck)
	nc := tls.Client(c.nc, config)
	if err := nc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.nc = nc
}

// send sends a request, with a cookie of its own, and returns that.
func (c *client) send(r wire.Request, payload []byte) uint64 {
	c.t.Helper()
	c.cookie++
	r.Cookie = c.cookie
	if payload != nil {
		r.Length = uint64(len(payload))
	}
	if c.extended && r.Command == wire.CmdWrite {
		r.Flags |= wire.FlagPayloadLen
	}
	c.write(append(header(&r, c.extended), payload...))
	return r.Cookie
}

func header(r *wire.Request, ext bool) []byte {
	p := make([]byte, wire.ExtRequestSize)
	if !ext {
		p = p[:wire.RequestSize]
	}
	wire.PutRequest(p, r, ext)
	return p
}

// A result is a whole reply.
type result struct {
	cookie uint64
	errno  wire.Errno
	text   string
	data   []byte // of a read
	chunks []wire.Chunk
	status map[uint32][]wire.Descriptor
}

// reply reads a whole reply to a request for n bytes of data at off. Chunks of
// other replies must not come between.
func (c *client) reply(off, n uint64) result {
	c.t.Helper()
	res := result{status: map[uint32][]wire.Descriptor{}}
	data := bytes.Repeat([]byte{0xee}, int(n))
	covered := uint64(0)
	for {
		p := c.read(4)
		size, err := wire.ReplySize(p, c.extended)
		if err != nil {
			c.t.Fatal(err)
		}
		h, err := wire.ParseReply(append(p, c.read(size-4)...))
		if err != nil {
			c.t.Fatal(err)
		}
		if res.cookie != 0 && res.cookie != h.Cookie {
			c.t.Fatalf("a chunk of %d within the reply to %d", h.Cookie, res.cookie)
		}
		res.cookie = h.Cookie
		if h.Simple {
			if n > 0 && c.structured {
				c.t.Fatal("a simple reply to a read")
			}
			if res.errno = h.Errno; h.Errno == 0 {
				res.data = c.read(int(n))
			}
			return res
		}
		if c.extended && h.Offset != off {
			c.t.Fatalf("reply for offset %d, want %d", h.Offset, off)
		}
		covered += c.chunk(&res, &h, c.read(int(h.Length)), data, off)
		if h.Flags&wire.FlagDone != 0 {
			break
		}
	}
	if res.errno == 0 {
		if covered != n {
			c.t.Fatalf("chunks of %d bytes, want %d", covered, n)
		}
		res.data = data
	}
	return res
}

// chunk takes a chunk, and returns how much of the data it covers.
func (c *client) chunk(res *result, h *wire.Reply, p, data []byte, off uint64) uint64 {
	c.t.Helper()
	res.chunks = append(res.chunks, h.Chunk)
	switch h.Chunk {
	case wire.ChunkNone:
	case wire.ChunkOffsetData:
		copy(data[wire.ParseDataHeader(p)-off:], p[wire.DataHeaderSize:])
		return h.Length - wire.DataHeaderSize
	case wire.ChunkOffsetHole:
		at, length, err := wire.ParseHole(p)
		if err != nil {
			c.t.Fatal(err)
		}
		clear(data[at-off : at-off+uint64(length)])
		return uint64(length)
	case wire.ChunkBlockStatus, wire.ChunkBlockStatusExt:
		if (h.Chunk == wire.ChunkBlockStatusExt) != c.extended {
			c.t.Fatalf("chunk type %d", h.Chunk)
		}
		id, list, err := wire.ParseStatus(p, nil, c.extended)
		if err != nil || res.status[id] != nil {
			c.t.Fatalf("context %d: %v", id, err)
		}
		res.status[id] = list
	case wire.ChunkError:
		var err error
		if res.errno, res.text, _, err = wire.ParseError(h.Chunk, p); err != nil {
			c.t.Fatal(err)
		}
	default:
		c.t.Fatalf("chunk type %d", h.Chunk)
	}
	return 0
}

// call sends a request and reads its reply.
func (c *client) call(r wire.Request, payload []byte) result {
	c.t.Helper()
	cookie := c.send(r, payload)
	n := uint64(0)
	if r.Command == wire.CmdRead {
		n = r.Length
	}
	res := c.reply(r.Offset, n)
	if res.cookie != cookie {
		c.t.Fatalf("reply to %d, want %d", res.cookie, cookie)
	}
	return res
}

// fails calls, and wants an error.
func (c *client) fails(errno wire.Errno, r wire.Request, payload []byte) {
	c.t.Helper()
	if res := c.call(r, payload); res.errno != errno {
		c.t.Errorf("%v of %d bytes at %d with flags %#x: %v (%s), want %v", r.Command, r.Length, r.Offset, r.Flags, res.errno, res.text, errno)
	}
}

// works calls, and wants no error.
func (c *client) works(r wire.Request, payload []byte) result {
	c.t.Helper()
	res := c.call(r, payload)
	if res.errno != 0 {
		c.t.Fatalf("%v of %d bytes at %d with flags %#x: %v (%s)", r.Command, r.Length, r.Offset, r.Flags, res.errno, res.text)
	}
	return res
}

func (c *client) readAt(off, n uint64) []byte {
	c.t.Helper()
	return c.works(wire.Request{Command: wire.CmdRead, Offset: off, Length: n}, nil).data
}

func (c *client) writeAt(p []byte, off uint64) {
	c.t.Helper()
	c.works(wire.Request{Command: wire.CmdWrite, Offset: off}, p)
}

// alive fails unless the connection serves requests still.
func (c *client) alive() {
	c.t.Helper()
	c.works(wire.Request{Command: wire.CmdFlush}, nil)
}

// A peeked connection has had its first bytes read already.
type peeked struct {
	net.Conn
	first []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.first) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.first)
	p.first = p.first[n:]
	return n, nil
}

// cookieIn is the cookie of the reply that begins with p.
func cookieIn(p []byte) uint64 { return binary.BigEndian.Uint64(p[8:]) }
