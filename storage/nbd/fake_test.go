package nbd_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// A fake is a server that does as it is told. Its fields are changed through set
// while it serves.
type fake struct {
	t    testing.TB
	uri  string
	path string

	mu         sync.Mutex
	content    []byte
	info       wire.ExportInfo
	simple     bool // no structured replies
	extended   bool
	unmapped   bool // no base:allocation
	old        bool // only OptExportName
	refuse     bool // drop whoever connects
	hook       func(p *peer, r wire.Request, payload []byte) (handled bool)
	early      func(p *peer, r wire.Request) // before the payload is read
	conns      map[net.Conn]bool
	connected  int
	seen       []wire.Request
	greetFlags uint16

	l  net.Listener
	wg sync.WaitGroup
}

// usual is what the fake can.
const usual = wire.HasFlags | wire.SendFlush | wire.SendTrim | wire.SendWriteZeroes | wire.CanMultiConn

func newFake(t testing.TB, content []byte, set ...func(*fake)) *fake {
	t.Helper()
	s := &fake{
		t: t, content: content, conns: map[net.Conn]bool{}, greetFlags: wire.FlagFixedNewstyle | wire.FlagNoZeroes,
		info: wire.ExportInfo{Size: uint64(len(content)), Flags: usual},
	}
	s.path = filepath.Join(directory(t), "s")
	s.uri = unixURI(s.path, "disk")
	for _, set := range set {
		set(s)
	}
	s.listen()
	t.Cleanup(s.stop)
	return s
}

func (s *fake) listen() {
	l, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.l = l
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
}

// stop drops everything, and waits.
func (s *fake) stop() {
	_ = s.l.Close()
	s.drop()
	s.wg.Wait()
}

// drop drops all connections.
func (s *fake) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *fake) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *fake) on(hook func(p *peer, r wire.Request, payload []byte) bool) {
	s.set(func() { s.hook = hook })
}

// count is how many requests of a command have arrived.
func (s *fake) count(c wire.Command) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.seen {
		if r.Command == c {
			n++
		}
	}
	return n
}

// connections is how many there have been.
func (s *fake) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected
}

// A peer is one connection.
type peer struct {
	*fake
	c        net.Conn
	extended bool
	simple   bool
	wmu      sync.Mutex
	number   int // of the connection, from 1
}

func (s *fake) serve(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	s.connected++
	p := &peer{fake: s, c: c, number: s.connected}
	refuse := s.refuse
	s.conns[c] = true
	s.mu.Unlock()
	defer s.set(func() { delete(s.conns, c) })
	if refuse || !p.handshake() {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		size := wire.RequestSize
		if p.extended {
			size = wire.ExtRequestSize
		}
		head := make([]byte, size)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		r, err := wire.ParseRequest(head, p.extended)
		if err != nil {
			s.t.Errorf("the client sends %v", err)
			return
		}
		s.mu.Lock()
		early := s.early
		s.mu.Unlock()
		if early != nil {
			early(p, r)
		}
		payload := make([]byte, r.Payload(p.extended))
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, r)
		hook := s.hook
		s.mu.Unlock()
		if r.Command == wire.CmdDisc {
			return
		}
		if hook == nil || !hook(p, r, payload) {
			p.answer(r, payload)
		}
	}
}

func (p *peer) write(b []byte) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	_, _ = p.c.Write(b) // the client may have gone
}

// chunk sends one, in the form that was negotiated.
func (p *peer) chunk(r wire.Request, kind wire.Chunk, flags uint16, payload []byte) {
	h := wire.Reply{Chunk: kind, Flags: flags, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(len(payload))}
	p.write(append(wire.AppendChunk(nil, &h, p.extended), payload...))
}

func (p *peer) data(r wire.Request, flags uint16, off uint64, b []byte) {
	p.chunk(r, wire.ChunkOffsetData, flags, append(wire.AppendDataHeader(nil, off), b...))
}

func (p *peer) hole(r wire.Request, flags uint16, off uint64, n uint32) {
	p.chunk(r, wire.ChunkOffsetHole, flags, wire.AppendHole(nil, off, n))
}

func (p *peer) fail(r wire.Request, e wire.Errno) {
	if p.simple {
		p.done(r, e)
		return
	}
	p.chunk(r, wire.ChunkError, wire.FlagDone, wire.AppendError(nil, e, "secret text"))
}

// done sends a simple reply, or an empty one.
func (p *peer) done(r wire.Request, e wire.Errno) {
	if !p.extended {
		b := make([]byte, wire.SimpleReplySize)
		wire.PutSimple(b, r.Cookie, e)
		p.write(b)
		return
	}
	p.chunk(r, wire.ChunkNone, wire.FlagDone, nil)
}

