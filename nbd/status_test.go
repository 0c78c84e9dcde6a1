package nbd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// descriptors are pairs of length and flags.
func descriptors(pairs ...uint64) []wire.Descriptor {
	var all []wire.Descriptor
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, wire.Descriptor{Length: pairs[i], Flags: pairs[i+1]})
	}
	return all
}

func (c *client) statusOf(off, n uint64, flags wire.Flags) map[uint32][]wire.Descriptor {
	c.t.Helper()
	return c.works(wire.Request{Command: wire.CmdBlockStatus, Offset: off, Length: n, Flags: flags}, nil).status
}

const (
	data = 0
	hole = uint64(wire.StateHole | wire.StateZero)
	mib  = 1 << 20
)

// layered has data of the top in the third MiB, of the backing in the second,
// zeros of the backing in the fifth, and a backing that is 8 MiB short.
var layered = []string{
	"qemu-img create -q -f qcow2 base.qcow2 8M",
	"qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 16M",
}

func layer(t *testing.T) func(dir string) {
	return func(dir string) {
		tools(t, layered[0])(dir)
		run(t, dir, "qemu-io", "-c", "write -P 1 1M 1M", "-c", "write -z 4M 1M", "base.qcow2")
		tools(t, layered[1])(dir)
		run(t, dir, "qemu-io", "-c", "write -P 2 2M 1M", "top.qcow2")
	}
}

func TestStatus(t *testing.T) {
	v := serve(t, setup{}, layer(t))
	allocation := descriptors(1*mib, hole, 2*mib, data, 13*mib, hole)
	depth := descriptors(1*mib, 0, 1*mib, 2, 1*mib, 1, 1*mib, 0, 1*mib, 2, 3*mib, 0, 8*mib, 2)
	for _, m := range modes[1:] {
		c := v.open(t, "top.qcow2", m)
		for _, tt := range []struct {
			name   string
			off, n uint64
			flags  wire.Flags
			want   map[uint32][]wire.Descriptor
		}{
			{"all", 0, 16 * mib, 0, map[uint32][]wire.Descriptor{0: allocation, 1: depth}},
			{"one", 0, 16 * mib, wire.FlagReqOne, map[uint32][]wire.Descriptor{0: allocation[:1], 1: depth[:1]}},
			{"one, of much", 3 * mib, 13 * mib, wire.FlagReqOne, map[uint32][]wire.Descriptor{0: descriptors(13*mib, hole), 1: depth[3:4]}},
			{"one, of little", 100, 50, wire.FlagReqOne | wire.FlagFUA, map[uint32][]wire.Descriptor{0: descriptors(50, hole), 1: descriptors(50, 0)}},
			{"a byte", 2*mib + 1, 1, 0, map[uint32][]wire.Descriptor{0: descriptors(1, data), 1: descriptors(1, 1)}},
			{"across", mib - 512, 1024, 0, map[uint32][]wire.Descriptor{0: descriptors(512, hole, 512, data), 1: descriptors(512, 0, 512, 2)}},
			{"the last byte", 16*mib - 1, 1, 0, map[uint32][]wire.Descriptor{0: descriptors(1, hole), 1: descriptors(1, 2)}},
		} {
			if diff := cmp.Diff(tt.want, c.statusOf(tt.off, tt.n, tt.flags)); diff != "" {
				t.Errorf("%v, %s: %s", m, tt.name, diff)
			}
		}
	}
}

// TestStatusQuery: a client may ask for some of the contexts.
func TestStatusQuery(t *testing.T) {
	v := serve(t, setup{}, layer(t))
	c := v.open(t, "top.qcow2", extended)
	if c.info.Flags&wire.BlockStatusPayload == 0 {
		t.Errorf("flags %#x", c.info.Flags)
	}
	query := func(n uint64, ids ...uint32) (wire.Request, []byte) {
		return wire.Request{Command: wire.CmdBlockStatus, Offset: mib, Flags: wire.FlagPayloadLen}, wire.AppendStatusQuery(nil, n, ids)
	}
	want := map[uint32][]wire.Descriptor{1: descriptors(mib, 2, mib, 1)}
	if diff := cmp.Diff(want, c.works(query(2*mib, 1)).status); diff != "" {
		t.Error(diff)
	}
	if got := c.works(query(2*mib, 1, 0)).status; len(got) != 2 {
		t.Error(got)
	}
	for _, ids := range [][]uint32{nil, {2}, {0, 0}, {1 << 31}, {0, 1, 0}} {
		r, p := query(mib, ids...)
		c.fails(wire.EINVAL, r, p)
	}
	r, p := query(0, 0)
	c.fails(wire.EINVAL, r, p)
	r, p = query(16*mib, 0)
	c.fails(wire.EINVAL, r, p)
	r, _ = query(mib, 0)
	c.fails(wire.EINVAL, r, make([]byte, 70000))
	c.fails(wire.EINVAL, r, []byte{1, 2, 3})
	c = v.greet(t) // not without contexts
	c.agree(extended)
	c.choose("top.qcow2")
	r, p = query(mib, 0)
	c.fails(wire.EINVAL, r, p)
}

func TestOneContext(t *testing.T) {
	v := serve(t, setup{}, layer(t))
	c := v.greet(t)
	c.agree(structured)
	c.setContexts("top.qcow2", wire.AllocationDepth)
	c.choose("top.qcow2")
	if diff := cmp.Diff(map[uint32][]wire.Descriptor{1: descriptors(512, 1)}, c.statusOf(2*mib, 512, 0)); diff != "" {
		t.Error(diff)
	}
}

