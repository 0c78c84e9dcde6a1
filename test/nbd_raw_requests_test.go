package test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDRawMagic: what is no request ends the connection.
func TestNBDRawMagic(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		for _, head := range [][]byte{be32(0), be32(0x25609514), be32(0x67446698), be32(0x668e33ef), []byte("GET / HTTP/1.1\r\n")} {
			c := enter(t, s.nbd[0], "raw", d)
			c.put(append(slices.Clone(head), make([]byte, 64)...))
			c.gone()
		}
		c := enter(t, s.nbd[0], "raw", d) // the other kind of headers
		c.extended = !c.extended
		c.put(append(c.header(wire.Request{Command: wire.CmdFlush}), make([]byte, 64)...))
		c.gone()
	})
}

// TestNBDRawUnknownCommands are EINVAL, whatever their range is.
func TestNBDRawUnknownCommands(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		c := enter(t, s.nbd[1], "raw", d)
		for _, cmd := range []wire.Command{8, 9, 100, 1 << 15, 1<<16 - 1} {
			for _, length := range []uint64{0, 1, 4096, 1<<32 - 1} {
				c.call(wire.Request{Command: cmd, Length: length}, nil, wire.EINVAL)
				c.call(wire.Request{Command: cmd, Length: length, Offset: 1<<64 - 1, Flags: wire.FlagFUA}, nil, wire.EINVAL)
			}
		}
		c.alive()
	})
}

// TestNBDRawFlush: a range has no meaning there; it does no harm.
func TestNBDRawFlush(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		c := enter(t, s.nbd[1], "raw", d)
		c.call(wire.Request{Command: wire.CmdFlush, Offset: 512, Length: 512}, nil, wire.EINVAL, 0)
		c.call(wire.Request{Command: wire.CmdFlush, Offset: 1<<64 - 1, Length: 1<<32 - 1}, nil, wire.EINVAL, 0)
		c.call(wire.Request{Command: wire.CmdFlush}, nil, 0)
		c.alive()
	})
}

// TestNBDRawCookies come back as they are, also one that is used twice.
func TestNBDRawCookies(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		c := enter(t, s.nbd[1], "raw", d)
		for _, cookie := range []uint64{0, 1, 1 << 63, 1<<64 - 1, 0x2560951321e41c71} {
			for _, r := range []wire.Request{{Command: wire.CmdRead, Length: 512}, {Command: wire.CmdFlush}, {Command: 99}} {
				for range 2 {
					r.Cookie = cookie
					c.ask(r, nil)
					if got := c.answer(); got.cookie != cookie {
						t.Errorf("cookie %#x came back as %#x", cookie, got.cookie)
					}
				}
			}
		}
		c.put(append(c.header(wire.Request{Command: wire.CmdFlush, Cookie: 5}), c.header(wire.Request{Command: wire.CmdFlush, Cookie: 5})...))
		for range 2 {
			c.pending[5] = &nbdReply{cookie: 5}
			c.answer()
		}
		c.alive()
	})
}

// TestNBDRawPieces: a request may come in pieces of any size.
func TestNBDRawPieces(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		c := enter(t, s.nbd[0], "raw", d)
		r := wire.Request{Command: wire.CmdWrite, Cookie: 3, Length: 100, Offset: 8}
		if d == extendedHeaders {
			r.Flags = wire.FlagPayloadLen
		}
		c.pending[3] = &nbdReply{cookie: 3}
		for _, b := range append(c.header(r), shellContent()[8:108]...) {
			c.put([]byte{b})
		}
		if a := c.answer(); a.errno != 0 {
			t.Errorf("%+v", a)
		}
		c.alive()
	})
}

// TestNBDRawHalfAWrite: a payload that ends with the connection is not written.
func TestNBDRawHalfAWrite(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		for _, n := range []int{0, 1, 65535} {
			c := enter(t, s.nbd[0], "raw", d)
			r := wire.Request{Command: wire.CmdWrite, Length: 65536}
			if d == extendedHeaders {
				r.Flags = wire.FlagPayloadLen
			}
			c.put(append(c.header(r), bytes.Repeat([]byte{0xdd}, n)...))
			must(t, c.conn.Close())
			enter(t, s.nbd[0], "raw", d).alive()
		}
	})
}

