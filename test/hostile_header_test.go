package test

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// Offsets in the header of a qcow2 image.
const (
	atMagic          = 0
	atVersion        = 4
	atBackingOffset  = 8
	atBackingSize    = 16
	atClusterBits    = 20
	atSize           = 24
	atCrypt          = 32
	atL1Size         = 36
	atL1             = 40
	atRefcountTable  = 48
	atRefcountLength = 56
	atSnapshotCount  = 60
	atSnapshots      = 64
	atIncompatible   = 72
	atCompatible     = 80
	atAutoclear      = 88
	atRefcountOrder  = 96
	atHeaderLength   = 100
	atCompression    = 104
	atExtensions     = 112 // in what qemu-img 7.2 makes
)

// A poke overwrites bytes of an image.
type poke struct {
	off  int64
	data []byte
}

// TestHostileHeaders overwrites every field of the header with every bad value
// that there is, and wants QEMU's verdict on each.
func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	templates := headerTemplates(a)
	for i, c := range headerCases() {
		t.Run(c.name, func(t *testing.T) {
			template := templates[c.template]
			file := a.file(fmt.Sprintf("-%d.qcow2", i))
			a.run("cp", "--sparse=always", template, file)
			for _, p := range c.pokes {
				a.poke(file, p.off, p.data)
			}
			a.judge(t, file, c.stricter)
		})
	}
	a.close(t)
}

type headerCase struct {
	name     string
	template string // "", "v2", "snapshot", "bitmap", "data-file"
	pokes    []poke
	stricter bool // a refusal is right even where QEMU opens
}

// headerTemplates makes the images to spoil: each has data.
func headerTemplates(a *arena) map[string]string {
	templates := map[string]string{
		"":         a.create("-template.qcow2", mib),
		"v2":       a.create("-v2.qcow2", mib, "compat=0.10"),
		"snapshot": a.create("-snapshot.qcow2", mib),
		"bitmap":   a.create("-bitmap.qcow2", mib),
		// The data file is not the served directory's: QEMU resolves its name
		// from where it runs, which is there.
		"data-file": a.create("-data-file.qcow2", mib, "data_file="+a.file("-data.raw")),
	}
	for name, file := range templates {
		if name == "bitmap" {
			a.run("qemu-img", "bitmap", "--add", file, "b")
		}
		a.io(file, a.write(0, 100*kib), a.write(300*kib, 200*kib))
		if name == "snapshot" {
			a.run("qemu-img", "snapshot", "-c", "s", file)
		}
	}
	return templates
}

