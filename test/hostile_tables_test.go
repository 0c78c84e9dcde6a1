package test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// A layout is where the tables of an image are.
type layout struct {
	cluster int64
	l1      int64 // offset of the L1 table
	l2      int64 // offset of the first L2 table
	data    int64 // host offset of the first cluster
	entry   int64 // bytes of an L2 entry
	end     int64 // size of the file, rounded up to clusters
}

func layoutOf(m *maker, file string) layout {
	u64 := func(off int64) int64 {
		return int64(binary.BigEndian.Uint64(m.peek(file, off, 8)) & 0x00fffffffffffe00)
	}
	l := layout{cluster: 1 << m.peek(file, atClusterBits+3, 1)[0], l1: u64(atL1), entry: 8}
	if m.peek(file, atVersion+3, 1)[0] == 3 && m.peek(file, atIncompatible+7, 1)[0]&16 != 0 {
		l.entry = 16
	}
	l.l2 = u64(l.l1)
	l.data = u64(l.l2)
	l.end = 16 * mib
	return l
}

const copied = uint64(1) << 63

// TestHostileTables spoils L1 and L2 entries and compressed descriptors.
func TestHostileTables(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	n := 0
	for _, template := range tableTemplates(a) {
		l := layoutOf(a.maker, template.file)
		for _, c := range tableCases(l, template) {
			t.Run(template.name+" "+c.name, func(t *testing.T) {
				n++
				file := a.file(fmt.Sprintf("-%d.qcow2", n))
				a.run("cp", "--sparse=always", template.file, file)
				for _, p := range c.pokes {
					a.poke(file, p.off, p.data)
				}
				a.judge(t, file, c.stricter)
			})
		}
	}
	a.close(t)
}

type tableTemplate struct {
	name, file string
	compressed bool
}

func tableTemplates(a *arena) []tableTemplate {
	var all []tableTemplate
	for _, c := range []struct{ name, options string }{
		{"v3", "compat=1.1"},
		{"v2", "compat=0.10"},
		{"extended", "extended_l2=on"},
		{"512", "cluster_size=512"},
		{"2m", "cluster_size=2M"},
	} {
		file := a.create("-"+c.name+".qcow2", 8*mib, c.options)
		a.io(file, a.write(0, 500*kib))
		all = append(all, tableTemplate{name: c.name, file: file})
	}
	source := a.raw("-source.raw", 2*mib)
	a.io(source, a.write(0, 2*mib), "write -P 7 0 1M")
	for _, c := range []struct{ name, options string }{
		{"zlib", "compression_type=zlib"},
		{"zstd", "compression_type=zstd"},
		{"zlib-512", "cluster_size=512"},
		{"zstd-2m", "compression_type=zstd,cluster_size=2M"},
		{"zlib-extended", "extended_l2=on"},
	} {
		file := a.file("-" + c.name + ".qcow2")
		a.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", c.options, source, file)
		all = append(all, tableTemplate{name: c.name, file: file, compressed: true})
	}
	return all
}

func tableCases(l layout, template tableTemplate) []headerCase {
	var all []headerCase
	entry := func(table string, off int64, values map[string]uint64) {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			all = append(all, headerCase{name: table + " " + name, pokes: []poke{{off, be64(values[name])}}})
		}
	}
	places := map[string]uint64{
		"to the header":         copied,
		"to the header, shared": uint64(0),
		"to the L1 table":       copied | uint64(l.l1),
		"to its L2 table":       copied | uint64(l.l2),
		"unaligned":             copied | uint64(l.l2) | 0x200,
		"reserved low bits":     copied | uint64(l.l2) | 0x1fe,
		"reserved high bits":    copied | uint64(l.l2) | 0x7f<<56,
		"past the end":          copied | uint64(l.end),
		"far past the end":      copied | uint64(1)<<45,
		"at the largest offset": copied | 0x00fffffffffffe00&^uint64(l.cluster-1),
		"all ones":              ^uint64(0),
		"zero bit":              copied | uint64(l.data) | 1,
		"zero bit, no offset":   1,
		"compressed and zero":   1<<62 | 1,
	}
	entry("L2", l.l2, places)
	if !template.compressed {
		entry("L1", l.l1, places)
		entry("second L2", l.l2+l.entry, places)
	}
	// Compressed descriptors: the sectors are above the offset.
	shift := 62 - (bitsOf(l.cluster) - 8)
	descriptors := map[string]uint64{
		"to the header":        1 << 62,
		"to its L2 table":      1<<62 | uint64(l.l2),
		"to its L2 table's 3":  1<<62 | uint64(l.l2) + 3,
		"to data":              1<<62 | uint64(l.data),
		"past the end":         1<<62 | uint64(l.end),
		"of most sectors":      1<<62 | (1<<62 - 1<<shift) | uint64(l.data),
		"at the largest place": 1<<62 | (1<<shift - 1),
		"all ones":             1<<63 - 1,
		"with COPIED":          3<<62 | uint64(l.data),
	}
	entry("compressed", l.l2, descriptors)
	if l.entry == 16 {
		entry("bitmap", l.l2+8, map[string]uint64{
			"all allocated":          1<<32 - 1,
			"all zero":               (1<<32 - 1) << 32,
			"both":                   ^uint64(0),
			"one both":               1<<32 | 1,
			"alternating":            0x55555555 | 0xaaaaaaaa<<32,
			"none":                   0,
			"allocated, no offset 0": 1,
		})
		all = append(all, headerCase{name: "bitmap without a cluster", pokes: []poke{{l.l2, append(be64(0), be64(1<<32-1)...)}}})
		all = append(all, headerCase{name: "compressed with a bitmap", pokes: []poke{{l.l2, append(be64(1<<62|uint64(l.data)), be64(1)...)}}})
	}
	if template.compressed {
		all = append(all, packedCases(l, strings.HasPrefix(template.name, "zstd"))...)
	}
	return all
}

