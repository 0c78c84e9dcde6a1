package nbd_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
	"github.com/extentd/extentd/storage/storagetest"
)

// forms are the ways in which a server may answer.
func forms(t *testing.T, test func(t *testing.T, s *fake, content []byte)) {
	for name, set := range map[string]func(*fake){
		"simple":     func(s *fake) { s.simple = true },
		"structured": func(*fake) {},
		"extended":   func(s *fake) { s.extended = true },
	} {
		t.Run(name, func(t *testing.T) {
			content := random(t, 64<<10)
			s := newFake(t, bytes.Clone(content), set)
			test(t, s, content)
		})
	}
}

// Extended headers, which not every server has yet. The other forms are those of
// real servers.
func TestExtended(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, content []byte) storage.File {
		return openFile(t, options(newFake(t, content, func(s *fake) { s.extended = true }).uri))
	}
	t.Run("file", func(t *testing.T) {
		storagetest.TestFile(t, 1, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
			return open(t, content)
		})
	})
	t.Run("writer", func(t *testing.T) {
		storagetest.TestFixedWriter(t, 1, func(t *testing.T, size int64) storage.File {
			return open(t, make([]byte, size))
		})
	})
}

// A reply may come in pieces of any order, and what breaks the protocol is never
// taken for bytes: the connection is dropped, and the read is done on another one.
func TestReplies(t *testing.T) {
	const n = 4096
	for _, c := range []struct {
		name   string
		broken bool
		send   func(p *peer, r wire.Request, b []byte)
	}{
		{"pieces backwards", false, func(p *peer, r wire.Request, b []byte) {
			for i := n - 256; i >= 0; i -= 256 {
				p.data(r, 0, r.Offset+uint64(i), b[i:i+256])
			}
			p.chunk(r, wire.ChunkNone, wire.FlagDone, nil)
		}},
		{"odd, then even pieces", false, func(p *peer, r wire.Request, b []byte) {
			for i := 256; i < n; i += 512 {
				p.data(r, 0, r.Offset+uint64(i), b[i:i+256])
			}
			for i := 0; i < n; i += 512 {
				p.data(r, 0, r.Offset+uint64(i), b[i:i+256])
			}
			p.chunk(r, wire.ChunkNone, wire.FlagDone, nil)
		}},
		{"an overlap", true, func(p *peer, r wire.Request, b []byte) {
			p.data(r, 0, r.Offset, b[:2000])
			p.data(r, wire.FlagDone, r.Offset+1999, b[1999:])
		}},
		{"a hole over data", true, func(p *peer, r wire.Request, b []byte) {
			p.data(r, 0, r.Offset, b)
			p.hole(r, wire.FlagDone, r.Offset, n)
		}},
		{"one inside another", true, func(p *peer, r wire.Request, b []byte) {
			p.data(r, 0, r.Offset+100, b[100:200])
			p.data(r, wire.FlagDone, r.Offset, b)
		}},
		{"a gap at the end", true, func(p *peer, r wire.Request, b []byte) { p.data(r, wire.FlagDone, r.Offset, b[:n-1]) }},
		{"a gap at the begin", true, func(p *peer, r wire.Request, b []byte) { p.data(r, wire.FlagDone, r.Offset+1, b[1:]) }},
		{"a gap between", true, func(p *peer, r wire.Request, b []byte) {
			p.data(r, 0, r.Offset, b[:100])
			p.data(r, wire.FlagDone, r.Offset+101, b[101:])
		}},
		{"nothing", true, func(p *peer, r wire.Request, _ []byte) { p.chunk(r, wire.ChunkNone, wire.FlagDone, nil) }},
		{"too much", true, func(p *peer, r wire.Request, b []byte) { p.data(r, wire.FlagDone, r.Offset, append(b, 1)) }},
		{"another offset", true, func(p *peer, r wire.Request, b []byte) { p.data(r, wire.FlagDone, r.Offset-1, b) }},
		{"an offset that overflows", true, func(p *peer, r wire.Request, b []byte) { p.data(r, wire.FlagDone, math.MaxUint64-10, b) }},
		{"a hole that overflows", true, func(p *peer, r wire.Request, _ []byte) {
			p.hole(r, wire.FlagDone, r.Offset, math.MaxUint32)
		}},
		{"a hole of nothing", true, func(p *peer, r wire.Request, _ []byte) { p.hole(r, wire.FlagDone, r.Offset, 0) }},
		{"another cookie", true, func(p *peer, r wire.Request, b []byte) {
			r.Cookie += 1000
			p.data(r, wire.FlagDone, r.Offset, b)
		}},
		{"a cookie twice", false, func(p *peer, r wire.Request, b []byte) { // seen with the next reply
			p.data(r, wire.FlagDone, r.Offset, b)
			p.data(r, wire.FlagDone, r.Offset, make([]byte, n))
		}},
		{"a block status", true, func(p *peer, r wire.Request, _ []byte) { p.status(r, wire.FlagDone, wire.Descriptor{Length: n}) }},
		{"an unknown chunk", true, func(p *peer, r wire.Request, b []byte) { p.chunk(r, 99, wire.FlagDone, b) }},
		{"a chunk of 4 GiB", true, func(p *peer, r wire.Request, _ []byte) {
			h := wire.Reply{Chunk: wire.ChunkOffsetData, Flags: wire.FlagDone, Cookie: r.Cookie, Offset: r.Offset, Length: math.MaxUint32}
			p.write(wire.AppendChunk(nil, &h, p.extended))
		}},
		{"a simple reply", true, func(p *peer, r wire.Request, b []byte) {
			head := make([]byte, wire.SimpleReplySize)
			wire.PutSimple(head, r.Cookie, 0)
			p.write(append(head, b...))
		}},
		{"no magic", true, func(p *peer, _ wire.Request, b []byte) { p.write(b) }},
		{"half of the data", true, func(p *peer, r wire.Request, b []byte) {
			h := wire.Reply{Chunk: wire.ChunkOffsetData, Flags: wire.FlagDone, Cookie: r.Cookie, Offset: r.Offset, Length: n + 8}
			p.write(append(wire.AppendDataHeader(wire.AppendChunk(nil, &h, p.extended), r.Offset), b[:n/2]...))
			_ = p.c.Close()
		}},
		{"end of the connection", true, func(p *peer, _ wire.Request, _ []byte) { _ = p.c.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			forms(t, func(t *testing.T, s *fake, content []byte) {
				if s.simple {
					return
				}
				const off = 8192
				s.on(func(p *peer, r wire.Request, _ []byte) bool {
					if p.number > 1 {
						return false
					}
					c.send(p, r, bytes.Clone(content[off:off+n]))
					return true
				})
				f := openFile(t, options(s.uri))
				p := make([]byte, n+1)
				if got, err := f.ReadAt(t.Context(), p[:n], off); got != n || err != nil || !bytes.Equal(p[:n], content[off:off+n]) || p[n] != 0 {
					t.Errorf("%d, %v", got, err)
				}
				if want := map[bool]int{false: 1, true: 2}[c.broken]; s.connections() != want {
					t.Errorf("%d connections, want %d", s.connections(), want)
				}
			})
		})
	}
}

