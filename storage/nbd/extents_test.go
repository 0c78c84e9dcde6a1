package nbd_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
	"github.com/extentd/extentd/storage/storagetest"
)

// told is a list as text: offset+length and status of each.
func told(l *storage.ExtentList) string {
	var all []string
	for i := range l.Len() {
		m := l.At(i)
		all = append(all, fmt.Sprintf("%d+%d %v", m.Offset, m.Length, m.Status))
		if m.NodeOffset != m.Offset {
			all = append(all, "at another offset")
		}
	}
	return strings.Join(all, ", ")
}

func TestExtents(t *testing.T) {
	const size = 1 << 20
	d := func(length, flags uint64) wire.Descriptor { return wire.Descriptor{Length: length, Flags: flags} }
	hole, zero, data := storage.Zero|storage.OffsetValid, storage.Zero|storage.Alloc|storage.OffsetValid, storage.Alloc|storage.OffsetValid
	for _, c := range []struct {
		name    string
		minimum uint32
		off, n  int64
		all     []wire.Descriptor
		want    string
	}{
		{
			"all that there is", 1, 0, 4000,
			[]wire.Descriptor{d(1000, 0), d(1000, 1), d(1000, 2), d(1000, 3)},
			fmt.Sprintf("0+2000 %v, 2000+1000 %v, 3000+1000 %v", data, zero, hole),
		},
		{"unknown flags", 1, 0, 4096, []wire.Descriptor{d(4096, 0xfc)}, fmt.Sprintf("0+4096 %v", data)},
		{"stops early", 1, 4096, 8192, []wire.Descriptor{d(10, 3)}, fmt.Sprintf("4096+10 %v", hole)},
		{"goes further", 1, 4096, 8192, []wire.Descriptor{d(size-4096, 3)}, fmt.Sprintf("4096+%d %v", size-4096, hole)},
		{"more than was asked for", 1, 0, 4096, []wire.Descriptor{d(4096, 3), d(4096, 0)}, fmt.Sprintf("0+4096 %v", hole)},
		{"odd offset", 4096, 5000, 100, []wire.Descriptor{d(8192, 3)}, fmt.Sprintf("5000+7288 %v", hole)},
		{"a divided block", 4096, 0, 16384, []wire.Descriptor{d(5000, 3), d(5000, 0)}, fmt.Sprintf("0+4096 %v", hole)},
		{"a divided block comes first", 4096, 0, 16384, []wire.Descriptor{d(100, 3), d(9000, 3)}, fmt.Sprintf("0+4096 %v", data)},
		{"a divided block follows", 4096, 0, 16384, []wire.Descriptor{d(4096, 3), d(100, 0), d(10000, 3)}, fmt.Sprintf("0+4096 %v", hole)},
	} {
		t.Run(c.name, func(t *testing.T) {
			forms(t, func(t *testing.T, s *fake, _ []byte) {
				if s.simple {
					return
				}
				s.set(func() { s.info.Size, s.info.Minimum, s.info.Preferred, s.info.Maximum = size, c.minimum, 4096, size })
				s.on(func(p *peer, r wire.Request, _ []byte) bool {
					if r.Offset%uint64(c.minimum) != 0 || r.Length%uint64(c.minimum) != 0 {
						t.Errorf("asked for %d bytes at %d", r.Length, r.Offset)
					}
					p.status(r, wire.FlagDone, c.all...)
					return true
				})
				f := openFile(t, options(s.uri))
				var l storage.ExtentList
				if err := f.Extents(t.Context(), c.off, c.n, &l); err != nil || told(&l) != c.want {
					t.Errorf("%s, %v, want %s", told(&l), err, c.want)
				}
			})
		})
	}
}

