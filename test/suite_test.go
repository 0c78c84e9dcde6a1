package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestSuite re-creates cases of QEMU's own test suite (qemu-iotests) that
// concern writing, each by its number there and what it shows. 026 and 305,
// which need faults, are in package crash; 103 and 122 are about options that
// only qemu-img has.
func TestSuite(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, m *maker)
	}{
		{"031 unknown header extensions survive", case031},
		{"036 unknown feature bits", case036},
		{"039 lazy refcounts and a crash", case039},
		{"046 overlapping allocating writes", case046},
		{"060 a write that would overlap metadata marks the image corrupt", case060},
		{"060 an entry that leads into metadata is not written through", case060entry},
		{"061 changed from version 2 to 3 and back", case061},
		{"066 discard of zero clusters", case066},
		{"108 refcounts are rebuilt", case108},
		{"112 refcounts of every width", case112},
		{"121 the refcount table grows", case121},
		{"125 preallocated images grow", case125},
		{"138 check beyond 2^32", case138},
		{"154 unaligned zeros over a backing", case154},
		{"179 zeros with and without unmap, none written twice", case179},
		{"214 compressed clusters are freed whole", case214},
		{"244 external data file", case244},
		{"246 resize with a bitmap", case246},
		{"250 discard beyond 2 GiB", case250},
		{"271 subclusters", case271},
		{"274 growth over a longer backing", case274},
		{"290 discard in version 2 and 3", case290},
		{"313 many refcount blocks at once", case313},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			test.run(t, newMaker(t, t.TempDir(), "case"))
		})
	}
}

// unknownExtension puts a header extension that nobody knows before the end of
// those that are there.
func (m *maker) unknownExtension(file string) []byte {
	header := m.peek(file, 0, 4096)
	at := int(binary.BigEndian.Uint32(header[100:]))
	for binary.BigEndian.Uint32(header[at:]) != 0 {
		at += 8 + (int(binary.BigEndian.Uint32(header[at+4:]))+7)&^7
	}
	extension := append(be32(0x12345678), be32(11)...)
	extension = append(extension, "what is it?\x00\x00\x00\x00\x00"...)
	m.poke(file, int64(at), append(extension, 0, 0, 0, 0, 0, 0, 0, 0))
	return extension
}

func case031(t *testing.T, m *maker) {
	file := m.create(".qcow2", mib, "lazy_refcounts=on")
	extension := m.unknownExtension(file)
	s := serve(t, m.dir)
	must(t, s.put(file, 0, make([]byte, 100), true))
	must(t, s.resize(file, 64*mib, false))
	must(t, s.resize(file, 2048*mib, false)) // a longer L1 table
	must(t, s.put(file, 2047*mib, make([]byte, 100), true))
	s.stop()
	m.checkClean(t, file)
	if !bytes.Contains(m.peek(file, 0, 4096), extension) {
		t.Error("the unknown header extension is gone")
	}
	m.io(file, "write 1M 64k")
	m.checkClean(t, file)
}

func case036(t *testing.T, m *maker) {
	file := m.create(".qcow2", mib)
	m.poke(file, 80, be64(1<<62)) // compatible
	m.poke(file, 88, be64(1<<61)) // autoclear
	s := serve(t, m.dir)
	_, err := s.read(file, 0, 512)
	must(t, err)
	if got := m.peek(file, 88, 8); !bytes.Equal(got, be64(1<<61)) {
		t.Errorf("a read changed the autoclear bits to %x", got)
	}
	must(t, s.put(file, 0, make([]byte, 100), true))
	s.stop()
	if got := m.peek(file, 80, 8); !bytes.Equal(got, be64(1<<62)) {
		t.Errorf("the compatible bits are %x", got)
	}
	if got := m.peek(file, 88, 8); !bytes.Equal(got, be64(0)) {
		t.Errorf("the autoclear bits are %x after a write", got)
	}
	m.poke(file, 72, be64(1<<63)) // incompatible
	before := readFile(t, m.path(file))
	s = serve(t, m.dir)
	mustRefuse(t, s.put(file, 0, []byte("x"), true), http.StatusUnprocessableEntity, "unsupported-feature")
	s.stop()
	if !bytes.Equal(readFile(t, m.path(file)), before) {
		t.Error("the file of an image that is refused has changed")
	}
}

func (m *maker) isDirty(file string) bool { return m.peek(file, 79, 1)[0]&1 != 0 }