func bitsOf(n int64) int {
	bits := 0
	for n > 1 {
		n >>= 1
		bits++
	}
	return bits
}

// packedCases spoil what compressed clusters hold: here all of the first
// descriptor's sectors are at a place of their own.
func packedCases(l layout, zstd bool) []headerCase {
	shift := 62 - (bitsOf(l.cluster) - 8)
	at := uint64(l.end)
	sectors := min(uint64(1)<<(62-shift)-1, 64)
	descriptor := poke{l.l2, be64(1<<62 | sectors<<shift | at)}
	var all []headerCase
	add := func(name string, data []byte) {
		data = append(data, make([]byte, max(0, 8192-len(data)))...)
		all = append(all, headerCase{name: "packed " + name, pokes: []poke{descriptor, {l.end, data}}})
	}
	add("zeros", nil)
	add("ones", []byte(strings.Repeat("\xff", 8192)))
	add("text", []byte(strings.Repeat("text ", 1600)))
	if !zstd {
		add("stored block of wrong length", []byte{0x01, 0xff, 0xff, 0xff, 0xff})
		add("stored block", append([]byte{0x01, 0x00, 0x10, 0xff, 0xef}, make([]byte, 4096)...))
		add("distance before the start", []byte{0x03 | 0x4<<3, 0x00, 0xff, 0x00})
		return all
	}
	// zstd frames: magic, descriptor, window of 2 GiB, one RLE block.
	frame := func(header ...byte) []byte { return append([]byte{0x28, 0xb5, 0x2f, 0xfd}, header...) }
	rle := func(n int) []byte {
		b := uint32(n)<<3 | 1<<1 | 1
		return []byte{byte(b), byte(b >> 8), byte(b >> 16), 'z'}
	}
	add("zstd window of 2 GiB", append(frame(0x00, 0xa8), rle(int(min(l.cluster, 128<<10)))...))
	add("zstd window of 3.75 TiB", append(frame(0x00, 0xff), rle(int(min(l.cluster, 128<<10)))...))
	add("zstd content of 4 EiB", append(frame(0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40), rle(128<<10)...))
	add("zstd longer than a cluster", append(frame(0x00, 0x58), append(rleNotLast(128<<10), rle(128<<10)...)...))
	add("zstd shorter than a cluster", append(frame(0x00, 0x58), rle(100)...))
	add("zstd skippable frame", append([]byte{0x50, 0x2a, 0x4d, 0x18}, be32(0xffffffff)...))
	add("zstd with a dictionary", append(frame(0x01, 0x58, 7), rle(4096)...))
	return all
}

func rleNotLast(n int) []byte {
	b := uint32(n)<<3 | 1<<1
	return []byte{byte(b), byte(b >> 8), byte(b >> 16), 'z'}
}

// TestHostileMemory opens many images that each have as much metadata as is
// allowed.
func TestHostileMemory(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	huge := a.create("-huge.qcow2", 2*eib, "cluster_size=2M")
	snapshots := a.create("-snapshots.qcow2", mib, "cluster_size=2M")
	// 65,536 entries of zeros with the largest extra data that fits 64 MiB: an
	// entry is 40 bytes and its extra data.
	a.poke(snapshots, atSnapshotCount, be32(65536))
	a.poke(snapshots, atSnapshots, be64(uint64(16*mib)))
	entry := make([]byte, 1016)
	copy(entry[36:], be32(976))
	a.poke(snapshots, 16*mib, []byte(strings.Repeat(string(entry), 65536)))
	for i := range 16 {
		for _, template := range []string{huge, snapshots} {
			file := strings.Replace(template, ".qcow2", fmt.Sprintf("-%d.qcow2", i), 1)
			a.run("ln", template, file)
			if i%2 == 0 { // another inode is another image
				a.run("rm", file)
				a.run("cp", "--sparse=always", template, file)
			}
			a.fetch(t, "/v1/images/"+file)
			a.fetch(t, "/v1/images/"+file+"/data", "Range", "bytes=0-4095")
			a.fetch(t, extentsPath(file, "length", mib))
		}
	}
	a.close(t)
}
