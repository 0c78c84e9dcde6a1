package nbd_test

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/nbd/wire"
)

var modes = []mode{simple, structured, extended}

// forModes runs a test in each mode against a fresh image of random bytes.
func forModes(t *testing.T, size int, test func(t *testing.T, m mode, v *server, content []byte)) {
	content := random(size)
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			test(t, m, serve(t, setup{}, raw(t, "a.raw", content)), bytes.Clone(content))
		})
	}
}

func TestReadWrite(t *testing.T) {
	forModes(t, 3<<20+5, func(t *testing.T, m mode, v *server, content []byte) {
		c := v.open(t, "a.raw", m)
		for _, part := range []struct{ off, n uint64 }{
			{0, 1}, {3<<20 + 4, 1}, {7, 4096}, {4096, 4096}, {100, 65536}, {1, 1 << 20}, {0, 3<<20 + 5}, {2 << 20, 70000},
		} {
			if got := c.readAt(part.off, part.n); !bytes.Equal(got, content[part.off:part.off+part.n]) {
				t.Errorf("read of %d at %d differs", part.n, part.off)
			}
			change := bytes.Repeat([]byte{byte(part.n)}, int(part.n/2+1))
			c.writeAt(change, part.off)
			copy(content[part.off:], change)
		}
		if got := c.readAt(0, uint64(len(content))); !bytes.Equal(got, content) {
			t.Error("the whole differs")
		}
		c.works(wire.Request{Command: wire.CmdFlush}, nil)
		c.send(wire.Request{Command: wire.CmdDisc}, nil)
		c.gone()
		got, err := os.ReadFile(filepath.Join(v.dir, "a.raw"))
		if err != nil || !bytes.Equal(got, content) {
			t.Error("the file differs", err)
		}
	})
}

// TestRefusals: what breaks the rules fails, changes nothing, and the connection
// goes on.
func TestRefusals(t *testing.T) {
	const size = 1 << 20
	forModes(t, size, func(t *testing.T, m mode, v *server, content []byte) {
		c := v.open(t, "a.raw", m)
		type request = wire.Request
		far := uint64(math.MaxUint32)
		for _, tt := range []struct {
			errno wire.Errno
			r     request
		}{
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: size, Length: 1}},
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: size - 1, Length: 2}},
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: math.MaxUint64, Length: 1}},
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: math.MaxUint64 - 511, Length: 1024}},
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: 1 << 63, Length: 512}},
			{wire.EINVAL, request{Command: wire.CmdRead, Offset: 0, Length: far}},
			{wire.EINVAL, request{Command: wire.CmdTrim, Offset: size - 1, Length: 2}},
			{wire.EINVAL, request{Command: wire.CmdTrim, Offset: 512, Length: far}},
			{wire.EINVAL, request{Command: wire.CmdCache, Offset: size, Length: 1}},
			{wire.ENOSPC, request{Command: wire.CmdWriteZeroes, Offset: size - 1, Length: 2}},
			{wire.ENOSPC, request{Command: wire.CmdWriteZeroes, Offset: math.MaxUint64, Length: far}},
			{wire.EINVAL, request{Command: wire.CmdBlockStatus, Offset: size, Length: 1}},
			{wire.EINVAL, request{Command: wire.CmdBlockStatus, Offset: 0, Length: size + 1}},
			{wire.EINVAL, request{Command: wire.CmdBlockStatus}},
			{wire.EINVAL, request{Command: wire.CmdFlush, Length: 1}},
			{wire.EINVAL, request{Command: wire.CmdFlush, Offset: 1}},
			{wire.EINVAL, request{Command: 8}},
			{wire.EINVAL, request{Command: 999, Length: 77}},
			{wire.EINVAL, request{Command: wire.CmdRead, Length: 1, Flags: wire.FlagNoHole}},
			{wire.EINVAL, request{Command: wire.CmdRead, Length: 1, Flags: 1 << 15}},
			{wire.EINVAL, request{Command: wire.CmdFlush, Flags: wire.FlagDF}},
			{wire.EINVAL, request{Command: wire.CmdTrim, Length: 1, Flags: wire.FlagFastZero}},
			{wire.EINVAL, request{Command: wire.CmdCache, Length: 1, Flags: wire.FlagReqOne}},
			{wire.EINVAL, request{Command: wire.CmdWriteZeroes, Length: 1, Flags: wire.FlagReqOne}},
			{wire.EINVAL, request{Command: wire.CmdBlockStatus, Length: 1, Flags: wire.FlagDF}},
		} {
			if tt.r.Command == wire.CmdRead {
				res := c.failedRead(tt.r)
				if res.errno != tt.errno {
					t.Errorf("%+v: %v, want %v", tt.r, res.errno, tt.errno)
				}
				continue
			}
			c.fails(tt.errno, tt.r, nil)
		}
		if m != extended {
			c.fails(wire.EINVAL, request{Command: wire.CmdTrim, Length: 1, Flags: wire.FlagPayloadLen}, nil)
		} else {
			c.fails(wire.EINVAL, request{Command: wire.CmdTrim, Flags: wire.FlagPayloadLen}, []byte("payload"))
			res := c.failedRead(request{Command: wire.CmdRead, Length: math.MaxUint64})
			if res.errno != wire.EINVAL {
				t.Error(res.errno)
			}
		}
		if m == simple {
			if res := c.failedRead(request{Command: wire.CmdRead, Length: 1, Flags: wire.FlagDF}); res.errno != wire.EINVAL {
				t.Error("DF without structured replies:", res.errno)
			}
		}
		if got := c.readAt(0, size); !bytes.Equal(got, content) {
			t.Error("the content has changed")
		}
	})
}

