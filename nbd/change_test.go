package nbd_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestZeroes compares with what qemu-img finds in the file.
func TestZeroes(t *testing.T) {
	for _, m := range modes {
		v := serve(t, setup{}, tools(t, "qemu-img create -q -f qcow2 a.qcow2 4M", "truncate -s 4M a.raw"))
		for _, name := range []string{"a.qcow2", "a.raw"} {
			c := v.open(t, name, m)
			want := random(4 * mib)
			c.writeAt(want, 0)
			for i, r := range []wire.Request{
				{Command: wire.CmdWriteZeroes, Offset: 1000, Length: 100},
				{Command: wire.CmdWriteZeroes, Offset: 100000, Length: 200000},
				{Command: wire.CmdWriteZeroes, Offset: mib, Length: mib, Flags: wire.FlagNoHole},
				{Command: wire.CmdWriteZeroes, Offset: 3*mib - 7, Length: 65536 + 7, Flags: wire.FlagFUA},
				{Command: wire.CmdTrim, Offset: 3 * mib, Length: mib},
			} {
				c.works(r, nil)
				clear(want[r.Offset : r.Offset+r.Length])
				if got := c.readAt(0, 4*mib); !bytes.Equal(got, want) {
					t.Fatalf("%s, %v: after change %d the content differs", name, m, i)
				}
			}
			c.works(wire.Request{Command: wire.CmdTrim, Offset: 10, Length: 10}, nil) // a hint
			c.works(wire.Request{Command: wire.CmdCache, Length: 4 * mib, Flags: wire.FlagFUA}, nil)
			if m != simple {
				if got := c.statusOf(mib, mib, 0)[0]; len(got) != 1 || got[0].Flags&uint64(wire.StateHole) != 0 {
					t.Errorf("%s: kept zeros: %v", name, got)
				}
				if got := c.statusOf(3*mib+65536, mib-65536, 0)[0]; len(got) != 1 || got[0].Flags&hole != hole {
					t.Errorf("%s: trimmed: %v", name, got)
				}
			}
			c.alive()
		}
	}
}

func TestFastZero(t *testing.T) {
	v := serve(t, setup{}, tools(t, "qemu-img create -q -f qcow2 a.qcow2 4M", "qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 4M", "truncate -s 4M a.raw"))
	fast := func(off, n uint64, more wire.Flags) wire.Request {
		return wire.Request{Command: wire.CmdWriteZeroes, Offset: off, Length: n, Flags: wire.FlagFastZero | more}
	}
	for _, name := range []string{"a.qcow2", "old.qcow2", "a.raw"} {
		c := v.open(t, name, structured)
		c.works(fast(0, 4*mib, 0), nil) // zeros already
		content := random(mib)
		c.writeAt(content, mib)
		if name == "a.qcow2" {
			c.works(fast(0, 4*mib, 0), nil)
			if got := c.readAt(mib, mib); !bytes.Equal(got, make([]byte, mib)) {
				t.Error("not zeros")
			}
			c.writeAt(content, mib)
			c.works(fast(mib, 65536, wire.FlagNoHole), nil)
			clear(content[:65536])
		} else {
			c.fails(wire.ENOTSUP, fast(mib, 65536, 0), nil)
			c.fails(wire.ENOTSUP, fast(0, 4*mib, wire.FlagNoHole), nil)
		}
		c.fails(wire.ENOTSUP, fast(mib+65536+512, 4096, 0), nil) // a part of a cluster
		if got := c.readAt(mib, mib); !bytes.Equal(got, content) {
			t.Errorf("%s: a refused zero has changed something", name)
		}
	}
}

// TestTrimUnsupported: a version 2 image with a backing cannot discard. It is a
// hint.
func TestTrimUnsupported(t *testing.T) {
	v := serve(t, setup{}, raw(t, "base.raw", random(mib)), tools(t, "qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw a.qcow2"))
	c := v.open(t, "a.qcow2", structured)
	c.works(wire.Request{Command: wire.CmdTrim, Length: mib}, nil)
	if got := c.readAt(0, mib); !bytes.Equal(got, random(mib)) {
		t.Error("content differs")
	}
	c.works(wire.Request{Command: wire.CmdWriteZeroes, Length: 65536}, nil)
	if got := c.readAt(0, 65536); !bytes.Equal(got, make([]byte, 65536)) {
		t.Error("not zeros")
	}
}