// What is no block status ends the connection.
func TestBadStatus(t *testing.T) {
	status := func(all ...wire.Descriptor) func(p *peer, r wire.Request) {
		return func(p *peer, r wire.Request) { p.status(r, wire.FlagDone, all...) }
	}
	for name, send := range map[string]func(p *peer, r wire.Request){
		"none":          status(),
		"empty":         status(wire.Descriptor{}),
		"past the end":  status(wire.Descriptor{Length: 4096}, wire.Descriptor{Length: 64 << 10}),
		"far too long":  status(wire.Descriptor{Length: math.MaxUint64}),
		"it overflows":  status(wire.Descriptor{Length: 1 << 63}, wire.Descriptor{Length: 1 << 63}, wire.Descriptor{Length: 1 << 63}),
		"just an end":   func(p *peer, r wire.Request) { p.chunk(r, wire.ChunkNone, wire.FlagDone, nil) },
		"another shape": func(p *peer, r wire.Request) { p.chunk(r, wire.ChunkBlockStatus, wire.FlagDone, make([]byte, 11)) },
		"another context": func(p *peer, r wire.Request) {
			p.chunk(r, wire.ChunkBlockStatus, wire.FlagDone, make([]byte, 12))
			p.chunk(r, wire.ChunkBlockStatusExt, wire.FlagDone, make([]byte, 24))
		},
		"two": func(p *peer, r wire.Request) {
			p.status(r, 0, wire.Descriptor{Length: 10})
			p.status(r, wire.FlagDone, wire.Descriptor{Length: 10})
		},
		"data": func(p *peer, r wire.Request) { p.data(r, wire.FlagDone, r.Offset, make([]byte, r.Length)) },
	} {
		t.Run(name, func(t *testing.T) {
			forms(t, func(t *testing.T, s *fake, _ []byte) {
				if s.simple {
					return
				}
				s.on(func(p *peer, r wire.Request, _ []byte) bool {
					if p.number == 1 {
						send(p, r)
					}
					return p.number == 1
				})
				f := openFile(t, options(s.uri))
				var l storage.ExtentList
				if err := f.Extents(t.Context(), 0, 4096, &l); err != nil || l.Len() != 1 || s.connections() != 2 {
					t.Errorf("%s, %v, %d connections", told(&l), err, s.connections())
				}
			})
		})
	}
}

// The map of a sparse file is that of the file, from real servers.
func TestMap(t *testing.T) {
	content := random(t, 1<<20)
	holes := []storagetest.Range{{Offset: 128 << 10, Length: 256 << 10}, {Offset: 768 << 10, Length: 256 << 10}}
	for _, h := range holes {
		clear(content[h.Offset : h.Offset+h.Length])
	}
	data, hole := storage.Alloc|storage.OffsetValid, storage.Zero|storage.OffsetValid
	want := fmt.Sprintf("0+131072 %v, 131072+262144 %v, 393216+393216 %v, 786432+262144 %v", data, hole, data, hole)
	name := file(t, content, holes...)
	for server, uri := range map[string]string{"nbdkit": nbdkit(t, "file", name), "qemu-nbd": qemuNBD(t, name)} {
		f := openFile(t, options(uri))
		var l storage.ExtentList
		for off := int64(0); off < 1<<20; off = l.End() {
			if err := f.Extents(t.Context(), off, 1<<20-off, &l); err != nil {
				t.Fatal(server, err)
			}
		}
		if told(&l) != want {
			t.Errorf("%s: %s, want %s", server, told(&l), want)
		}
	}
}

// A huge export is asked for as much at a time as lengths can say.
func TestHuge(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, _ []byte) {
		s.set(func() { s.info.Size = 1 << 61 })
		s.on(func(p *peer, r wire.Request, _ []byte) bool {
			status := r.Command == wire.CmdBlockStatus
			if r.Length == 0 || r.Length > 4<<30-1 && (!p.extended || !status) {
				t.Errorf("%v of %d bytes", r.Command, r.Length)
			}
			if !status {
				p.done(r, 0)
			}
			return !status
		})
		f := openFile(t, options(s.uri))
		const off = 1<<61 - 10<<30
		var l storage.ExtentList
		for _, err := range []error{
			f.Extents(t.Context(), off, 10<<30, &l),
			f.Zero(t.Context(), off, 10<<30, false),
			f.Trim(t.Context(), off, 10<<30),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		if s.count(wire.CmdWriteZeroes) != 3 || s.count(wire.CmdTrim) != 3 {
			t.Error("not as few as possible")
		}
		if s.extended && l.End() != 1<<61 {
			t.Errorf("extents up to %d", l.End())
		}
	})
}

// A server that finds a zero too long gets it in pieces.
func TestTooLong(t *testing.T) {
	s := newFake(t, make([]byte, 100), func(s *fake) {
		s.info.Size, s.info.Minimum, s.info.Preferred, s.info.Maximum = 1<<20, 1, 4096, 64<<10
	})
	s.on(func(p *peer, r wire.Request, _ []byte) bool {
		if r.Length > 64<<10 {
			p.fail(r, wire.EOVERFLOW)
		} else {
			p.done(r, 0)
		}
		return true
	})
	f := openFile(t, options(s.uri))
	if err := f.Zero(t.Context(), 0, 1<<20, true); err != nil || s.count(wire.CmdWriteZeroes) != 17 {
		t.Error(err, s.count(wire.CmdWriteZeroes))
	}
	if err := f.Trim(t.Context(), 0, 1<<20); err != nil {
		t.Error(err)
	}
}
