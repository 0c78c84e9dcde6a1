package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// openFuzzed opens an image whose data file, if it wants one, is empty. It
// returns nil where the image is refused as it should be.
func openFuzzed(t *testing.T, content []byte) *qcow2.Image {
	t.Helper()
	i, err := qcow2.Open(t.Context(), memNode(content), qcow2.Options{
		OpenData:  func(context.Context, string) (*storage.Node, error) { return memNode(nil), nil },
		CacheSize: 64 << 10,
	})
	if err == nil {
		return i
	}
	if !errors.Is(err, storage.ErrCorrupt) && !errors.Is(err, storage.ErrUnsupported) {
		t.Fatalf("Open: %v", err)
	}
	return nil
}

// use asks all there is to ask of an image that was opened.
func use(t *testing.T, i *qcow2.Image) {
	t.Helper()
	checked := storage.CheckMapper(i)
	var l storage.ExtentList
	for _, off := range []int64{0, i.Size() / 3, i.Size() / 2, i.Size() - 1, i.Size() - 4096} {
		for _, n := range []int64{1, 4096, 4 * mib} {
			if off < 0 || off >= i.Size() {
				continue
			}
			n = min(n, i.Size()-off)
			for _, window := range []bool{true, false} {
				l.Reset()
				if window {
					l.ResetWindow(off, off+n)
				}
				if err := checked.Fetch(t.Context(), off, n, &l); err != nil && !errors.Is(err, storage.ErrCorrupt) {
					t.Errorf("Fetch(%d, %d): %v", off, n, err)
				}
			}
		}
	}
	if _, err := i.Snapshots(t.Context()); err != nil {
		t.Errorf("Snapshots: %v", err)
	}
	if _, err := i.Bitmaps(t.Context()); err != nil {
		t.Errorf("Bitmaps: %v", err)
	}
	if _, err := storage.ResolveLimits(t.Context(), i); err != nil {
		t.Errorf("limits: %v", err)
	}
	_ = i.Info()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzImage opens what it is given.
func FuzzImage(f *testing.F) {
	for _, pokes := range [][]poke{headerPokes(), extensionPokes()} {
		for _, p := range pokes {
			if content := p.image(); len(content) <= 256<<10 {
				f.Add(bytes.TrimRight(content, "\x00"))
			}
		}
	}
	f.Add(alternating(9, 64).bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		if i := openFuzzed(t, content); i != nil {
			use(t, i)
		}
	})
}

// FuzzExtensions puts what it is given after a well-formed header.
func FuzzExtensions(f *testing.F) {
	for _, p := range extensionPokes() {
		content := p.image()
		f.Add(uint8(p.base.crypt), p.base.autoclear, bytes.TrimRight(content[112:4096], "\x00"))
	}
	f.Fuzz(func(t *testing.T, crypt uint8, autoclear uint64, data []byte) {
		b := builder{size: 1 << 20, crypt: uint32(crypt % 4), autoclear: autoclear &^ 2}
		data = data[:min(len(data), 65536-112)]
		if i := openFuzzed(t, patched(b.bytes(), patch{112, data})); i != nil {
			use(t, i)
		}
	})
}

// FuzzTables fetches from tables of any content, and compares with the
// specification, cluster by cluster.
func FuzzTables(f *testing.F) {
	entry := func(words ...uint64) []byte {
		var b []byte
		for _, w := range words {
			b = binary.BigEndian.AppendUint64(b, w)
		}
		return b
	}
	f.Add(uint8(0), uint8(3), 0x20000|copied, entry(0, copied|0x50000, packed|0x50123, zeroFlag, zeroFlag|0x60000))
	f.Add(uint8(7), uint8(3), uint64(0x40000), entry(0x50000, 0x60000, 0x70000, 1<<56-0x10000, 1<<56, packed|1<<61|77))
	f.Add(uint8(7), uint8(2), uint64(0x40000), entry(0x50000, zeroFlag))
	f.Add(uint8(7), uint8(3|16), uint64(0x40000), entry(0x50000, 0xff00ff, copied|0x60000, 0xff00ff<<32|0xff00, 0, 0xffffffff<<32, packed|0x50000, 9))
	f.Add(uint8(7), uint8(3|16), uint64(0x40000), entry(0x50000, 0xffff_ffff_ffff_ffff, 0, 1))
	f.Add(uint8(12), uint8(3|32), uint64(0x600000), entry(copied, copied|0x200000, 0, zeroFlag, zeroFlag|0x800000, 0x200000))
	f.Add(uint8(7), uint8(3|64), uint64(0x40200), entry(1))
	f.Fuzz(func(t *testing.T, clusterBits, flags uint8, l1 uint64, entries []byte) {
		b := builder{clusterBits: 9 + uint32(clusterBits%13), version: 2 + uint32(flags&1), extended: flags&17 == 17}
		if b.extended {
			b.clusterBits = max(b.clusterBits, 14)
		}
		if flags&33 == 33 {
			b.incompatible = 4
		}
		if flags&64 != 0 {
			b.crypt = 1
		}
		b.size = b.cluster() * 4096
		entries = entries[:min(len(entries), int(b.cluster()))]
		at := l1 & 0x00fffffffffffe00 % (64 * mibU)
		content := patched(b.bytes(), patch{2 * b.cluster(), be64(l1&^0x00fffffffffffe00 | at)}, patch{int64(at), entries})
		i := openFuzzed(t, content)
		if i == nil {
			return // the entries lie on the header
		}
		defer i.Close()
		if at < 3*uint64(b.cluster()) {
			use(t, i)
			return
		}
		s := spec{b: &b, content: content, table: at}
		s.compare(t, i)
	})
}