func (p *peer) status(r wire.Request, flags uint16, all ...wire.Descriptor) {
	kind := wire.ChunkBlockStatus
	if p.extended {
		kind = wire.ChunkBlockStatusExt
	}
	b := make([]byte, wire.StatusHeaderSize(p.extended))
	wire.PutStatusHeader(b, 7, len(all), p.extended)
	for _, d := range all {
		b = wire.AppendDescriptor(b, d, p.extended)
	}
	p.chunk(r, kind, flags, b)
}

// answer does what a request wants.
func (p *peer) answer(r wire.Request, payload []byte) {
	p.mu.Lock()
	var part []byte
	if r.Offset+r.Length <= uint64(len(p.content)) {
		part = p.content[r.Offset : r.Offset+r.Length]
	}
	switch r.Command {
	case wire.CmdWrite:
		copy(part, payload)
	case wire.CmdWriteZeroes:
		clear(part)
	}
	part = slices.Clone(part)
	p.mu.Unlock()
	switch {
	case r.Command == wire.CmdBlockStatus:
		p.status(r, wire.FlagDone, wire.Descriptor{Length: r.Length})
	case r.Command != wire.CmdRead:
		p.done(r, 0)
	case p.simple:
		b := make([]byte, wire.SimpleReplySize)
		wire.PutSimple(b, r.Cookie, 0)
		p.write(append(b, part...))
	default:
		p.data(r, wire.FlagDone, r.Offset, part)
	}
}

// handshake negotiates, and reports whether there is something to go on with.
func (p *peer) handshake() bool {
	p.mu.Lock()
	info, greet := p.info, p.greetFlags
	noStructured, canExtend, unmapped, old := p.fake.simple, p.fake.extended, p.unmapped, p.old
	p.mu.Unlock()
	p.simple = true
	p.write(wire.AppendGreeting(nil, greet))
	b := make([]byte, wire.ClientFlagsSize)
	if _, err := io.ReadFull(p.c, b); err != nil {
		return false
	}
	flags, err := wire.ParseClientFlags(b, greet)
	if err != nil {
		p.t.Error(err)
		return false
	}
	for {
		o, data, ok := p.option()
		if !ok {
			return false
		}
		reply := func(r wire.OptionReply, b []byte) { p.write(wire.AppendOptionReply(nil, o, r, b)) }
		switch {
		case o == wire.OptExportName:
			if string(data) != "disk" {
				return false
			}
			p.write(wire.AppendExport(nil, info.Size, info.Flags, flags&wire.FlagNoZeroes == 0))
			return true
		case o == wire.OptAbort:
			return false
		case old:
			reply(wire.RepErrUnsup, nil)
		case o == wire.OptStructuredReply && !noStructured:
			p.simple = false
			reply(wire.RepAck, nil)
		case o == wire.OptExtendedHeaders && canExtend:
			p.simple, p.extended = false, true
			reply(wire.RepAck, nil)
		case o == wire.OptSetMetaContext:
			if m, ok := wire.ParseMeta(data); !ok || len(m.Queries) != 1 {
				p.t.Errorf("the client asks for %v", m)
			}
			if !unmapped {
				reply(wire.RepMetaContext, wire.AppendMetaContext(nil, 7, wire.BaseAllocation))
			}
			reply(wire.RepAck, nil)
		case o == wire.OptGo:
			if g, ok := wire.ParseGo(data); !ok || g.Name != "disk" {
				reply(wire.RepErrUnknown, []byte("no such export: secret"))
				continue
			}
			reply(wire.RepInfo, binary.BigEndian.AppendUint16(nil, 77)) // what nobody knows
			reply(wire.RepInfo, wire.AppendInfoExport(nil, info.Size, info.Flags))
			if info.Minimum|info.Preferred|info.Maximum != 0 {
				reply(wire.RepInfo, wire.AppendInfoBlockSize(nil, info.Minimum, info.Preferred, info.Maximum))
			}
			reply(wire.RepAck, nil)
			return true
		default:
			reply(wire.RepErrUnsup, nil)
		}
	}
}

func (p *peer) option() (wire.Option, []byte, bool) {
	head := make([]byte, wire.OptionSize)
	if _, err := io.ReadFull(p.c, head); err != nil {
		return 0, nil, false
	}
	h, err := wire.ParseOption(head)
	if err != nil {
		p.t.Error(err)
		return 0, nil, false
	}
	data := make([]byte, h.Length)
	_, err = io.ReadFull(p.c, data)
	return h.Option, data, err == nil
}