// A server that always breaks the protocol is given up.
func TestNonsense(t *testing.T) {
	s := newFake(t, random(t, 8192))
	s.on(func(p *peer, r wire.Request, _ []byte) bool {
		p.data(r, wire.FlagDone, r.Offset, []byte{1})
		return true
	})
	f := openFile(t, options(s.uri))
	_, err := f.ReadAt(t.Context(), make([]byte, 4096), 0)
	for _, want := range []error{nbd.ErrLost, wire.ErrProtocol, syscall.EIO} {
		is(t, "read", err, want)
	}
}

func TestErrors(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, _ []byte) {
		var answer wire.Errno
		s.on(func(p *peer, r wire.Request, _ []byte) bool {
			if !p.extended && r.Command != wire.CmdRead && r.Command != wire.CmdBlockStatus {
				p.done(r, answer)
			} else {
				p.fail(r, answer)
			}
			return true
		})
		f := openFile(t, options(s.uri))
		for _, c := range []struct {
			answer      wire.Errno
			read, write error
		}{
			{wire.EPERM, syscall.EPERM, storage.ErrReadOnly},
			{wire.EIO, syscall.EIO, syscall.EIO},
			{wire.ENOMEM, syscall.ENOMEM, syscall.ENOMEM},
			{wire.EINVAL, syscall.EINVAL, syscall.EINVAL},
			{wire.ENOSPC, storage.ErrNoSpace, storage.ErrNoSpace},
			{wire.EOVERFLOW, syscall.EOVERFLOW, syscall.EOVERFLOW},
			{wire.ENOTSUP, storage.ErrUnsupported, storage.ErrUnsupported},
			{4711, syscall.EINVAL, syscall.EINVAL},
		} {
			s.set(func() { answer = c.answer })
			n, err := f.ReadAt(t.Context(), make([]byte, 4096), 0)
			if is(t, "read", err, c.read); n != 0 || strings.Contains(err.Error(), "secret") {
				t.Errorf("%d, %v", n, err)
			}
			n, err = f.WriteAt(t.Context(), make([]byte, 300<<10)[:60<<10], 0)
			if is(t, "write", err, c.write); n != 0 {
				t.Errorf("%d bytes written", n)
			}
			is(t, "zero", f.Zero(t.Context(), 0, 4096, false), c.write)
			if err := f.Trim(t.Context(), 0, 4096); c.answer == wire.ENOTSUP {
				is(t, "trim", err, nil)
			} else {
				is(t, "trim", err, c.write)
			}
			is(t, "flush", f.Flush(t.Context()), c.write)
		}
		if s.connections() != 1 {
			t.Errorf("%d connections", s.connections())
		}
	})
}