// failedRead is a call of a read that is to fail: no data comes.
func (c *client) failedRead(r wire.Request) result {
	c.t.Helper()
	cookie := c.send(r, nil)
	was := c.structured
	defer func() { c.structured = was }()
	var res result
	if c.structured {
		res = c.reply(r.Offset, 0)
	} else {
		p := c.read(wire.SimpleReplySize)
		h, err := wire.ParseReply(p)
		if err != nil || h.Errno == 0 {
			c.t.Fatalf("%+v: %v", h, err)
		}
		res = result{cookie: h.Cookie, errno: h.Errno}
	}
	if res.cookie != cookie {
		c.t.Fatalf("reply to %d, want %d", res.cookie, cookie)
	}
	return res
}

// TestFailedWrites: the payload is read over.
func TestFailedWrites(t *testing.T) {
	const size = 1 << 20
	forModes(t, size, func(t *testing.T, m mode, v *server, content []byte) {
		c := v.open(t, "a.raw", m)
		for _, tt := range []struct {
			errno wire.Errno
			off   uint64
			n     int
			flags wire.Flags
		}{
			{wire.ENOSPC, size, 1, 0},
			{wire.ENOSPC, size - 4, 100, 0},
			{wire.ENOSPC, math.MaxUint64 - 10, 4096, 0},
			{wire.ENOSPC, 0, size + 1, 0},
			{wire.ENOSPC, 0, 33 << 20, 0},
			{wire.EINVAL, 0, 512, wire.FlagDF},
			{wire.EINVAL, 0, 70000, 1 << 9},
		} {
			c.fails(tt.errno, wire.Request{Command: wire.CmdWrite, Offset: tt.off, Flags: tt.flags}, bytes.Repeat([]byte{0xaa}, tt.n))
		}
		if got := c.readAt(0, size); !bytes.Equal(got, content) {
			t.Error("the content has changed")
		}
	})
}

func TestTooLong(t *testing.T) {
	v := serve(t, setup{}, tools(t, "truncate -s 256M a.raw"))
	for _, m := range modes {
		c := v.open(t, "a.raw", m)
		if got := c.readAt(1<<20, 32<<20); len(got) != 32<<20 {
			t.Error("no 32 MiB")
		}
		if res := c.failedRead(wire.Request{Command: wire.CmdRead, Length: 32<<20 + 1}); res.errno != wire.EINVAL {
			t.Error(res.errno)
		}
		c.fails(wire.EINVAL, wire.Request{Command: wire.CmdWrite}, make([]byte, 32<<20+1))
		c.alive()
		r := wire.Request{Command: wire.CmdWrite, Length: 64<<20 + 1}
		if m == extended {
			r.Flags, r.Length = wire.FlagPayloadLen, 1<<62
		}
		c.write(header(&r, c.extended))
		c.gone()
	}
}

func TestZeroLength(t *testing.T) {
	forModes(t, 4096, func(t *testing.T, m mode, v *server, _ []byte) {
		c := v.open(t, "a.raw", m)
		for _, off := range []uint64{0, 5, 4096} {
			c.works(wire.Request{Command: wire.CmdRead, Offset: off}, nil)
			c.works(wire.Request{Command: wire.CmdWrite, Offset: off}, nil)
			c.works(wire.Request{Command: wire.CmdTrim, Offset: off}, nil)
			c.works(wire.Request{Command: wire.CmdWriteZeroes, Offset: off}, nil)
			c.works(wire.Request{Command: wire.CmdCache, Offset: off}, nil)
		}
		c.alive()
	})
}

func TestMagic(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(4096)))
	for _, m := range modes {
		c := v.open(t, "a.raw", m)
		c.alive()
		p := header(&wire.Request{Command: wire.CmdFlush, Cookie: 5}, c.extended)
		p[3] ^= 0x80
		c.write(p)
		c.gone()
	}
	c := v.open(t, "a.raw", structured) // nothing of the other kind of header
	c.write(header(&wire.Request{Command: wire.CmdFlush}, true))
	c.gone()
}