const mibU = uint64(1) << 20

// A spec tells what the specification says of the first L2 table.
type spec struct {
	b       *builder
	content []byte
	table   uint64
}

func (s *spec) word(off uint64) uint64 {
	var b [8]byte
	if off < uint64(len(s.content)) {
		copy(b[:], s.content[off:])
	}
	return binary.BigEndian.Uint64(b[:])
}

// at is what the cluster, or subcluster, at a guest offset is.
func (s *spec) at(guest int64) (e extent, ok bool) {
	cluster, size := s.b.cluster(), uint64(8)
	n, unit := guest/cluster, cluster
	if s.b.extended {
		size, unit = 16, cluster/32
	}
	e = extent{Offset: guest, Length: unit}
	switch {
	case n >= cluster/int64(size) || s.table == 0:
		return e, true // of another table, which is not allocated
	case s.table%uint64(cluster) != 0:
		return e, false
	}
	word := s.word(s.table + uint64(n)*size)
	host := word & 0x00fffffffffffe00
	external, aes := s.b.incompatible&4 != 0, s.b.crypt != 0
	if word&packed != 0 {
		shift := 62 - (s.b.clusterBits - 8)
		at, sectors := word&(1<<shift-1), word&(1<<62-1)>>shift
		e.Status, e.Flags, e.Node = isOpaque, storage.Compressed, "image"
		e.NodeOffset, e.PackedLength = int64(at), int32((sectors+1)*512-at%512)
		e.Offset, e.Length = n*cluster, cluster
		return e, !external && at < 1<<56
	}
	allocated := host != 0 || external && word&copied != 0
	zero, data := word&1 != 0, allocated
	if s.b.extended {
		bitmap, sub := s.word(s.table+uint64(n)*16+8), uint(guest%cluster/unit)
		if bitmap>>32&bitmap != 0 && allocated || !allocated && uint32(bitmap) != 0 {
			return e, false
		}
		zero, data = bitmap>>32>>sub&1 != 0, bitmap>>sub&1 != 0
	} else if zero {
		allocated, data = host != 0, false
	}
	if zero && s.b.version == 2 || allocated && host%uint64(cluster) != 0 || allocated && external && int64(host) != n*cluster {
		return e, false
	}
	switch {
	case zero && allocated:
		e.Status = isZeroAlloc
	case zero:
		e.Status = isZero
	case data:
		e.Status, e.Flags = isData, storage.ZeroTail
	case allocated:
		e.Status = isReserved
	}
	switch {
	case !allocated:
	case aes && data:
		e.Status, e.Flags = isOpaque, storage.Encrypted
	case aes && !zero:
		e.Status = 0
	case aes:
		e.Status &^= storage.OffsetValid
	default:
		e.Node, e.NodeOffset = "image", int64(host)+guest%cluster
		if word&copied != 0 {
			e.Flags |= storage.Writable
		}
	}
	return e, true
}

