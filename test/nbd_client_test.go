package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// An nbdClient speaks the protocol itself, and so can ask for what no tool asks
// for: 64-bit headers, and what is wrong. It is not safe for concurrent use.
type nbdClient struct {
	conn       net.Conn
	structured bool
	extended   bool
	contexts   map[uint32]string // agreed on, by identifier
	info       wire.ExportInfo

	cookie  uint64
	pending map[uint64]*nbdReply
}

// An nbdReply is the whole of what a request was answered.
type nbdReply struct {
	cookie uint64
	off    uint64 // of the request
	errno  wire.Errno
	text   string
	data   []byte // of a read
	status map[uint32][]wire.Descriptor

	covered int // bytes of data that came
}

// dialNBD connects to an NBD URI of the server and shakes hands. The connection
// ends with the test.
func dialNBD(t testing.TB, uri string) *nbdClient {
	t.Helper()
	c, err := tryDialNBD(uri)
	must(t, err)
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func tryDialNBD(uri string) (*nbdClient, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	network, address := "tcp", u.Host
	if socket := u.Query().Get("socket"); socket != "" {
		network, address = "unix", socket
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, pending: map[uint64]*nbdReply{}, contexts: map[uint32]string{}}
	if err := c.greet(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *nbdClient) greet() error {
	_ = c.conn.SetDeadline(time.Now().Add(60 * time.Second)) // nothing takes that long
	p, err := c.read(wire.GreetingSize)
	if err != nil {
		return err
	}
	flags, err := wire.ParseGreeting(p)
	if err != nil {
		return err
	}
	if flags != wire.FlagFixedNewstyle|wire.FlagNoZeroes {
		return fmt.Errorf("handshake flags %#x", flags)
	}
	return c.write(wire.AppendClientFlags(nil, uint32(flags)))
}

func (c *nbdClient) read(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(c.conn, p)
	return p, err
}

func (c *nbdClient) write(p []byte) error {
	_, err := c.conn.Write(p)
	return err
}

// An optionAnswer is one answer to an option.
type optionAnswer struct {
	reply wire.OptionReply
	data  []byte
}

// option sends one and returns all answers; the last is an ACK or an error.
func (c *nbdClient) option(o wire.Option, data []byte) ([]optionAnswer, error) {
	if err := c.write(wire.AppendOption(nil, o, data)); err != nil {
		return nil, err
	}
	var all []optionAnswer
	for {
		p, err := c.read(wire.OptionReplySize)
		if err != nil {
			return all, err
		}
		h, err := wire.ParseOptionReply(p, o)
		if err != nil {
			return all, err
		}
		if p, err = c.read(int(h.Length)); err != nil {
			return all, err
		}
		all = append(all, optionAnswer{h.Reply, p})
		if h.Reply == wire.RepAck || h.Reply.IsError() {
			return all, nil
		}
	}
}

// last is the type of the last answer to an option.
func (c *nbdClient) last(t testing.TB, o wire.Option, data []byte) wire.OptionReply {
	t.Helper()
	all, err := c.option(o, data)
	must(t, err)
	return all[len(all)-1].reply
}

// open chooses an export, with structured replies and all contexts, and with
// extended headers if those are wanted.
func (c *nbdClient) open(name string, extended bool) error {
	o := wire.OptStructuredReply
	if extended {
		o = wire.OptExtendedHeaders
	}
	if err := c.agree(o, nil, nil); err != nil {
		return err
	}
	c.structured, c.extended = true, extended
	meta := wire.AppendMeta(nil, &wire.MetaRequest{Name: name, Queries: []string{wire.BaseAllocation, wire.AllocationDepth}})
	err := c.agree(wire.OptSetMetaContext, meta, func(a optionAnswer) error {
		id, text, err := wire.ParseMetaContext(a.data)
		c.contexts[id] = text
		return err
	})
	if err != nil {
		return err
	}
	return c.agree(wire.OptGo, wire.AppendGo(nil, &wire.GoRequest{Name: name}), func(a optionAnswer) error {
		_, err := wire.ParseInfo(a.data, &c.info)
		return err
	})
}

// agree wants an option to be acknowledged.
func (c *nbdClient) agree(o wire.Option, data []byte, each func(optionAnswer) error) error {
	all, err := c.option(o, data)
	if err != nil {
		return err
	}
	end := all[len(all)-1]
	if end.reply != wire.RepAck {
		return fmt.Errorf("option %d is refused with %#x: %s", o, uint32(end.reply), end.data)
	}
	for _, a := range all[:len(all)-1] {
		if err := each(a); err != nil {
			return err
		}
	}
	return nil
}

// send sends a request and does not wait for its reply.
func (c *nbdClient) send(cmd wire.Command, flags wire.Flags, off, length int64, payload []byte) error {
	if cmd == wire.CmdWrite {
		length = int64(len(payload))
		if c.extended {
			flags |= wire.FlagPayloadLen
		}
	}
	c.cookie++
	size := wire.RequestSize
	if c.extended {
		size = wire.ExtRequestSize
	}
	p := make([]byte, size, size+len(payload))
	wire.PutRequest(p, &wire.Request{Flags: flags, Command: cmd, Cookie: c.cookie, Offset: uint64(off), Length: uint64(length)}, c.extended)
	r := &nbdReply{cookie: c.cookie, off: uint64(off), status: map[uint32][]wire.Descriptor{}}
	if cmd == wire.CmdRead {
		r.data = bytes.Repeat([]byte{0xa5}, int(min(length, 64*mib)))
	}
	c.pending[c.cookie] = r
	return c.write(append(p, payload...))
}

// errMidway: the stream ended in the middle of a message.
var errMidway = errors.New("in the middle of a message")

// receive returns the next reply that is whole.
func (c *nbdClient) receive() (*nbdReply, error) {
	for {
		p, err := c.read(4)
		if err != nil {
			return nil, err
		}
		r, done, err := c.part(p)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errMidway, err)
		}
		if done {
			delete(c.pending, r.cookie)
			return r, nil
		}
	}
}