// TestNBDRawAbuse: a payload that no server can be asked to read ends the
// connection, and others go on.
func TestNBDRawAbuse(t *testing.T) {
	s := rawServer(t, "raw")
	eachDialect(t, func(t *testing.T, d dialect) {
		lengths := []uint64{1<<32 - 1}
		r := wire.Request{Command: wire.CmdWrite}
		if d == extendedHeaders {
			lengths = append(lengths, 1<<32, 1<<63, 1<<64-1)
			r.Flags = wire.FlagPayloadLen
		}
		other := enter(t, s.nbd[0], "raw", d)
		for _, r.Length = range lengths {
			c := enter(t, s.nbd[0], "raw", d)
			c.put(c.header(r))
			c.gone()
		}
		other.alive()
	})
}

// TestNBDRawDisconnect: DISC answers what came before it, and serves nothing that
// comes after.
func TestNBDRawDisconnect(t *testing.T) {
	s := rawServer(t, "raw")
	content := shellContent()
	eachDialect(t, func(t *testing.T, d dialect) {
		c := enter(t, s.nbd[0], "raw", d)
		var all []byte
		for i := range uint64(100) {
			r := wire.Request{Command: wire.CmdRead, Cookie: i, Offset: i * 4096, Length: 8192}
			c.pending[i] = &nbdReply{cookie: i, off: r.Offset, data: make([]byte, 8192)}
			all = append(all, c.header(r)...)
		}
		all = append(all, c.header(wire.Request{Command: wire.CmdDisc, Cookie: 1000})...)
		c.put(append(all, c.header(wire.Request{Command: wire.CmdWriteZeroes, Length: uint64(shellSize)})...))
		for range 100 {
			if r := c.answer(); r.errno != 0 || !bytes.Equal(r.data, content[r.off:][:8192]) {
				t.Errorf("reply to %d: %v", r.cookie, r.errno)
			}
		}
		if rest, err := io.ReadAll(c.conn); len(rest) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after DISC came %d bytes: %v", len(rest), err)
		}
		enter(t, s.nbd[0], "raw", d).alive()
	})
}

// TestNBDRawPipeline: far more requests than are served at a time, none of whose
// replies is taken before the last is sent.
func TestNBDRawPipeline(t *testing.T) {
	s := rawServer(t, "qcow2")
	content := shellContent()
	eachDialect(t, func(t *testing.T, d dialect) {
		const n, length = 2000, 4096
		c := enter(t, s.nbd[0], "qcow2", d)
		sent := make(chan error, 1)
		var all []byte
		for i := range uint64(n) {
			r := wire.Request{Command: wire.CmdRead, Cookie: i, Offset: i * 7919 % (uint64(shellSize) - length), Length: length}
			c.pending[i] = &nbdReply{cookie: i, off: r.Offset, data: make([]byte, length)}
			all = append(all, c.header(r)...)
		}
		go func() { sent <- c.write(all) }()
		must(t, <-sent)
		for range n {
			if r := c.answer(); r.errno != 0 || !bytes.Equal(r.data, content[r.off:][:length]) {
				t.Fatalf("reply to %d: %v", r.cookie, r.errno)
			}
		}
	})
}

// TestNBDRawPayloadLength: the flag is for extended headers; where it is wrong
// there, the payload is consumed.
func TestNBDRawPayloadLength(t *testing.T) {
	s := rawServer(t, "raw")
	commands := []wire.Command{wire.CmdRead, wire.CmdFlush, wire.CmdTrim, wire.CmdCache, wire.CmdWriteZeroes, 77}
	for _, d := range []dialect{simpleReplies, structuredReplies} {
		c := enter(t, s.nbd[0], "raw", d)
		for _, cmd := range append(commands, wire.CmdBlockStatus) {
			c.call(wire.Request{Command: cmd, Flags: wire.FlagPayloadLen, Length: 512}, nil, wire.EINVAL)
		}
		c.call(wire.Request{Command: wire.CmdWrite, Flags: wire.FlagPayloadLen, Length: 512}, make([]byte, 512), wire.EINVAL)
		c.alive()
	}
	c := enter(t, s.nbd[0], "raw", extendedHeaders)
	for _, cmd := range commands {
		for _, n := range []int{1, 12, 512, 100000} {
			c.call(wire.Request{Command: cmd, Flags: wire.FlagPayloadLen, Length: uint64(n)}, make([]byte, n), wire.EINVAL)
		}
	}
	c.alive()
}

