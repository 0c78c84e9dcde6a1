package nbd

import (
	"errors"
	"os"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	// mostErrors bounds the errors in one reply.
	mostErrors = 1024
	// mostStatus bounds a block status, bytes.
	mostStatus = 16 * (wire.MaxDescriptors + 1)
)

// incoming is the connection as its receiver's buffer reads it: it waits for as long
// as the server may take.
type incoming struct{ c *conn }

func (i incoming) Read(p []byte) (int, error) {
	c := i.c
	begin := time.Now()
	for {
		if err := c.nc.SetReadDeadline(begin.Add(c.timeout)); err != nil {
			return 0, err
		}
		n, err := c.nc.Read(p)
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		late, since := c.overdue(begin)
		if late {
			return 0, err
		}
		begin = since
	}
}

// receive reads replies until the connection dies.
func (c *conn) receive() error {
	for {
		if err := c.reply(); err != nil {
			return err
		}
	}
}

// reply reads a simple reply, or one chunk.
func (c *conn) reply() error {
	p, err := c.r.Peek(4)
	if err != nil {
		return err
	}
	size, err := wire.ReplySize(p, c.extended)
	if err != nil {
		return err
	}
	if p, err = c.r.Peek(size); err != nil {
		return err
	}
	h, err := wire.ParseReply(p)
	if err != nil {
		return err
	}
	if _, err := c.r.Discard(size); err != nil {
		return err
	}
	r, err := c.take(h.Cookie)
	switch {
	case err != nil:
		return err
	case h.Simple:
		return c.simple(r, &h)
	case !c.structured:
		return protocolError("a structured reply, which was not negotiated")
	case c.extended && h.Offset != r.Offset:
		return protocolError("a reply about offset %d to a request at %d", h.Offset, r.Offset)
	}
	if err := c.chunk(r, &h); err != nil {
		return err
	}
	if h.Flags&wire.FlagDone == 0 {
		return nil
	}
	return c.last(r)
}

func (c *conn) simple(r *request, h *wire.Reply) error {
	read := r.Command == wire.CmdRead
	switch {
	case read && c.structured || r.Command == wire.CmdBlockStatus && h.Errno == 0:
		return protocolError("a simple reply to %v", r.Command)
	case h.Errno != 0:
		r.err = c.refused(r, h.Errno)
	case read:
		if err := c.fill(r, 0, r.Length); err != nil {
			return err
		}
	}
	return c.finish(r)
}

// refused is what an errno means. A server that is shutting down gets nothing more.
func (c *conn) refused(r *request, e wire.Errno) error {
	err := answerError(r.Command, e)
	if e == wire.ESHUTDOWN {
		c.drain(err)
		return &lostError{cause: err, again: true}
	}
	return err
}

func (c *conn) chunk(r *request, h *wire.Reply) error {
	switch {
	case h.Chunk == wire.ChunkNone:
		return nil
	case h.Chunk.IsError():
		return c.failure(r, h)
	case r.Command == wire.CmdRead && h.Chunk == wire.ChunkOffsetData:
		p, err := c.r.Peek(wire.DataHeaderSize)
		if err != nil {
			return err
		}
		n := h.Length - wire.DataHeaderSize
		at, err := r.cover(wire.ParseDataHeader(p), n)
		if err != nil {
			return err
		}
		if _, err := c.r.Discard(wire.DataHeaderSize); err != nil {
			return err
		}
		return c.fill(r, at, n)
	case r.Command == wire.CmdRead && h.Chunk == wire.ChunkOffsetHole:
		return c.hole(r)
	case r.Command == wire.CmdBlockStatus && h.Chunk == statusChunk(c.extended):
		return c.blockStatus(r, h.Length)
	}
	return protocolError("a chunk of type %d in answer to %v", h.Chunk, r.Command)
}

func statusChunk(extended bool) wire.Chunk {
	if extended {
		return wire.ChunkBlockStatusExt
	}
	return wire.ChunkBlockStatus
}

// fill reads n bytes to where they belong.
func (c *conn) fill(r *request, at, n uint64) error {
	for n > 0 {
		if _, err := c.r.Peek(1); err != nil {
			return err
		}
		p, err := c.r.Peek(int(min(n, uint64(c.r.Buffered()))))
		if err != nil {
			return err
		}
		r.put(p, at)
		if _, err := c.r.Discard(len(p)); err != nil {
			return err
		}
		at, n = at+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

func (c *conn) hole(r *request) error {
	p, err := c.r.Peek(wire.HoleSize)
	if err != nil {
		return err
	}
	off, n, err := wire.ParseHole(p)
	if err != nil {
		return err
	}
	at, err := r.cover(off, uint64(n))
	if err != nil {
		return err
	}
	r.wipe(at, uint64(n))
	_, err = c.r.Discard(wire.HoleSize)
	return err
}

// failure reads a chunk that is an error. The first one counts.
func (c *conn) failure(r *request, h *wire.Reply) error {
	if r.errors++; r.errors > mostErrors || h.Length > ioSize {
		return protocolError("error %d of one reply, in %d bytes", r.errors, h.Length)
	}
	p, err := c.r.Peek(int(h.Length))
	if err != nil {
		return err
	}
	e, _, _, err := wire.ParseError(h.Chunk, p)
	if err != nil {
		return err
	}
	if r.err == nil {
		r.err = c.refused(r, e)
	}
	_, err = c.r.Discard(len(p))
	return err
}

// blockStatus reads descriptors, of which wire bounds the number.
func (c *conn) blockStatus(r *request, n uint64) error {
	if len(r.status) > 0 || n > mostStatus {
		return protocolError("a second block status, or one of %d bytes", n)
	}
	p := c.scratch[:0]
	for uint64(len(p)) < n { // memory is for what has arrived
		if _, err := c.r.Peek(1); err != nil {
			return err
		}
		part, err := c.r.Peek(int(min(n-uint64(len(p)), uint64(c.r.Buffered()))))
		if err != nil {
			return err
		}
		p = append(p, part...)
		if _, err := c.r.Discard(len(part)); err != nil {
			return err
		}
	}
	if c.scratch = p; cap(p) > 4*ioSize {
		c.scratch = nil
	}
	id, status, err := wire.ParseStatus(p, r.status, c.extended)
	if err == nil && id != c.context {
		err = protocolError("a block status of context %d", id)
	}
	r.status = status
	left := c.export.told.Size - r.Offset
	for _, d := range status {
		if err == nil && d.Length > left {
			err = protocolError("a block status at %d goes past the end of the export", r.Offset)
		}
		left -= d.Length
	}
	return err
}

// last checks that a reply is complete.
func (c *conn) last(r *request) error {
	if r.err == nil {
		switch {
		case r.Command == wire.CmdRead && !r.whole():
			return protocolError("a read of %d bytes at %d without some of them", r.Length, r.Offset)
		case r.Command == wire.CmdBlockStatus && len(r.status) == 0:
			return protocolError("a block status without any")
		}
	}
	return c.finish(r)
}
