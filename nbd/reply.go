package nbd

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// simple adds the header of a simple reply.
func (r *request) simple(errno wire.Errno) {
	var head [wire.SimpleReplySize]byte
	wire.PutSimple(head[:], r.Cookie, errno)
	r.add(func(b []byte) []byte { return append(b, head[:]...) })
}

// add adds a part to the reply that is built in its own memory.
func (r *request) add(build func([]byte) []byte) {
	from := len(r.heads)
	r.heads = build(r.heads)
	r.parts = append(r.parts, r.heads[from:])
}

// chunk adds a chunk's header to the reply, and what build makes of its payload,
// which is of n bytes together with what the caller adds.
func (s *session) chunk(r *request, c wire.Chunk, n uint64, build func([]byte) []byte) {
	head := wire.Reply{Chunk: c, Cookie: r.Cookie, Offset: r.Offset, Length: n}
	from := len(r.heads)
	r.heads = build(wire.AppendChunk(r.heads, &head, s.extended))
	r.parts = append(r.parts, r.heads[from:])
	r.final = len(r.parts) - 1
}

func none(b []byte) []byte { return b }

// data adds a chunk of data.
func (s *session) data(r *request, off uint64, p []byte) {
	s.chunk(r, wire.ChunkOffsetData, wire.DataHeaderSize+uint64(len(p)), func(b []byte) []byte { return wire.AppendDataHeader(b, off) })
	r.parts = append(r.parts, p)
}

// hole adds a chunk of zeros.
func (s *session) hole(r *request, off, n uint64) {
	s.chunk(r, wire.ChunkOffsetHole, wire.HoleSize, func(b []byte) []byte { return wire.AppendHole(b, off, uint32(n)) })
}

// last marks the last chunk that was added: nothing can go wrong anymore.
func (s *session) last(r *request) { wire.MarkDone(r.parts[r.final]) }

// reply completes the reply to a request that has been served.
func (s *session) reply(r *request, err error) {
	s.c.counts.count(r, err)
	switch {
	case err != nil:
		s.fail(r, err)
	case len(r.parts) > 0: // it has data
	case !s.extended && (r.Command != wire.CmdRead || !s.structured):
		r.simple(0)
	default:
		s.chunk(r, wire.ChunkNone, 0, none)
		s.last(r)
	}
}

// fail replies with an error.
func (s *session) fail(r *request, err error) {
	errno := errnoOf(err, r.Command)
	if errno == wire.EIO || errno == wire.ENOMEM {
		s.c.log.Error("nbd: request failed", "export", s.export.name, "command", r.Command.String(),
			"offset", r.Offset, "length", r.Length, "error", err)
	}
	r.heads, r.parts = r.heads[:0], r.parts[:0]
	if !s.structured {
		r.simple(errno)
		return
	}
	text := textOf(err, errno)
	text = text[:min(len(text), wire.MaxString)]
	s.chunk(r, wire.ChunkError, uint64(6+len(text)), func(b []byte) []byte { return wire.AppendError(b, errno, text) })
	s.last(r)
}

// send sends the reply, and all that are there; or leaves that to who is sending
// already.
func (s *session) send(r *request) {
	s.mu.Lock()
	if r != nil {
		s.out = append(s.out, r)
	}
	if s.sending {
		s.mu.Unlock()
		return
	}
	s.sending = true
	for len(s.out) > 0 {
		batch := s.out
		s.out = s.spare[:0]
		s.mu.Unlock()
		s.write(batch)
		var cost int64
		for _, r := range batch {
			cost += s.clear(r)
		}
		s.c.s.memory.put(cost)
		s.mu.Lock()
		s.spare = batch
		s.free = append(s.free, batch...)
		s.flying -= len(batch)
		s.used -= cost
		s.room.Signal()
	}
	s.sending = false
	s.mu.Unlock()
}

// write writes replies. A client that does not take them is cut off.
func (s *session) write(batch []*request) {
	if s.gone.Load() {
		return
	}
	s.iov = s.iov[:0]
	for _, r := range batch {
		s.iov = append(s.iov, r.parts...)
	}
	write := s.writeFlat
	if s.raw {
		write = s.writeGathered
	}
	if err := write(); err != nil {
		s.gone.Store(true)
		s.c.log.Debug("nbd: a reply could not be sent", "error", err)
		s.c.cut() // the reader ends
	}
}

// touch moves the write deadline, if that is due.
func (s *session) touch() error {
	now, stall := s.clock(), s.c.s.opt.StallTimeout
	if s.touched != 0 && now-s.touched < stall/4 {
		return nil
	}
	s.touched = now
	return s.c.nc.SetWriteDeadline(time.Now().Add(stall))
}

func (s *session) writeGathered() error {
	s.gather = net.Buffers(s.iov)
	for {
		if err := s.touch(); err != nil {
			return err
		}
		n, err := s.gather.WriteTo(s.rw)
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		s.touched = 0
	}
}

// flatSize is how much is put together where gathering is not possible, bytes.
const flatSize = 64 << 10

func (s *session) writeFlat() error {
	if s.flat == nil {
		s.flat = make([]byte, 0, flatSize)
	}
	for _, p := range s.iov {
		for len(p) > 0 {
			n := min(len(p), cap(s.flat)-len(s.flat))
			s.flat = append(s.flat, p[:n]...)
			p = p[n:]
			if len(s.flat) < cap(s.flat) {
				continue
			}
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	return s.flush()
}

func (s *session) flush() error {
	if err := s.touch(); err != nil || len(s.flat) == 0 {
		return err
	}
	_, err := s.rw.Write(s.flat)
	s.flat = s.flat[:0]
	return err
}