// TestNBDRawStatusPayload: a block status of some contexts only.
func TestNBDRawStatusPayload(t *testing.T) {
	s := rawServer(t, "chain")
	c := enter(t, s.nbd[0], "chain", extendedHeaders)
	if c.info.Flags&wire.BlockStatusPayload == 0 {
		t.Fatalf("flags %#x", c.info.Flags)
	}
	ids := make(map[string]uint32)
	for id, name := range c.contexts {
		ids[name] = id
	}
	base, depth := ids[wire.BaseAllocation], ids[wire.AllocationDepth]
	status := func(flags wire.Flags, payload []byte, errno wire.Errno) *nbdReply {
		t.Helper()
		return c.call(wire.Request{Command: wire.CmdBlockStatus, Flags: flags | wire.FlagPayloadLen, Length: uint64(len(payload))}, payload, errno)
	}
	size := uint64(shellSize)
	for _, want := range [][]uint32{{base}, {depth}, {base, depth}, {depth, base}} {
		for _, flags := range []wire.Flags{0, wire.FlagReqOne} {
			r := status(flags, wire.AppendStatusQuery(nil, size, want), 0)
			if len(r.status) != len(want) {
				t.Errorf("asked for %v: %v", want, r.status)
			}
			for _, id := range want {
				if n := len(r.status[id]); n == 0 || flags != 0 && n != 1 {
					t.Errorf("context %d with flags %#x: %v", id, flags, r.status[id])
				}
			}
		}
	}
	for what, payload := range map[string][]byte{
		"an unknown context":          wire.AppendStatusQuery(nil, size, []uint32{base, 12345}),
		"a context twice":             wire.AppendStatusQuery(nil, size, []uint32{base, base}),
		"half a context":              wire.AppendStatusQuery(nil, size, []uint32{base, depth})[:14],
		"half a length":               make([]byte, 4),
		"more than there are":         wire.AppendStatusQuery(nil, size, []uint32{base, depth, 2, 3, 4}),
		"very many":                   make([]byte, 100000),
		"a length beyond the end":     wire.AppendStatusQuery(nil, size+1, []uint32{base}),
		"a length that overflows":     wire.AppendStatusQuery(nil, 1<<64-1, []uint32{base}),
		"a length beyond all offsets": wire.AppendStatusQuery(nil, 1<<63, []uint32{base}),
	} {
		t.Log(what)
		status(0, payload, wire.EINVAL)
	}
	if r := c.call(wire.Request{Command: wire.CmdBlockStatus, Length: size}, nil, 0); len(r.status) != 2 {
		t.Errorf("without a payload: %v", r.status)
	}
	c.alive()
}