func headerCases() []headerCase {
	var all []headerCase
	// field adds a case for each value of a field of 4 or 8 bytes.
	field := func(name, template string, off int64, width int, values ...uint64) {
		for _, v := range values {
			data := be64(v)
			if width == 4 {
				data = be32(uint32(v))
			}
			all = append(all, headerCase{name: fmt.Sprintf("%s=%#x", name, v), template: template, pokes: []poke{{off, data}}})
		}
	}
	const top = 1 << 63
	field("magic", "", atMagic, 4, 0, 0x514649fa, 0x4b444d56)
	field("version", "", atVersion, 4, 0, 1, 2, 4, 0xffffffff)
	field("cluster_bits", "", atClusterBits, 4, 0, 1, 8, 15, 17, 22, 31, 32, 63, 64, 0xffffffff)
	field("size", "", atSize, 8, 0, 1, 511, 513, mibs(1)+1, 512<<20, 513<<20, 1<<50, 1<<61, 1<<62, top-1, top, math.MaxUint64)
	field("crypt_method", "", atCrypt, 4, 1, 2, 3, 0xffffffff)
	field("l1_size", "", atL1Size, 4, 0, 2, 4194304, 4194305, 0x80000000, 0xffffffff)
	field("l1_table_offset", "", atL1, 8, 0, 1, 512, 65537, 1<<30, 1<<40, 1<<56, 1<<62, top, math.MaxUint64, math.MaxUint64&^0xffff)
	field("refcount_table_offset", "", atRefcountTable, 8, 0, 1, 512, 1<<40, 1<<56, top, math.MaxUint64&^0xffff)
	field("refcount_table_clusters", "", atRefcountLength, 4, 0, 128, 129, 0x10000, 0xffffffff)
	field("nb_snapshots", "", atSnapshotCount, 4, 1, 65536, 65537, 0xffffffff)
	field("incompatible", "", atIncompatible, 8, 1, 2, 3, 4, 8, 16, 24, 32, 1<<20, 1<<40, top, math.MaxUint64)
	field("compatible", "", atCompatible, 8, 1, 2, math.MaxUint64)
	field("autoclear", "", atAutoclear, 8, 1, 2, 3, 4, math.MaxUint64)
	field("refcount_order", "", atRefcountOrder, 4, 0, 6, 7, 31, 64, 0xffffffff)
	field("header_length", "", atHeaderLength, 4, 0, 72, 103, 104, 105, 111, 113, 65528, 65536, 65537, 0x80000000, 0xffffffff)
	field("v2 size", "v2", atSize, 8, 0, 1<<50, math.MaxUint64)
	field("v2 crypt_method", "v2", atCrypt, 4, 1, 2, 3)
	field("v2 refcount_table_clusters", "v2", atRefcountLength, 4, 0, 129)
	field("v2 to version", "v2", atVersion, 4, 3)

	add := func(name, template string, pokes ...poke) {
		all = append(all, headerCase{name: name, template: template, pokes: pokes})
	}
	name := func(off int64, n int) poke { return poke{off, []byte(strings.Repeat("a", n))} }
	for _, c := range []struct {
		off  uint64
		size uint32
	}{
		{top, 4},
		{math.MaxUint64, 4},
		{65537, 4},
		{65536, 4},
		{65530, 10},
		{1024, 1024},
		{1024, 0xffffffff},
		{1024, 0},
		{0, 4},
		{1, 1023},
	} {
		add(fmt.Sprintf("backing name of %d at %#x", c.size, c.off), "",
			poke{atBackingOffset, be64(c.off)}, poke{atBackingSize, be32(c.size)}, name(1024, 1023))
	}
	for _, v := range []struct{ bits, kind byte }{{0, 1}, {0, 2}, {8, 0}, {8, 2}, {8, 255}, {8, 1}} {
		add(fmt.Sprintf("compression type %d with feature bits %d", v.kind, v.bits), "",
			poke{atIncompatible, be64(uint64(v.bits))}, poke{atCompression, []byte{v.kind}})
	}
	add("extended L2 with 8 KiB clusters", "", poke{atClusterBits, be32(13)}, poke{atIncompatible, be64(16)})
	snapshots := func(label string, count uint32, off uint64) {
		add("snapshots "+label, "snapshot", poke{atSnapshotCount, be32(count)}, poke{atSnapshots, be64(off)})
	}
	snapshots("at 0", 1, 0)
	snapshots("unaligned", 1, 0x10001)
	snapshots("past the end", 1, 1<<40)
	snapshots("far past the end", 1, top)
	snapshots("at the largest offset", 1, math.MaxUint64&^0xffff)
	snapshots("in the header", 5, 0)
	snapshots("too many", 65537, 0x30000)
	snapshots("many more than there are", 60000, 0x30000)
	add("header of 0xff", "", poke{4, slices.Repeat([]byte{0xff}, 108)})
	add("header of zeros", "", poke{8, make([]byte, 104)})
	return append(all, extensionCases()...)
}

func mibs(n uint64) uint64 { return n << 20 }

// extension is one header extension, padded.
func extension(kind, length uint32, data ...byte) []byte {
	b := append(be32(kind), be32(length)...)
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&7)...)
}

