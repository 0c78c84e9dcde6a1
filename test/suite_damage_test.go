package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"testing"
)

// refcountOf finds where the 16-bit refcount of a cluster of 64 KiB is, in an
// image with one refcount block.
func (m *maker) refcountOf(file string, offset int64) int64 {
	table := int64(binary.BigEndian.Uint64(m.peek(file, 48, 8)))
	block := int64(binary.BigEndian.Uint64(m.peek(file, table, 8)))
	return block + offset/(64*kib)*2
}

// l2Of is the offset of the first L2 table.
func (m *maker) l2Of(file string) int64 {
	l1 := int64(binary.BigEndian.Uint64(m.peek(file, 40, 8)))
	return int64(binary.BigEndian.Uint64(m.peek(file, l1, 8)) & 0x00fffffffffffe00)
}

func (m *maker) isCorrupt(file string) bool { return m.peek(file, 79, 1)[0]&2 != 0 }

// expectCorrupt wants a write to be refused, as well as what comes after it, and
// the image to be marked; and a repair to make it good again.
func expectCorrupt(t *testing.T, m *maker, file string, off int64) {
	t.Helper()
	s := serve(t, m.dir)
	mustRefuse(t, s.put(file, off, bytes.Repeat([]byte("x"), 512), true), http.StatusUnprocessableEntity, "corrupt-image")
	if !m.isCorrupt(file) {
		t.Error("the image is not marked corrupt")
	}
	mustRefuse(t, s.put(file, 0, []byte("again"), true), http.StatusUnprocessableEntity, "corrupt-image")
	s.stop()
	s = serve(t, m.dir)
	mustRefuse(t, s.put(file, 0, []byte("again"), true), http.StatusUnprocessableEntity, "corrupt-image")
	if got, err := s.read(file, 0, 512); err != nil || got[0] != 5 {
		t.Errorf("a corrupt image reads %v, %v", got[:min(8, len(got))], err)
	}
	s.stop()
}

func case060(t *testing.T, m *maker) {
	file := m.create(".qcow2", 64*mib)
	m.io(file, "write -P 5 0 64k")
	m.poke(file, m.refcountOf(file, m.l2Of(file)), []byte{0, 0}) // the L2 table looks free
	expectCorrupt(t, m, file, mib)
	if out, errs, code := verb(t, m.dir, "check", "-r", "all", file); code != 0 {
		t.Fatalf("check -r all: exit code %d\n%s%s", code, out, errs)
	}
	m.checkClean(t, file)
	if m.isCorrupt(file) {
		t.Error("still marked corrupt after a repair")
	}
	s := serve(t, m.dir)
	must(t, s.put(file, mib, []byte("good again"), true))
	if got, err := s.read(file, 0, 512); err != nil || got[0] != 5 {
		t.Errorf("after the repair: %v, %v", got, err)
	}
	s.stop()
	m.checkClean(t, file)
}

func case060entry(t *testing.T, m *maker) {
	const copied = uint64(1) << 63
	for name, where := range map[string]func(file string) uint64{
		"header":    func(string) uint64 { return 0 },
		"L1":        func(file string) uint64 { return binary.BigEndian.Uint64(m.peek(file, 40, 8)) },
		"L2":        func(file string) uint64 { return uint64(m.l2Of(file)) },
		"refcounts": func(file string) uint64 { return binary.BigEndian.Uint64(m.peek(file, 48, 8)) },
	} {
		t.Run(name, func(t *testing.T) {
			file := m.create("-"+name+".qcow2", 64*mib)
			m.io(file, "write -P 5 0 128k")
			to := where(file)
			if to == 0 {
				return // offset 0 means unallocated: nothing to overlap
			}
			m.poke(file, m.l2Of(file)+8, be64(copied|to)) // the second cluster
			metadata := m.peek(file, int64(to), 4096)
			expectCorrupt(t, m, file, 64*kib)
			if !bytes.Equal(m.peek(file, int64(to), 4096), metadata) {
				t.Error("the metadata was written over")
			}
		})
	}
}

func case108(t *testing.T, _ *maker) {
	for name, damage := range map[string]func(m *maker, file string){
		"no block": func(m *maker, file string) {
			m.poke(file, int64(binary.BigEndian.Uint64(m.peek(file, 48, 8))), be64(0))
		},
		"block unaligned": func(m *maker, file string) {
			m.poke(file, int64(binary.BigEndian.Uint64(m.peek(file, 48, 8))), be64(0x20200))
		},
		"block beyond the end": func(m *maker, file string) {
			m.poke(file, int64(binary.BigEndian.Uint64(m.peek(file, 48, 8))), be64(0x10000000))
		},
		"all zero": func(m *maker, file string) { m.poke(file, m.refcountOf(file, 0), make([]byte, 64)) },
		"all wrong": func(m *maker, file string) {
			m.poke(file, m.refcountOf(file, 0), bytes.Repeat([]byte{0, 3}, 32))
		},
		"table is data": func(m *maker, file string) { m.poke(file, 48, be64(uint64(m.l2Of(file)+64*kib))) },
	} {
		for _, by := range []string{"verb", "server"} {
			t.Run(name+" "+by, func(t *testing.T) {
				m := newMaker(t, t.TempDir(), "rebuilt")
				file := m.create(".qcow2", 4*mib)
				m.io(file, m.write(0, mib), m.write(2*mib, mib))
				want, err := convert(m.dir, file)
				must(t, err)
				damage(m, file)
				if by == "verb" {
					out, errs, code := verb(t, m.dir, "check", "-r", "all", file)
					if code != 0 {
						t.Fatalf("check -r all: exit code %d\n%s%s", code, out, errs)
					}
				} else {
					s := serve(t, m.dir)
					if v, err := s.check(file, "all"); err != nil || v.Corruptions+v.Leaks != 0 || v.CorruptionsFixed+v.LeaksFixed == 0 {
						t.Fatalf("%+v, %v", v, err)
					}
					must(t, s.put(file, mib, []byte("good again"), true))
					s.stop()
				}
				m.checkClean(t, file)
				got, err := convert(m.dir, file)
				must(t, err)
				if i := firstDifference(readFile(t, got)[:mib], readFile(t, want)[:mib]); i >= 0 {
					t.Errorf("byte %d differs after the repair", i)
				}
			})
		}
	}
}

func case138(t *testing.T, m *maker) {
	for _, at := range []uint64{1 << 32, 1<<32 + 1<<16, 1 << 40, 1<<56 - 1<<16} {
		file := m.create(fmt.Sprintf("-%x.qcow2", at), 64*mib)
		m.io(file, "write -P 5 0 64k")
		m.poke(file, m.l2Of(file)+8, be64(1<<63|at))
		before := readFile(t, m.path(file))
		_, err := m.stdout("qemu-img", "check", "--output=json", "-f", "qcow2", file)
		out, errs, code := verb(t, m.dir, "check", "--output", "json", file)
		if code != exitCode(err) {
			t.Errorf("entry %#x: extentd check has exit code %d, and qemu-img %d\n%s%s", at, code, exitCode(err), out, errs)
		}
		if !bytes.Equal(readFile(t, m.path(file)), before) {
			t.Error("a check that repairs nothing changed the file")
		}
		if info, err := os.Stat(m.path(file)); err != nil || info.Size() > gib {
			t.Errorf("the file has %d bytes", info.Size())
		}
	}
}