// part takes one part of a reply, which begins with p.
func (c *nbdClient) part(p []byte) (r *nbdReply, done bool, err error) {
	size, err := wire.ReplySize(p, c.extended)
	if err != nil {
		return nil, false, err
	}
	rest, err := c.read(size - 4)
	if err != nil {
		return nil, false, err
	}
	h, err := wire.ParseReply(append(p, rest...))
	if err != nil {
		return nil, false, err
	}
	if r = c.pending[h.Cookie]; r == nil {
		return nil, false, fmt.Errorf("a reply to what was not asked: %+v", h)
	}
	done, err = c.chunk(r, h)
	return r, done, err
}

// chunk takes what follows a header.
func (c *nbdClient) chunk(r *nbdReply, h wire.Reply) (done bool, err error) {
	if h.Simple {
		r.errno = h.Errno
		if h.Errno != 0 || len(r.data) == 0 {
			return true, nil
		}
		if c.structured {
			return true, errors.New("a simple reply to a read after structured replies were agreed on")
		}
		r.covered = len(r.data)
		_, err := io.ReadFull(c.conn, r.data)
		return true, err
	}
	p, err := c.read(int(h.Length))
	if err != nil {
		return false, err
	}
	done = h.Flags&wire.FlagDone != 0
	switch h.Chunk {
	case wire.ChunkNone:
	case wire.ChunkOffsetData:
		return done, r.take(wire.ParseDataHeader(p), p[wire.DataHeaderSize:])
	case wire.ChunkOffsetHole:
		off, length, err := wire.ParseHole(p)
		if err != nil {
			return done, err
		}
		return done, r.take(off, make([]byte, length))
	case wire.ChunkBlockStatus, wire.ChunkBlockStatusExt:
		id, list, err := wire.ParseStatus(p, nil, c.extended)
		if r.status[id] != nil {
			return done, fmt.Errorf("two chunks for context %d", id)
		}
		r.status[id] = list
		return done, err
	default:
		if !h.Chunk.IsError() {
			return done, fmt.Errorf("a chunk of type %d", h.Chunk)
		}
		r.errno, r.text, _, err = wire.ParseError(h.Chunk, p)
	}
	return done, err
}

// take adds data to that of a read, at its offset in the image.
func (r *nbdReply) take(off uint64, p []byte) error {
	at := off - r.off
	if at > uint64(len(r.data)) || uint64(len(p)) > uint64(len(r.data))-at {
		return fmt.Errorf("%d bytes at %d, which were not asked for", len(p), off)
	}
	r.covered += copy(r.data[at:], p)
	return nil
}