// TestNBDRawLarge: extended headers reach as far as 64 bits do.
func TestNBDRawLarge(t *testing.T) {
	s := rawServer(t, "wide")
	const size = uint64(1) << 40
	c := enter(t, s.nbd[1], "wide", extendedHeaders)
	if c.info.Size != size {
		t.Fatalf("%+v", c.info)
	}
	both := func(off, n uint64, flags wire.Flags) map[string][]wire.Descriptor {
		t.Helper()
		named := make(map[string][]wire.Descriptor)
		for id, list := range c.call(wire.Request{Command: wire.CmdBlockStatus, Flags: flags, Offset: off, Length: n}, nil, 0).status {
			named[c.contexts[id]] = list
		}
		return named
	}
	hole := uint64(wire.StateHole | wire.StateZero)
	for _, flags := range []wire.Flags{0, wire.FlagReqOne} {
		got := both(0, size, flags)
		if !slices.Equal(got[wire.BaseAllocation], []wire.Descriptor{{Length: size, Flags: hole}}) ||
			!slices.Equal(got[wire.AllocationDepth], []wire.Descriptor{{Length: size}}) {
			t.Errorf("an empty image is %v", got)
		}
	}
	data := bytes.Repeat([]byte{1}, 65536)
	c.call(wire.Request{Command: wire.CmdWrite, Flags: wire.FlagPayloadLen, Offset: 600 << 30, Length: 65536}, data, 0)
	got := both(1<<30, size-1<<30, 0)[wire.BaseAllocation]
	if !slices.Equal(got, []wire.Descriptor{{Length: 599 << 30, Flags: hole}, {Length: 65536}, {Length: size - 600<<30 - 65536, Flags: hole}}) {
		t.Errorf("with a cluster: %v", got)
	}
	for _, r := range []wire.Request{
		{Command: wire.CmdWriteZeroes, Flags: wire.FlagFastZero, Length: size},
		{Command: wire.CmdWriteZeroes, Offset: 1 << 20, Length: size - 1<<20},
		{Command: wire.CmdTrim, Length: size},
	} {
		c.call(wire.Request{Command: wire.CmdWrite, Flags: wire.FlagPayloadLen, Offset: 600 << 30, Length: 65536}, data, 0)
		c.call(r, nil, 0)
		read := c.call(wire.Request{Command: wire.CmdRead, Offset: 600 << 30, Length: 65536}, nil, 0)
		if !bytes.Equal(read.data, make([]byte, 65536)) {
			t.Errorf("%v: the data is there still", r.Command)
		}
	}
	c.call(wire.Request{Command: wire.CmdCache, Length: size}, nil, 0, wire.EINVAL, wire.EOVERFLOW)
	for _, n := range []uint64{1 << 33, size} {
		c.call(wire.Request{Command: wire.CmdRead, Length: n}, nil, wire.EINVAL, wire.EOVERFLOW)
		c.call(wire.Request{Command: wire.CmdRead, Length: n, Flags: wire.FlagDF}, nil, wire.EINVAL, wire.EOVERFLOW)
	}
	for _, n := range []uint64{size + 1, 1 << 63, 1<<64 - 1} {
		for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdTrim, wire.CmdCache, wire.CmdBlockStatus} {
			c.call(wire.Request{Command: cmd, Length: n}, nil, wire.EINVAL)
			c.call(wire.Request{Command: cmd, Length: n, Offset: -n}, nil, wire.EINVAL)
		}
		c.call(wire.Request{Command: wire.CmdWriteZeroes, Length: n}, nil, wire.ENOSPC)
		c.call(wire.Request{Command: wire.CmdWriteZeroes, Length: n, Offset: -n}, nil, wire.ENOSPC)
	}
}

// TestNBDRawExtendedReplies: each chunk has the offset of its request, whatever
// that asks for.
func TestNBDRawExtendedReplies(t *testing.T) {
	s := rawServer(t, "qcow2")
	c := enter(t, s.nbd[0], "qcow2", extendedHeaders)
	off := uint64(shellQuarter) - 4096
	for i, r := range []wire.Request{
		{Command: wire.CmdRead, Offset: off, Length: 200000},
		{Command: wire.CmdRead, Offset: off, Length: 200000, Flags: wire.FlagDF},
		{Command: wire.CmdBlockStatus, Offset: off, Length: 200000},
		{Command: wire.CmdCache, Offset: off, Length: 4096},
		{Command: wire.CmdRead, Offset: 1<<64 - 1, Length: 1},
		{Command: 55, Offset: 12345},
		{Command: wire.CmdFlush},
	} {
		r.Cookie = uint64(i)
		c.put(c.header(r))
		chunks := 0
		for done := false; !done; chunks++ {
			h, err := wire.ParseReply(c.take(wire.ExtReplySize))
			must(t, err)
			if h.Simple || h.Cookie != r.Cookie || h.Offset != r.Offset || h.Flags&^wire.FlagDone != 0 {
				t.Fatalf("%+v was answered %+v", r, h)
			}
			c.take(int(h.Length))
			done = h.Flags&wire.FlagDone != 0
		}
		if (i == 0 || i == 2) && chunks < 2 || i != 0 && i != 2 && chunks > 1 {
			t.Errorf("%+v was answered in %d chunks", r, chunks)
		}
	}
	c.alive()
}