// An error may come before or after pieces, and with an offset.
func TestPartialErrors(t *testing.T) {
	s := newFake(t, random(t, 64<<10))
	s.on(func(p *peer, r wire.Request, _ []byte) bool {
		p.data(r, 0, r.Offset, make([]byte, 100))
		bad := wire.AppendError(nil, wire.EIO, "")
		p.chunk(r, wire.ChunkErrorOffset, 0, binary.BigEndian.AppendUint64(bad, r.Offset+100))
		p.chunk(r, 0x8000+99, 0, wire.AppendError(nil, wire.ENOMEM, "what nobody knows"))
		p.data(r, wire.FlagDone, r.Offset+200, make([]byte, 100))
		return true
	})
	f := openFile(t, options(s.uri))
	_, err := f.ReadAt(t.Context(), make([]byte, 4096), 0)
	is(t, "read", err, syscall.EIO)
	s.on(nil)
	if _, err := f.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil || s.connections() != 1 {
		t.Errorf("%v, %d connections", err, s.connections())
	}
}

// A write may be refused before the server has read all of it: the rest is sent all
// the same, and is what the caller had in his buffer then.
func TestEarlyRefusal(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, _ []byte) {
		const n = 2 << 20
		on := make(chan struct{})
		got := make(chan []byte, 1)
		s.set(func() {
			s.info.Size = n
			s.early = func(p *peer, r wire.Request) {
				if r.Command == wire.CmdWrite {
					p.fail(r, wire.ENOSPC)
					<-on
				}
			}
		})
		s.on(func(_ *peer, r wire.Request, payload []byte) bool {
			if r.Command == wire.CmdWrite {
				got <- payload
			}
			return r.Command == wire.CmdWrite
		})
		f := openFile(t, options(s.uri))
		p := random(t, n)
		want := bytes.Clone(p)
		_, err := f.WriteAt(t.Context(), p, 0)
		is(t, "write", err, storage.ErrNoSpace)
		clear(p)
		close(on)
		if !bytes.Equal(<-got, want) {
			t.Error("the server gets other bytes than were written")
		}
		s.set(func() { s.early = nil })
		if _, err := f.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil || s.connections() != 1 {
			t.Errorf("%v, %d connections", err, s.connections())
		}
	})
}

// What is done before it was sent is a lie.
func TestEarlySuccess(t *testing.T) {
	s := newFake(t, make([]byte, 100), func(s *fake) {
		s.info.Size = 2 << 20
		s.early = func(p *peer, r wire.Request) {
			if r.Command == wire.CmdWrite {
				p.done(r, 0)
				<-t.Context().Done()
			}
		}
	})
	f := openFile(t, options(s.uri))
	_, err := f.WriteAt(t.Context(), make([]byte, 2<<20), 0)
	is(t, "write", err, nbd.ErrLost)
	is(t, "write", err, wire.ErrProtocol)
}