// TestDurable: flush and FUA are answered when the image has been flushed, also
// for what another connection has written.
func TestDurable(t *testing.T) {
	var flushes atomic.Int32
	v := serve(t, setup{service: with(hooked{flush: func() error { flushes.Add(1); return nil }})}, raw(t, "a.raw", random(mib)))
	c, other := v.open(t, "a.raw", simple), v.open(t, "a.raw", extended)
	expect := func(what string, want int32) {
		t.Helper()
		if got := flushes.Swap(0); got != want {
			t.Errorf("%s: %d flushes, want %d", what, got, want)
		}
	}
	c.alive()
	expect("flush of what nobody wrote to", 0)
	c.writeAt([]byte("abc"), 0)
	expect("write", 0)
	other.alive()
	expect("flush", 1)
	for _, command := range []wire.Command{wire.CmdWrite, wire.CmdTrim, wire.CmdWriteZeroes} {
		c.works(wire.Request{Command: command, Offset: 4096, Flags: wire.FlagFUA}, nil)
		other.works(wire.Request{Command: command, Offset: 4096, Flags: wire.FlagFUA}, nil)
		expect(command.String(), 2)
	}
	c.works(wire.Request{Command: wire.CmdRead, Length: 1, Flags: wire.FlagFUA}, nil)
	expect("read", 0)
}

// TestErrors: what goes wrong below is told, and the connection goes on.
func TestErrors(t *testing.T) {
	var fault atomic.Pointer[error]
	fail := func() error {
		if err := fault.Load(); err != nil {
			return *err
		}
		return nil
	}
	v := serve(t, setup{service: with(hooked{write: fail}), options: quiet}, raw(t, "a.raw", random(mib)))
	for _, m := range modes {
		c := v.open(t, "a.raw", m)
		c.writeAt([]byte("x"), 0)
		for _, tt := range []struct {
			err   error
			errno wire.Errno
		}{
			{storage.ErrNoSpace, wire.ENOSPC},
			{storage.ErrConflict, wire.EPERM},
			{storage.ErrReadOnly, wire.EPERM},
			{errors.New("secret: " + v.dir), wire.EIO},
		} {
			fault.Store(&tt.err)
			res := c.call(wire.Request{Command: wire.CmdWrite, Offset: 512}, []byte("abc"))
			if res.errno != tt.errno || bytes.Contains([]byte(res.text), []byte(v.dir)) {
				t.Errorf("%v: %v: %v, %q", m, tt.err, res.errno, res.text)
			}
			fault.Store(nil)
			c.writeAt([]byte("x"), 0)
		}
	}
}

// TestLost: who has written to an image that failed is told so from there on,
// whatever is asked for; who has not, and who connects anew, goes on.
func TestLost(t *testing.T) {
	var failing atomic.Bool
	flush := func() error {
		if failing.Swap(false) {
			return storage.ErrOutOfService
		}
		return nil
	}
	v := serve(t, setup{service: with(hooked{flush: flush}), options: quiet}, raw(t, "a.raw", make([]byte, mib)))
	writer, another, reader := v.open(t, "a.raw", structured), v.open(t, "a.raw", structured), v.open(t, "a.raw", simple)
	writer.writeAt([]byte("abc"), 0)
	another.writeAt([]byte("def"), 3)
	if got := reader.readAt(0, 6); string(got) != "abcdef" {
		t.Errorf("%q", got)
	}
	failing.Store(true)
	flushed := wire.Request{Command: wire.CmdFlush}
	writer.fails(wire.EIO, flushed, nil)
	for range 2 {
		for _, c := range []*client{writer, another} {
			c.fails(wire.EIO, flushed, nil)
			c.fails(wire.EIO, wire.Request{Command: wire.CmdWrite}, []byte("ghi"))
			if res := c.failedRead(wire.Request{Command: wire.CmdRead, Length: 3}); res.errno != wire.EIO {
				t.Error(res.errno)
			}
		}
		reader.alive()
		if got := reader.readAt(0, 6); string(got) != "abcdef" {
			t.Errorf("%q", got)
		}
	}
	fresh := v.open(t, "a.raw", structured)
	fresh.writeAt([]byte("jkl"), 0)
	fresh.alive()
	reader.writeAt([]byte("mno"), 3)
	if got := fresh.readAt(0, 6); string(got) != "jklmno" {
		t.Errorf("%q", got)
	}
}

// TestReplaced: a file that is replaced is another image. Who has only read
// follows it.
func TestReplaced(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", bytes.Repeat([]byte{1}, 4096)))
	c := v.open(t, "a.raw", structured)
	if got := c.readAt(0, 1); got[0] != 1 {
		t.Error(got)
	}
	raw(t, "new", bytes.Repeat([]byte{2}, 2048))(v.dir)
	run(t, v.dir, "mv", "new", filepath.Join(v.dir, "a.raw"))
	if got := c.readAt(0, 1); got[0] != 2 {
		t.Error(got)
	}
	if res := c.failedRead(wire.Request{Command: wire.CmdRead, Offset: 2048, Length: 512}); res.errno != wire.EINVAL {
		t.Error(res.errno)
	}
	c.fails(wire.ENOSPC, wire.Request{Command: wire.CmdWrite, Offset: 2048}, []byte("x"))
}