// compare fetches unit by unit, in a window and without.
func (s *spec) compare(t *testing.T, i *qcow2.Image) {
	t.Helper()
	unit := s.b.cluster()
	if s.b.extended {
		unit /= 32
	}
	step := unit * max(1, i.Size()/unit/600) // a sample where there are many
	for guest := int64(0); guest < i.Size(); guest += step {
		want, ok := s.at(guest)
		for _, window := range []bool{true, false} {
			got, err := fetch(i, guest, 1, window)
			if ok != (err == nil) || err != nil && !errors.Is(err, storage.ErrCorrupt) {
				t.Fatalf("at %d: %v, well-formed is %v", guest, err, ok)
			}
			if err != nil {
				continue
			}
			e := covering(got, guest)
			if e.Flags&storage.Compressed == 0 { // the mapping may be longer
				if skip := guest - e.Offset; e.Status.Has(storage.OffsetValid) {
					e.NodeOffset += skip
				}
				if e.Offset > guest || e.Offset+e.Length < guest+unit {
					t.Fatalf("at %d: extent %+v", guest, e)
				}
				e.Offset, e.Length = guest, unit
			}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Fatalf("at %d (-specification +ours):\n%s", guest, diff)
			}
		}
	}
}

func covering(all []extent, off int64) extent {
	for _, e := range all {
		if e.Offset <= off && off < e.Offset+e.Length {
			return e
		}
	}
	return extent{}
}

// FuzzPacked compares compressed cluster descriptors with the formula of the
// specification.
func FuzzPacked(f *testing.F) {
	for clusterBits := range uint8(13) {
		f.Add(clusterBits, uint64(0x12345))
		f.Add(clusterBits, ^uint64(0))
		f.Add(clusterBits, uint64(1)<<(53-clusterBits))
	}
	f.Fuzz(func(t *testing.T, clusterBits uint8, descriptor uint64) {
		b := builder{clusterBits: 9 + uint32(clusterBits%13), entries: []uint64{descriptor&^copied | packed}}
		i := openFuzzed(t, b.bytes())
		defer i.Close()
		x := 62 - (b.clusterBits - 8)
		off := descriptor & (1<<x - 1)
		sectors := descriptor >> x & (1<<(b.clusterBits-8) - 1)
		got, err := fetch(i, 0, 1, true)
		if tooFar := bits.Len64(off) > 56; tooFar || err != nil {
			if !tooFar || !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("Fetch: %v", err)
			}
			return
		}
		want := []extent{{0, b.cluster(), isOpaque, storage.Compressed, "image", int64(off), int32(512*(sectors+1) - off%512)}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// FuzzSnapshots reads tables of any content.
func FuzzSnapshots(f *testing.F) {
	e := snapshotEntry{id: "1", name: "one", sec: 1, nsec: 2, clock: 3, state: 4, extra: make([]byte, 24)}
	f.Add(uint32(1), e.bytes())
	f.Add(uint32(3), bytes.Repeat(e.bytes(), 3))
	f.Add(uint32(65536), []byte{})
	e.extraLength = 1025
	f.Add(uint32(1), e.bytes())
	f.Fuzz(func(t *testing.T, count uint32, table []byte) {
		b := builder{size: 1 << 20}
		content := patched(b.bytes(), patch{60, append(be32(count%65537), be64(tableAt)...)}, patch{tableAt, table})
		i := openFuzzed(t, content)
		if i == nil {
			return
		}
		defer i.Close()
		all, err := i.Snapshots(t.Context())
		if err != nil || len(all) != int(count%65537) || i.Info().Snapshots != len(all) {
			t.Fatalf("%d snapshots of %d, %v", len(all), count%65537, err)
		}
		for _, s := range all {
			if s.VMStateSize < 0 || s.DiskSize < 0 || s.ICount < -1 || s.VMClock < 0 || bytes.IndexByte([]byte(s.ID+s.Name), 0) >= 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}

// FuzzBitmaps reads directories of any content.
func FuzzBitmaps(f *testing.F) {
	a, b := bitmapEntry{name: "a"}, bitmapEntry{name: "bb", flags: 1}
	f.Add(uint32(2), uint64(64), append(a.bytes(), b.bytes()...))
	f.Add(uint32(1), uint64(32), a.bytes())
	f.Add(uint32(65535), uint64(67107840), []byte{})
	f.Fuzz(func(t *testing.T, count uint32, size uint64, directory []byte) {
		i := openFuzzed(t, withDirectory(count, size, directory))
		if i == nil {
			return
		}
		defer i.Close()
		all, err := i.Bitmaps(t.Context())
		if err != nil || len(all) != int(count) || i.Info().Bitmaps != len(all) {
			t.Fatalf("%d bitmaps of %d, %v", len(all), count, err)
		}
		for _, b := range all {
			if bits.OnesCount64(uint64(b.Granularity)) != 1 || b.Granularity < 512 || b.Granularity > 2*gib || len(b.Name) > 1023 {
				t.Errorf("%+v", b)
			}
		}
	})
}
