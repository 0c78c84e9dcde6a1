package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

const (
	copied     = uint64(1) << 63
	packed     = uint64(1) << 62
	zeroFlag   = uint64(1)
	reservedL2 = uint64(0x3f000000000001fe)

	isData      = storage.Local | storage.Alloc | storage.OffsetValid
	isZeroAlloc = storage.Local | storage.Zero | storage.Alloc | storage.OffsetValid
	isZero      = storage.Local | storage.Zero
	isReserved  = storage.Alloc | storage.OffsetValid
	isOpaque    = storage.Local | storage.Alloc
)

// An extent is what is compared of a mapping: "data" or "image" is the node.
type extent struct {
	Offset, Length int64
	Status         storage.Status
	Flags          storage.Flags
	Node           string
	NodeOffset     int64
	PackedLength   int32
}

func fetch(i *qcow2.Image, off, n int64, window bool) ([]extent, error) {
	var l storage.ExtentList
	if window {
		l.ResetWindow(off, off+n)
	}
	if err := storage.CheckMapper(i).Fetch(context.Background(), off, n, &l); err != nil {
		return nil, err
	}
	var all []extent
	for k := range l.Len() {
		m := l.At(k)
		e := extent{m.Offset, m.Length, m.Status, m.Flags, "", m.NodeOffset, m.PackedLength}
		if m.Node != nil {
			e.Node = m.Node.Name()
		}
		all = append(all, e)
	}
	return all, nil
}