func TestExtendedWriteWithoutFlag(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(4096)))
	c := v.open(t, "a.raw", extended)
	r := wire.Request{Command: wire.CmdWrite, Cookie: 9, Length: 4}
	c.write(append(header(&r, true), "abcd"...))
	if res := c.reply(0, 0); res.cookie != 9 || res.errno != wire.EINVAL {
		t.Errorf("%+v", res)
	}
	c.alive()
}

// TestPipeline sends many requests before it reads a reply. Their order is not
// kept, and none is lost.
func TestPipeline(t *testing.T) {
	const size = 1 << 20
	for _, tcp := range []bool{false, true} {
		for _, m := range modes {
			content := random(size)
			v := serve(t, setup{tcp: tcp}, raw(t, "a.raw", content))
			c := v.open(t, "a.raw", m)
			type want struct{ off, n uint64 }
			wants := map[uint64]want{}
			for i := range uint64(100) {
				w := want{i * 4096, 100 + i*7}
				if i%10 == 9 { // these are served elsewhere
					w = want{i * 512, 80000}
				}
				wants[c.send(wire.Request{Command: wire.CmdRead, Offset: w.off, Length: w.n}, nil)] = w
			}
			for range 100 {
				c.oneOf(func(cookie uint64) (uint64, uint64) { return wants[cookie].off, wants[cookie].n }, func(res result) {
					w, known := wants[res.cookie]
					if !known || res.errno != 0 || !bytes.Equal(res.data, content[w.off:w.off+w.n]) {
						t.Errorf("tcp %v, %v: reply to %d at %d: %v", tcp, m, res.cookie, w.off, res.errno)
					}
					delete(wants, res.cookie)
				})
			}
		}
	}
}

// oneOf reads any reply: where tells of what.
func (c *client) oneOf(where func(cookie uint64) (off, n uint64), take func(result)) {
	c.t.Helper()
	p := c.read(16) // as much as all kinds of headers have
	h := &peeked{Conn: c.nc, first: p}
	c.nc = h
	defer func() { c.nc = h.Conn }()
	off, n := where(cookieIn(p))
	take(c.reply(off, n))
}

// TestSlowStorage: where a read takes long, many are under way at a time.
func TestSlowStorage(t *testing.T) {
	var now, most atomic.Int32
	v := serve(t, setup{service: with(hooked{fetch: func(context.Context) error {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(5 * time.Millisecond)
		now.Add(-1)
		return nil
	}})}, raw(t, "a.raw", random(mib)))
	c := v.open(t, "a.raw", simple)
	const requests = 200
	for range requests {
		c.send(wire.Request{Command: wire.CmdRead, Length: 512}, nil)
	}
	for range requests {
		if res := c.reply(0, 512); res.errno != 0 {
			t.Fatal(res.errno)
		}
	}
	if most.Load() < 16 {
		t.Errorf("%d at a time", most.Load())
	}
}

func TestDisconnectAnswersFirst(t *testing.T) {
	content := random(1 << 20)
	v := serve(t, setup{}, raw(t, "a.raw", content))
	c := v.open(t, "a.raw", simple)
	var all []byte
	for i := range uint64(50) {
		all = append(all, header(&wire.Request{Command: wire.CmdRead, Cookie: i + 1, Offset: i * 4096, Length: 512}, false)...)
	}
	c.write(append(all, header(&wire.Request{Command: wire.CmdDisc}, false)...))
	for range 50 {
		if res := c.reply(0, 512); res.errno != 0 || !bytes.Equal(res.data, content[(res.cookie-1)*4096:][:512]) {
			t.Errorf("reply to %d: %v", res.cookie, res.errno)
		}
	}
	c.gone()
}

func TestReadOnly(t *testing.T) {
	for name, with := range map[string]setup{
		"service": {service: service.Options{ReadOnly: true}},
		"server":  {options: readOnly},
	} {
		t.Run(name, func(t *testing.T) {
			content := random(4096)
			v := serve(t, with, raw(t, "a.raw", content))
			for _, m := range modes {
				c := v.open(t, "a.raw", m)
				if f := c.info.Flags; f&wire.ReadOnly == 0 || f&(wire.SendTrim|wire.SendWriteZeroes|wire.SendFastZero) != 0 {
					t.Errorf("flags %#x", f)
				}
				c.fails(wire.EPERM, wire.Request{Command: wire.CmdWrite}, []byte("abc"))
				c.fails(wire.EPERM, wire.Request{Command: wire.CmdTrim, Length: 512}, nil)
				c.fails(wire.EPERM, wire.Request{Command: wire.CmdWriteZeroes, Length: 512}, nil)
				c.works(wire.Request{Command: wire.CmdFlush}, nil)
				if got := c.readAt(0, 4096); !bytes.Equal(got, content) {
					t.Error("content differs")
				}
			}
		})
	}
}