// blocky is an image in which every other 4 KiB is data.
func blocky(t *testing.T, name string, n int) func(dir string) {
	return func(dir string) {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for i := range n {
			if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), int64(i)*8192+4096); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestManyDescriptors: a reply ends when it is long enough, and the client goes on
// from there.
func TestManyDescriptors(t *testing.T) {
	const n = 70_000
	v := serve(t, setup{}, blocky(t, "a.raw", n))
	for _, m := range modes[1:] {
		c := v.open(t, "a.raw", m)
		replies, count := 0, 0
		for off := uint64(0); off < 8192*n; replies++ {
			list := c.statusOf(off, min(8192*n-off, 1<<32-4096), 0)[0]
			for i, d := range list {
				if want := []uint64{hole, data}[(off>>12)&1]; d.Length != 4096 || d.Flags != want {
					t.Fatalf("%v: descriptor %d at %d: %+v", m, i, off, d)
				}
				off += d.Length
				count++
			}
		}
		if count != 2*n || replies < 2 || replies > 5 {
			t.Errorf("%v: %d descriptors in %d replies", m, count, replies)
		}
	}
}

// TestMinimum: with blocks of 64 KiB the size and all boundaries are multiples,
// and requests that are not fail before the image is asked.
func TestMinimum(t *testing.T) {
	const block = 64 << 10
	content := random(10*block + 5000)
	clear(content[2*block : 3*block])           // a block
	clear(content[4*block+4096 : 5*block+4096]) // parts of two
	clear(content[9*block : 10*block])
	v := serve(t, setup{service: with(hooked{minimum: block, most: 8 * block})}, func(dir string) {
		raw(t, "full", content)(dir)
		run(t, dir, "cp", "--sparse=always", "full", "a.raw")
	})
	for _, m := range modes {
		c := v.open(t, "a.raw", m)
		if want := (wire.ExportInfo{Size: 10 * block, Minimum: block, Preferred: block, Maximum: 8 * block, Flags: c.info.Flags}); c.info != want {
			t.Errorf("%+v, want %+v", c.info, want)
		}
		for _, command := range []wire.Command{wire.CmdTrim, wire.CmdWriteZeroes, wire.CmdCache, wire.CmdBlockStatus} {
			c.fails(wire.EINVAL, wire.Request{Command: command, Offset: 512, Length: block}, nil)
			c.fails(wire.EINVAL, wire.Request{Command: command, Length: 512}, nil)
		}
		c.fails(wire.EINVAL, wire.Request{Command: wire.CmdWrite, Offset: block}, make([]byte, 512))
		c.fails(wire.EINVAL, wire.Request{Command: wire.CmdWrite}, make([]byte, 9*block))
		for _, r := range []wire.Request{{Offset: 1, Length: block}, {Length: 4096}, {Length: 9 * block}} {
			if res := c.failedRead(r); res.errno != wire.EINVAL {
				t.Errorf("%+v: %v", r, res.errno)
			}
		}
		if got := c.readAt(block, 8*block); !bytes.Equal(got, content[block:9*block]) {
			t.Error("content differs")
		}
		if m == simple {
			continue
		}
		want := descriptors(2*block, data, block, hole, 6*block, data, block, hole)
		if diff := cmp.Diff(want, c.statusOf(0, 10*block, 0)[0]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(descriptors(block, data), c.statusOf(4*block, block, 0)[0]); diff != "" {
			t.Error(diff)
		}
	}
}

// TestReadHoles: zeros are told, not sent, unless the client wants one chunk.
func TestReadHoles(t *testing.T) {
	v := serve(t, setup{}, layer(t), func(dir string) {
		run(t, dir, "qemu-img", "convert", "-O", "raw", "top.qcow2", "top.raw")
	})
	const d, h, none = wire.ChunkOffsetData, wire.ChunkOffsetHole, wire.ChunkNone
	for _, name := range []string{"top.qcow2", "top.raw"} {
		for _, m := range modes[1:] {
			c := v.open(t, name, m)
			want := append(append(append(make([]byte, mib), bytes.Repeat([]byte{1}, mib)...), bytes.Repeat([]byte{2}, mib)...), make([]byte, 13*mib)...)
			for _, tt := range []struct {
				off, n uint64
				flags  wire.Flags
				chunks []wire.Chunk
			}{
				{0, 16 * mib, 0, []wire.Chunk{h, d, h}},
				{0, 16 * mib, wire.FlagDF, []wire.Chunk{d}},
				{mib, mib, 0, []wire.Chunk{d}},
				{mib - 16384, 32768, 0, []wire.Chunk{h, d}},
				{mib - 512, 1024, 0, []wire.Chunk{d}},
				{0, 512, 0, []wire.Chunk{h}},
				{0, 512, wire.FlagDF, []wire.Chunk{h}},
				{3*mib + 1, 100000, 0, []wire.Chunk{h}},
				{5 * mib, mib, wire.FlagDF, []wire.Chunk{h}},
				{5, 0, 0, []wire.Chunk{none}},
			} {
				res := c.works(wire.Request{Command: wire.CmdRead, Offset: tt.off, Length: tt.n, Flags: tt.flags}, nil)
				if !bytes.Equal(res.data, want[tt.off:tt.off+tt.n]) {
					t.Errorf("%s, %v: %d bytes at %d differ", name, m, tt.n, tt.off)
				}
				if diff := cmp.Diff(tt.chunks, res.chunks); diff != "" {
					t.Errorf("%s, %v: %d bytes at %d: %s", name, m, tt.n, tt.off, diff)
				}
			}
		}
	}
}