// openWith opens an image, with an external data file where it wants one.
func openWith(t testing.TB, content []byte) *qcow2.Image {
	t.Helper()
	i, err := qcow2.Open(t.Context(), memNode(content), qcow2.Options{
		OpenData: func(context.Context, string) (*storage.Node, error) {
			return storage.NewNode("data", memNode(nil).File(), storage.NodeOptions{}), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// TestEntries maps images of one L2 entry, or a few, of every state.
func TestEntries(t *testing.T) {
	const c = 64 << 10
	luks := []extension{{extCrypto, append(be64(0x30000), be64(512)...)}}
	tail, writable := storage.ZeroTail, storage.ZeroTail|storage.Writable
	sector := uint64(1) << 54 // one more sector of packed bytes, at 64 KiB clusters
	for _, tt := range []struct {
		name string
		b    builder
		want []extent
		err  string // of the first cluster
	}{
		{name: "unallocated", b: builder{size: 3 * c}, want: []extent{{Length: 3 * c}}},
		{name: "data", b: builder{entries: []uint64{0x50000}}, want: []extent{{0, c, isData, tail, "image", 0x50000, 0}}},
		{name: "data copied", b: builder{entries: []uint64{copied | 0x50000}}, want: []extent{{0, c, isData, writable, "image", 0x50000, 0}}},
		{name: "data, reserved bits", b: builder{entries: []uint64{reservedL2 | 0x50000}}, want: []extent{{0, c, isData, tail, "image", 0x50000, 0}}},
		{name: "data at the last offset", b: builder{entries: []uint64{1<<56 - c}}, want: []extent{{0, c, isData, tail, "image", 1<<56 - c, 0}}},
		{name: "data past the last offset", b: builder{entries: []uint64{1<<56 - c, 1 << 56}}, want: []extent{
			{0, c, isData, tail, "image", 1<<56 - c, 0},
			{Offset: c, Length: c},
		}},
		{name: "runs", b: builder{entries: []uint64{0x50000, 0x60000, 0x70000, 0x90000, copied | 0xa0000, 0, 0, zeroFlag, zeroFlag | 0x50000, zeroFlag | 0x60000, zeroFlag}}, want: []extent{
			{0, 3 * c, isData, tail, "image", 0x50000, 0},
			{3 * c, c, isData, tail, "image", 0x90000, 0},
			{4 * c, c, isData, writable, "image", 0xa0000, 0},
			{Offset: 5 * c, Length: 2 * c},
			{Offset: 7 * c, Length: c, Status: isZero},
			{8 * c, 2 * c, isZeroAlloc, 0, "image", 0x50000, 0},
			{Offset: 10 * c, Length: c, Status: isZero},
		}},
		{name: "reserved bits do not part", b: builder{entries: []uint64{0x50000, 0x10000000060000, 0, copied, 4, zeroFlag, zeroFlag | copied, zeroFlag | 8}}, want: []extent{
			{0, c, isData, tail, "image", 0x50000, 0},
			{c, c, isData, tail, "image", 0x10000000060000, 0},
			{Offset: 2 * c, Length: 3 * c},
			{Offset: 5 * c, Length: 3 * c, Status: isZero},
		}},
		{name: "cut at the end", b: builder{size: c + 512, entries: []uint64{0x50000, 0x60000}}, want: []extent{{0, c + 512, isData, tail, "image", 0x50000, 0}}},
		{name: "compressed", b: builder{entries: []uint64{packed | 0x50123, packed | sector | 0x50200, packed | 255*sector | 0x503ff}}, want: []extent{
			{0, c, isOpaque, storage.Compressed, "image", 0x50123, 512 - 0x123},
			{c, c, isOpaque, storage.Compressed, "image", 0x50200, 1024},
			{2 * c, c, isOpaque, storage.Compressed, "image", 0x503ff, 256*512 - 0x1ff},
		}},
		{name: "compressed and copied", b: builder{entries: []uint64{copied | packed | 0x50000}}, want: []extent{{0, c, isOpaque, storage.Compressed, "image", 0x50000, 512}}},
		{name: "compressed, cut at the end", b: builder{size: 512, entries: []uint64{packed | 0x50000}}, want: []extent{{0, 512, isOpaque, storage.Compressed, "image", 0x50000, 512}}},
		{name: "compressed at 2 MiB", b: builder{clusterBits: 21, entries: []uint64{^uint64(0) >> 1}}, want: []extent{{0, 2 << 20, isOpaque, storage.Compressed, "image", 1<<49 - 1, 8192*512 - 511}}},
		{name: "compressed at 512", b: builder{clusterBits: 9, entries: []uint64{packed | 1<<61 | 1<<56 - 1}}, want: []extent{{0, 512, isOpaque, storage.Compressed, "image", 1<<56 - 1, 1024 - 511}}},
		{name: "compressed too far", b: builder{clusterBits: 9, entries: []uint64{packed | 1<<56}}, err: "entry 0 is 0x4100000000000000: the offset of compressed data must be below 2^56"},
		{name: "unaligned", b: builder{entries: []uint64{0x50200}}, err: "l2 table at 0x30000: entry 0 is 0x50200: the offset must be a multiple of the cluster size"},
		{name: "zero unaligned", b: builder{entries: []uint64{zeroFlag | 0x50200}}, err: "entry 0 is 0x50201"},
		{name: "zero in v2", b: builder{version: 2, entries: []uint64{zeroFlag}}, err: "a zero cluster in a version 2 image"},
		{name: "zero-alloc in v2", b: builder{version: 2, entries: []uint64{zeroFlag | 0x50000}}, err: "a zero cluster in a version 2 image"},

		{name: "data file", b: builder{incompatible: 4, entries: []uint64{copied, copied | c, 2 * c, 0, zeroFlag, zeroFlag | copied | 5*c}}, want: []extent{
			{0, 2 * c, isData, writable, "data", 0, 0},
			{2 * c, c, isData, tail, "data", 2 * c, 0},
			{Offset: 3 * c, Length: c},
			{Offset: 4 * c, Length: c, Status: isZero},
			{5 * c, c, isZeroAlloc, storage.Writable, "data", 5 * c, 0},
		}},
		{name: "data file elsewhere", b: builder{incompatible: 4, entries: []uint64{copied | c}}, err: "the offset in the external data file must be that of the guest"},
		{name: "data file, zero elsewhere", b: builder{incompatible: 4, entries: []uint64{zeroFlag | c}}, err: "the offset in the external data file"},
		{name: "data file, compressed", b: builder{incompatible: 4, entries: []uint64{packed | 0x50000}}, err: "a compressed cluster in an image with an external data file"},

		{name: "luks", b: builder{crypt: 2, extensions: luks, entries: []uint64{copied | 0x50000, 0x70000, 0, zeroFlag, zeroFlag | 0x90000, packed | 0xa0000}}, want: []extent{
			{Offset: 0, Length: 2 * c, Status: isOpaque, Flags: storage.Encrypted},
			{Offset: 2 * c, Length: c},
			{Offset: 3 * c, Length: c, Status: isZero},
			{Offset: 4 * c, Length: c, Status: isZero | storage.Alloc},
			{5 * c, c, isOpaque, storage.Compressed, "image", 0xa0000, 512},
		}},
		{name: "luks extended", b: builder{crypt: 2, extensions: luks, extended: true, entries: []uint64{0x50000, 0xffff0000_000000ff}}, want: []extent{
			{Offset: 0, Length: c / 4, Status: isOpaque, Flags: storage.Encrypted},
			{Offset: c / 4, Length: c / 4},
			{Offset: c / 2, Length: c / 2, Status: isZero | storage.Alloc},
		}},

		{name: "extended all", b: builder{extended: true, entries: []uint64{0x50000, 1<<32 - 1, 0x60000, 1<<32 - 1, 0, (1<<32 - 1) << 32, 0x80000, (1<<32 - 1) << 32, 0x90000, 0, 0, 0}}, want: []extent{
			{0, 2 * c, isData, tail, "image", 0x50000, 0},
			{Offset: 2 * c, Length: c, Status: isZero},
			{3 * c, c, isZeroAlloc, 0, "image", 0x80000, 0},
			{4 * c, c, isReserved, 0, "image", 0x90000, 0},
			{Offset: 5 * c, Length: c},
		}},
		{name: "extended mixed", b: builder{extended: true, entries: []uint64{copied | 0x50000, 0x0000ff00_000000ff, 0, 0x80000001 << 32}}, want: []extent{
			{0, c / 4, isData, writable, "image", 0x50000, 0},
			{c / 4, c / 4, isZeroAlloc, storage.Writable, "image", 0x50000 + c/4, 0},
			{c / 2, c / 2, isReserved, storage.Writable, "image", 0x50000 + c/2, 0},
			{Offset: c, Length: c / 32, Status: isZero},
			{Offset: c + c/32, Length: 30 * c / 32},
			{Offset: c + 31*c/32, Length: c / 32, Status: isZero},
		}},
		{name: "extended, cut inside a subcluster", b: builder{extended: true, size: c/4 + 512, entries: []uint64{0x50000, 0x1ff}}, want: []extent{
			{0, c/4 + 512, isData, tail, "image", 0x50000, 0},
		}},
		{name: "extended, the zero flag is reserved", b: builder{extended: true, entries: []uint64{zeroFlag | 0x50000, 1<<32 - 1, zeroFlag, 0}}, want: []extent{
			{0, c, isData, tail, "image", 0x50000, 0},
			{Offset: c, Length: c},
		}},
		{name: "extended compressed", b: builder{extended: true, entries: []uint64{packed | 0x50000, ^uint64(0)}}, want: []extent{{0, c, isOpaque, storage.Compressed, "image", 0x50000, 512}}},
		{name: "extended both", b: builder{extended: true, entries: []uint64{0x50000, 0x00000100_00000100}}, err: "entry 0 is 0x50000, bitmap 0x10000000100: subclusters both allocated and zero"},
		{name: "extended without a cluster", b: builder{extended: true, entries: []uint64{0, 1}}, err: "allocated subclusters of an unallocated cluster"},
		{name: "extended unaligned", b: builder{extended: true, entries: []uint64{0x50200, 1}}, err: "must be a multiple of the cluster size"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := openWith(t, tt.b.bytes())
			got, err := fetch(i, 0, i.Size(), false)
			if tt.err != "" {
				if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Fetch: %v, want it to say %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestBadNeighbours checks that an entry that contradicts the format fails the
// fetch of its own cluster, and ends what is volunteered around others.
func TestBadNeighbours(t *testing.T) {
	const c = 64 << 10
	for _, extended := range []bool{false, true} {
		words := 1
		if extended {
			words = 2
		}
		b := builder{extended: extended, entries: make([]uint64, 20*words)}
		for k := range 20 {
			b.entries[k*words] = uint64(0x100000 + k*c*2)
		}
		b.entries[5*words], b.entries[12*words] = 0x50200, 0x50200
		i := openWith(t, b.bytes())
		for k := range int64(20) {
			for _, window := range []bool{true, false} {
				got, err := fetch(i, k*c, 512, window)
				if bad := k == 5 || k == 12; bad != (err != nil) || bad && !errors.Is(err, storage.ErrCorrupt) {
					t.Fatalf("extended %v: fetch of cluster %d: %v", extended, k, err)
				}
				if err != nil {
					if want := fmt.Sprintf("entry %d ", k); !strings.Contains(err.Error(), want) {
						t.Errorf("%v, want it to say %q", err, want)
					}
					continue
				}
				from, to := k, k+1
				if !window {
					switch {
					case k < 5:
						from, to = 0, 5
					case k < 12:
						from, to = 6, 12
					default:
						from, to = 13, 20
					}
				}
				last := got[len(got)-1]
				if got[0].Offset != from*c || last.Offset+last.Length != to*c {
					t.Errorf("extended %v: fetch of cluster %d: %d to %d, want clusters %d to %d", extended, k, got[0].Offset, last.Offset+last.Length, from, to)
				}
			}
		}
		if _, err := fetch(i, 4*c, 3*c, true); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("extended %v: fetch across a bad entry: %v", extended, err)
		}
	}
}

// TestL1 checks the entries of the L1 table, and what is volunteered of it.
func TestL1(t *testing.T) {
	const span = 512 << 20 // of an L2 table at 64 KiB clusters
	b := builder{size: 2000 * span, entries: nil}
	content := b.bytes()
	l1 := int64(0x20000)
	entry := func(n int64, e uint64) patch { return patch{l1 + n*8, be64(e)} }
	i := openWith(t, patched(content,
		entry(3, 0x50200),              // unaligned
		entry(700, 0x7f00000000000100), // reserved bits alone
		entry(701, 1<<63),              // COPIED alone
		entry(900, 1<<55),              // past the end of the file
		entry(1999, 0x7fff000000000000|1<<63|0x1ff),
	))
	for _, tt := range []struct {
		at, from, to int64 // L2 tables
	}{
		{0, 0, 3},
		{2, 0, 3},
		{4, 4, 512},
		{511, 4, 512}, // pages of 512 entries
		{512, 512, 900},
		{700, 512, 900},
		{899, 512, 900},
		{901, 901, 1024},
		{1500, 1024, 1536},
		{1998, 1536, 1999},
	} {
		got, err := fetch(i, tt.at*span+4096, 4096, false)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]extent{{Offset: tt.from * span, Length: (tt.to - tt.from) * span}}, got); diff != "" {
			t.Errorf("table %d (-want +got):\n%s", tt.at, diff)
		}
		got, err = fetch(i, tt.at*span+4096, 4096, true)
		if err != nil || len(got) != 1 || got[0].Offset > tt.at*span+4096 || got[0].Length > 2*span {
			t.Errorf("table %d in a window: %v, %v", tt.at, got, err)
		}
	}
	if _, err := fetch(i, 3*span, 1, false); !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "l1 table at 0x20000: entry 3 is 0x50200") {
		t.Errorf("unaligned table: %v", err)
	}
	// Past the end of the file there are zeros: all clusters are unallocated.
	for _, table := range []int64{900, 1999} {
		got, err := fetch(i, table*span, 1, false)
		if err != nil || len(got) != 1 || got[0].Status != 0 {
			t.Errorf("table %d: %v, %v", table, got, err)
		}
	}
}

// TestNoSharing opens a hostile image whose tables are one another, and the
// header.
func TestNoSharing(t *testing.T) {
	for _, bits := range []uint32{9, 12, 16} {
		for _, extended := range []bool{false, true} {
			if extended && bits < 14 {
				continue
			}
			b := builder{clusterBits: bits, extended: extended, entries: make([]uint64, 4*(1<<bits)/8)}
			for k := range b.entries {
				b.entries[k] = copied | uint64(2+k%8)<<bits
				if extended && k%2 == 1 {
					b.entries[k] = 0xff
				}
			}
			i := openWith(t, patched(b.bytes(), patch{40, be64(0)})) // the L1 table is the header
			for off := int64(0); off < i.Size(); off += i.PackedUnit() {
				if _, err := fetch(i, off, 1, true); err != nil && !errors.Is(err, storage.ErrCorrupt) {
					t.Fatal(err)
				}
			}
			i = openWith(t, patched(b.bytes(), patch{2 << bits, be64(2 << bits)})) // the first L2 table is the L1 table
			for off := int64(0); off < i.Size(); off += i.PackedUnit() {
				if _, err := fetch(i, off, 1, true); err != nil && !errors.Is(err, storage.ErrCorrupt) {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestAppend continues a list instead of starting a new one, at every place.
func TestAppend(t *testing.T) {
	rng := random(t)
	for _, extended := range []bool{false, true} {
		b := builder{clusterBits: 14, extended: extended, entries: make([]uint64, 5000)}
		for k := 0; k < len(b.entries); k++ {
			if rng.IntN(3) > 0 && k/2048 != 1 { // the second table is not allocated
				b.entries[k] = copied | uint64(100+k)<<14
			}
			if extended {
				k++
				if b.entries[k-1] != 0 {
					b.entries[k] = uint64(rng.Uint32()) &^ 0xff
					b.entries[k] |= uint64(rng.Uint32()&0xff) << 32
				}
			}
		}
		i := openWith(t, b.bytes())
		var whole storage.ExtentList
		if err := i.Fetch(t.Context(), 0, i.Size(), &whole); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			lo := rng.Int64N(i.Size())
			hi := lo + 1 + rng.Int64N(min(i.Size()-lo, 8<<20))
			var l storage.ExtentList
			if rng.IntN(2) == 0 {
				l.ResetWindow(lo, hi)
			}
			for at := lo; at < hi; at = l.End() {
				if err := i.Fetch(t.Context(), at, 1+rng.Int64N(hi-at), &l); err != nil {
					t.Fatal(err)
				}
			}
			compareLists(t, &whole, &l, lo, hi)
		}
	}
}

// compareLists compares what two lists say of [lo, hi).
func compareLists(t *testing.T, want, got *storage.ExtentList, lo, hi int64) {
	t.Helper()
	clipped := func(l *storage.ExtentList) []extent {
		var all []extent
		for k := l.Find(lo); k >= 0 && k < l.Len() && l.At(k).Offset < hi; k++ {
			m := *l.At(k)
			m.Clip(lo, hi)
			all = append(all, extent{Offset: m.Offset, Length: m.Length, Status: m.Status, Flags: m.Flags, NodeOffset: m.NodeOffset})
		}
		return all
	}
	if diff := cmp.Diff(clipped(want), clipped(got)); diff != "" {
		t.Fatalf("%d to %d (-whole +parts):\n%s", lo, hi, diff)
	}
}

// createEncrypted makes the image. QEMU times its key derivation first, and
// gives up at once where the clock of its thread is too coarse: it is asked
// again.
func createEncrypted(t testing.TB, dir, name, options string) {
	t.Helper()
	create := []string{"create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=secret", "-o", options, name, "8M"}
	for range 30 {
		out, err := try(t, dir, "qemu-img", create...)
		if err == nil {
			return
		}
		if !strings.Contains(out, "accurate CPU usage") {
			break
		}
	}
	run(t, dir, "qemu-img", create...)
}

// TestEncrypted opens what qemu-img encrypts.
func TestEncrypted(t *testing.T) {
	for _, format := range []string{"luks", "aes"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			options := "encrypt.key-secret=s,encrypt.format=" + format
			if format == "luks" {
				options += ",encrypt.iter-time=10" // else the key derivation takes seconds
			}
			createEncrypted(t, dir, image, options)
			node := "driver=qcow2,file.filename=" + image + ",encrypt.key-secret=s"
			run(t, dir, "qemu-io", "--object", "secret,id=s,data=secret", "--image-opts", node,
				"-c", "write 64k 256k", "-c", "write -z 1M 128k", "-c", "write -z -u 128k 64k", "-c", "write -z 64k 64k")
			i := openDisk(t, dir, image)
			if i.Info().Encryption != format {
				t.Errorf("Info() = %+v", i.Info())
			}
			want := qemuMap(t, dir, "--object", "secret,id=s,data=secret", "--image-opts", node)
			if diff := cmp.Diff(want, ourMap(t, i, 0, i.Size())); diff != "" {
				t.Errorf("map differs (-qemu-img +ours):\n%s", diff)
			}
		})
	}
}