// Header extensions.
const (
	extEnd          = 0
	extBacking      = 0xe2792aca
	extFeatures     = 0x6803f857
	extBitmaps      = 0x23852875
	extCrypto       = 0x0537be77
	extDataFile     = 0x44415441
	extUnknown      = 0x12345678
	incompatData    = 4
	autoclearBitmap = 1
)

func extensionCases() []headerCase {
	var all []headerCase
	add := func(name string, extensions []byte, pokes ...poke) {
		all = append(all, headerCase{name: "extension " + name, pokes: append(pokes, poke{atExtensions, append(extensions, make([]byte, 16)...)})})
	}
	add("unknown", extension(extUnknown, 5, []byte("hello")...))
	add("unknown, empty", extension(extUnknown, 0))
	for _, n := range []uint32{65536, 65535 - 112, 65536 - 112 - 8, 0x7fffffff, 0xfffffff8, 0xffffffff} {
		add(fmt.Sprint("of ", n), extension(extUnknown, n))
		add(fmt.Sprint("backing format of ", n), extension(extBacking, n))
		add(fmt.Sprint("features of ", n), extension(extFeatures, n))
		add(fmt.Sprint("data file of ", n), extension(extDataFile, n))
	}
	add("backing format of 15", extension(extBacking, 15, []byte("fifteen letters")...))
	add("backing format of 16", extension(extBacking, 16, []byte("sixteen letters!")...))
	add("features of 47", extension(extFeatures, 47, make([]byte, 47)...))
	add("crypto of 15", extension(extCrypto, 15, make([]byte, 15)...), poke{atCrypt, be32(2)})
	add("crypto at 0", extension(extCrypto, 16, make([]byte, 16)...), poke{atCrypt, be32(2)})
	add("crypto past the end", extension(extCrypto, 16, append(be64(1<<40), be64(1<<20)...)...), poke{atCrypt, be32(2)})
	add("crypto without method", extension(extCrypto, 16, make([]byte, 16)...))
	bitmaps := func(label string, length, count, reserved uint32, size, off uint64) {
		data := slices.Concat(be32(count), be32(reserved), be64(size), be64(off))
		add("bitmaps "+label, extension(extBitmaps, length, data...), poke{atAutoclear, be64(autoclearBitmap)})
	}
	bitmaps("of length 23", 23, 1, 0, 64, 0x10000)
	bitmaps("of length 32", 32, 1, 0, 64, 0x10000)
	bitmaps("none", 24, 0, 0, 64, 0x10000)
	bitmaps("too many", 24, 65536, 0, 64, 0x10000)
	bitmaps("reserved", 24, 1, 1, 64, 0x10000)
	bitmaps("unaligned", 24, 1, 0, 64, 0x10008)
	bitmaps("at 0", 24, 1, 0, 64, 0)
	bitmaps("of no size", 24, 1, 0, 0, 0x10000)
	bitmaps("too large", 24, 1, 0, 67107841, 0x10000)
	bitmaps("as large as may be", 24, 65535, 0, 67107840, 0x10000)
	bitmaps("huge", 24, 1, 0, math.MaxUint64, 0x10000)
	bitmaps("past the end", 24, 1, 0, 64, 1<<40)
	bitmaps("far past the end", 24, 1, 0, 64, math.MaxUint64&^0xffff)
	bitmaps("of zeros", 24, 1, 0, 64, 0x40000)
	for i := range all { // QEMU reads such a name, and ignores it
		all[i].stricter = strings.HasPrefix(all[i].name, "extension data file of ")
	}
	return append(all, tinyExtensions())
}

// tinyExtensions fills the header's cluster with as many as fit.
func tinyExtensions() headerCase {
	var b []byte
	for i := range (65536 - atExtensions) / 8 {
		b = binary.BigEndian.AppendUint32(b, extUnknown+uint32(i))
		b = binary.BigEndian.AppendUint32(b, 0)
	}
	return headerCase{name: "eight thousand extensions", pokes: []poke{{atExtensions, b}}}
}
