package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
)

func compareBitmaps(t *testing.T, dir string) []storage.BitmapInfo {
	t.Helper()
	i := openDisk(t, dir, image)
	got, err := i.Bitmaps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for k := range got {
		got[k].Dirty = 0
	}
	var want []storage.BitmapInfo
	for _, b := range qemuInfoOf(t, dir, image).FormatSpecific.Data.Bitmaps {
		want = append(want, storage.BitmapInfo{
			Name: b.Name, Granularity: b.Granularity,
			Inconsistent: slices.Contains(b.Flags, "in-use"), Enabled: slices.Contains(b.Flags, "auto"),
		})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-qemu-img +ours):\n%s", diff)
	}
	if i.Info().Bitmaps != len(want) {
		t.Errorf("Info().Bitmaps = %d, want %d", i.Info().Bitmaps, len(want))
	}
	return got
}

// TestBitmaps compares with qemu-img info.
func TestBitmaps(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512", "extended_l2=on", "data_file=data.raw"} {
		dir := t.TempDir()
		create(t, dir, image, 5*mib+512, options)
		if got := compareBitmaps(t, dir); len(got) != 0 {
			t.Errorf("%q: %+v", options, got)
		}
		for k, granularity := range []int64{512, 4096, 65536, 1 << 20, 1 << 31} {
			name := fmt.Sprint("bitmap ", k)
			run(t, dir, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(granularity), image, name)
			if k%2 == 1 {
				run(t, dir, "qemu-img", "bitmap", "--disable", image, name)
			}
		}
		qemuIO(t, dir, image, "write 1M 64k")
		run(t, dir, "qemu-img", "bitmap", "--remove", image, "bitmap 2")
		if got := compareBitmaps(t, dir); len(got) != 4 {
			t.Errorf("%q: %+v", options, got)
		}
	}
}

// A bitmapEntry is an entry of a hand-written bitmap directory. The zero value
// is well-formed but for its name: enabled, granularity 64 KiB.
type bitmapEntry struct {
	name        string
	nameLength  int // 0: that of name
	table       uint64
	size        uint32 // default 1; -1 cast: 0
	flags       uint32
	kind        uint8 // less 1
	granularity uint8 // less 16
	extra       []byte
}

func (e *bitmapEntry) bytes() []byte {
	length := e.nameLength
	if length == 0 {
		length = len(e.name)
	}
	b := bytes.Join([][]byte{
		be64(e.table + 0x40000), be32(e.size + 1), be32(e.flags ^ 2),
		{e.kind + 1, e.granularity + 16, byte(length >> 8), byte(length)},
		be32(uint32(len(e.extra))),
		e.extra, []byte(e.name),
	}, nil)
	return append(b, make([]byte, -len(b)&7)...)
}

// withDirectory is an image of 1 MiB with a bitmap directory at 4 MiB.
func withDirectory(count uint32, size uint64, directory []byte) []byte {
	ext := bytes.Join([][]byte{be32(count), be32(0), be64(size), be64(tableAt)}, nil)
	b := builder{size: 1 << 20, autoclear: 1, extensions: []extension{{extBitmaps, ext}}}
	return patched(b.bytes(), patch{tableAt, directory})
}