func case039(t *testing.T, m *maker) {
	file := m.create(".qcow2", mib, "lazy_refcounts=on")
	s := serve(t, m.dir)
	must(t, s.put(file, 0, []byte("first"), true))
	if !m.isDirty(file) {
		t.Error("not marked dirty while it is written to")
	}
	s.stop()
	if m.isDirty(file) {
		t.Error("dirty after a clean stop")
	}
	m.checkClean(t, file)
	for i, repair := range []string{"ours", "QEMU's", "verb", "check"} {
		at := 64 * kib * int64(i+1)
		s := serve(t, m.dir)
		must(t, s.put(file, at, bytes.Repeat([]byte(repair), 1000), true))
		s.kill()
		if !m.isDirty(file) {
			t.Fatal("not dirty after a crash")
		}
		switch repair {
		case "QEMU's":
			m.io(file, "write 512k 512")
		case "verb":
			if out, errs, code := verb(t, m.dir, "check", "-r", "all", file); code != 0 {
				t.Fatalf("check -r all: exit code %d\n%s%s", code, out, errs)
			}
		case "check":
			s := serve(t, m.dir)
			if v, err := s.check(file, "all"); err != nil || v.Corruptions != 0 {
				t.Fatalf("%+v, %v", v, err)
			}
			s.stop()
		default:
			s := serve(t, m.dir)
			_, err := s.read(file, 0, 512)
			must(t, err)
			if !m.isDirty(file) {
				t.Error("a read repaired the image")
			}
			must(t, s.put(file, 512*kib, make([]byte, 512), false))
			s.stop()
		}
		if m.isDirty(file) {
			t.Errorf("still dirty after %s repair", repair)
		}
		m.checkClean(t, file)
		got := qemuRead(t, m.dir, file, at, 512)
		if !bytes.HasPrefix(got, []byte(repair)) {
			t.Errorf("after %s repair the image reads %q", repair, got[:16])
		}
	}
}

// case046 is QEMU's pattern of requests that share clusters, as one burst.
func case046(t *testing.T, m *maker) {
	base := m.create("-base.qcow2", 6*mib)
	m.io(base, "write -P 1 0 6M")
	file := m.overlay(".qcow2", base, 6*mib)
	s := serve(t, m.dir)
	type request struct {
		pattern     byte
		off, length int64
	}
	requests := []request{
		{10, 0x18000, 0x20000},
		{11, 0x20000, 0x20000},
		{40, 0x48000, 0x8000},
		{41, 0x50000, 0x8000},
		{80, 0x88000, 0x28000},
		{81, 0x90000, 0x10000},
		{120, 0x100000, 0x10000},
		{121, 0x108000, 0x10000},
	}
	errs := make(chan error)
	for _, r := range requests {
		go func() { errs <- s.put(file, r.off, bytes.Repeat([]byte{r.pattern}, int(r.length)), false) }()
	}
	for range requests {
		must(t, <-errs)
	}
	got, err := s.read(file, 0, 2*mib)
	must(t, err)
	for i, b := range got {
		allowed := []byte{1}
		for _, r := range requests {
			if at := int64(i); at >= r.off && at < r.off+r.length {
				allowed = append(allowed, r.pattern)
			}
		}
		if len(allowed) > 1 {
			allowed = allowed[1:]
		}
		if !bytes.Contains(allowed, []byte{b}) {
			t.Fatalf("byte %#x is %d, and can be %v", i, b, allowed)
		}
	}
	s.stop()
	m.checkClean(t, file)
}

func case061(t *testing.T, m *maker) {
	file := m.create(".qcow2", 4*mib, "compat=0.10")
	for i, compat := range []string{"", "1.1", "0.10", "1.1"} {
		if compat != "" {
			m.run("qemu-img", "amend", "-f", "qcow2", "-o", "compat="+compat, file)
		}
		s := serve(t, m.dir)
		at := int64(i) * mib
		must(t, s.put(file, at, bytes.Repeat([]byte{byte(i + 1)}, int(mib)), false))
		must(t, s.zero(file, at+100, 300*kib, i%2 == 0))
		must(t, s.trim(file, at+512*kib, 128*kib))
		s.stop()
		m.checkClean(t, file)
		got := qemuRead(t, m.dir, file, at, mib)
		want := bytes.Repeat([]byte{byte(i + 1)}, int(mib))
		clear(want[100 : 100+300*kib])
		clear(want[512*kib : 640*kib])
		if d := firstDifference(got, want); d >= 0 {
			t.Fatalf("compat %q: byte %d differs", compat, d)
		}
	}
}

func case066(t *testing.T, m *maker) {
	file := m.create(".qcow2", 4*mib)
	s := serve(t, m.dir)
	must(t, s.put(file, 0, bytes.Repeat([]byte{1}, int(2*mib)), true))
	must(t, s.zero(file, 0, mib, true))
	must(t, s.zero(file, 2*mib, mib, false))
	full := m.onDisk(t, file)
	must(t, s.trim(file, 0, 3*mib))
	s.stop()
	m.checkClean(t, file)
	for _, e := range spansOf(qemuMap(t, m.dir, file)) {
		if !e.Zero || e.Offset >= 0 {
			t.Errorf("after the discard the map says %+v", e)
		}
	}
	if now := m.onDisk(t, file); now > full-2*mib+64*kib {
		t.Errorf("the file has %d bytes on disk after a discard of 2 MiB, and had %d", now, full)
	}
}

// onDisk is how much of a file is allocated, bytes.
func (m *maker) onDisk(t *testing.T, file string) int64 {
	t.Helper()
	out := m.run("stat", "-c", "%b", file)
	var blocks int64
	if _, err := fmt.Sscan(out, &blocks); err != nil {
		t.Fatal(err)
	}
	return blocks * 512
}