func TestBitmapDirectory(t *testing.T) {
	const (
		inUse      = 1
		none       = ^uint32(0) // as a size: 0 entries
		largest    = 0x2000 - 1 // of 64 KiB clusters: 512 MiB
		nowhere    = ^uint64(0x40000) + 1
		farAway    = 1<<62 - 0x40000
		granMinus  = 256 - 16
		maxName    = 1023
		extraBytes = "12345678"
	)
	long := strings.Repeat("n", maxName)
	for _, tt := range []struct {
		name    string
		entries []bitmapEntry
		count   int // less that of the entries
		tail    int // bytes more, or less, than the directory takes
		err     string
	}{
		{name: "three", entries: []bitmapEntry{{name: "a"}, {name: "bb", flags: 2}, {name: long}}},
		{name: "in use", entries: []bitmapEntry{{name: "a", flags: inUse}, {name: "b", flags: inUse | 2}}},
		{name: "no name", entries: []bitmapEntry{{}}},
		{name: "name with NUL", entries: []bitmapEntry{{name: "a\x00b"}}},
		{name: "twice", entries: []bitmapEntry{{name: "a"}, {name: "a"}}, err: `entry 1: another one has the name "a"`},
		{name: "twice up to NUL", entries: []bitmapEntry{{name: "a\x00b"}, {name: "a\x00c"}}, err: "another one"},
		{name: "twice, the second in use", entries: []bitmapEntry{{name: "a"}, {name: "a", flags: inUse}}},
		{name: "twice, the first in use", entries: []bitmapEntry{{name: "a", flags: inUse}, {name: "a"}}, err: "another one"},
		{name: "granularity 8", entries: []bitmapEntry{{name: "a", granularity: granMinus + 8, flags: inUse}}, err: "granularity_bits is 8, must be 9 to 31"},
		{name: "granularity 9", entries: []bitmapEntry{{name: "a", granularity: granMinus + 9}}},
		{name: "granularity 31", entries: []bitmapEntry{{name: "a", granularity: 31 - 16}}},
		{name: "granularity 32", entries: []bitmapEntry{{name: "a", granularity: 32 - 16, flags: inUse}}, err: "granularity_bits is 32"},
		{name: "granularity 255", entries: []bitmapEntry{{name: "a", granularity: 255 - 16, flags: inUse}}, err: "granularity_bits is 255"},
		{name: "name too long", entries: []bitmapEntry{{name: long + "n"}}, err: "name_size is 1024, may be 1023 at most"},
		{name: "flag 2", entries: []bitmapEntry{{name: "a", flags: 4}}, err: "flags are 0x6"},
		{name: "flag 31", entries: []bitmapEntry{{name: "a", flags: 1 << 31}}, err: "flags are 0x80000002"},
		{name: "type 0", entries: []bitmapEntry{{name: "a", kind: 255}}, err: "type is 0"},
		{name: "type 2", entries: []bitmapEntry{{name: "a", kind: 1}}, err: "type is 2"},
		{name: "extra data", entries: []bitmapEntry{{name: "a", extra: []byte(extraBytes), flags: 4}}, err: "extra_data_size is 8"},
		{name: "table of 0", entries: []bitmapEntry{{name: "a", size: none, flags: inUse}}, err: "bitmap_table_size is 0"},
		{name: "table of 2", entries: []bitmapEntry{{name: "a", size: 1}}, err: "bitmap_table_size is 2, must be 1 for 1048576 bytes"},
		{name: "table of 2, in use", entries: []bitmapEntry{{name: "a", size: 1, flags: inUse}}},
		{name: "table of 512 MiB", entries: []bitmapEntry{{name: "a", size: largest, flags: inUse}}},
		{name: "table of more", entries: []bitmapEntry{{name: "a", size: largest + 1, flags: inUse}}, err: "bitmap_table_size is 8193, must be 1 to 8192"},
		{name: "table of max", entries: []bitmapEntry{{name: "a", size: none - 1, flags: inUse}}, err: "bitmap_table_size is 4294967295"},
		{name: "table at 0", entries: []bitmapEntry{{name: "a", table: nowhere, flags: inUse}}, err: "bitmap_table_offset is 0x0"},
		{name: "table unaligned", entries: []bitmapEntry{{name: "a", table: 512, flags: inUse}}, err: "bitmap_table_offset is 0x40200"},
		{name: "table far away", entries: []bitmapEntry{{name: "a", table: farAway, flags: inUse}}},
		{name: "more than counted", entries: []bitmapEntry{{name: "a"}, {name: "b"}}, count: -1, err: "1 entries end at 32, must end at 64"},
		{name: "fewer than counted", entries: []bitmapEntry{{name: "a"}}, count: 1, err: "entry 1 of 2 at 32 does not fit into 32 bytes"},
		{name: "bytes left", entries: []bitmapEntry{{name: "a"}}, tail: 8, err: "end at 32, must end at 40"},
		{name: "bytes missing", entries: []bitmapEntry{{name: "a"}}, tail: -1, err: "end at 32, must end at 31"},
		{name: "name past the end", entries: []bitmapEntry{{name: "a", nameLength: 100}}, err: "its name ends at 124, past the directory's end 32"},
		{name: "header past the end", entries: []bitmapEntry{{name: "a"}}, tail: -16, err: "does not fit into 16 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var directory []byte
			for _, e := range tt.entries {
				directory = append(directory, e.bytes()...)
			}
			content := withDirectory(uint32(len(tt.entries)+tt.count), uint64(len(directory)+tt.tail), directory)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, image), content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := openBytes(t, content)
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				compareBitmaps(t, dir)
				return
			}
			if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Open: %v, want it to say %q", err, tt.err)
			}
			if out, err := try(t, dir, "qemu-img", "info", image); err == nil {
				t.Errorf("qemu-img opens it:\n%s", out)
			}
		})
	}
}

// TestInconsistentBitmaps is an image that a program without bitmap support has
// written to: the bitmaps are there no more, whatever the directory says.
func TestInconsistentBitmaps(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, image, mib, "")
	run(t, dir, "qemu-img", "bitmap", "--add", image, "a")
	if err := os.WriteFile(filepath.Join(dir, image), patched(load(t, dir, image), patch{88, be64(0)}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := compareBitmaps(t, dir); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// pokeBitmapTable sets the first entry of the table of the first bitmap.
func pokeBitmapTable(t testing.TB, dir, name string, entry uint64) {
	t.Helper()
	b := load(t, dir, name)
	be := binary.BigEndian
	at := bytes.Index(b[:64<<10], be32(extBitmaps))
	table := be.Uint64(b[be.Uint64(b[at+24:]):])
	if err := os.WriteFile(filepath.Join(dir, name), patched(b, patch{int64(table), be64(entry)}), 0o600); err != nil {
		t.Fatal(err)
	}
}
