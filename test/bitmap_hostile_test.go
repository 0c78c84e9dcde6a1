package test

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"testing"
)

// bitmapDirectory finds the bitmap directory of an image by its header extension,
// and the table of its first bitmap.
func bitmapDirectory(t *testing.T, m *maker, file string) (directory, table int64) {
	t.Helper()
	header := m.peek(file, 0, 4096)
	for at := int64(binary.BigEndian.Uint32(header[100:])); at < 4000; {
		kind, length := binary.BigEndian.Uint32(header[at:]), int64(binary.BigEndian.Uint32(header[at+4:]))
		if kind == extBitmaps {
			directory = int64(binary.BigEndian.Uint64(header[at+24:]))
			return directory, int64(binary.BigEndian.Uint64(m.peek(file, directory, 8)))
		}
		at += 8 + (length+7)&^7
	}
	t.Fatal("there is no bitmap directory")
	return 0, 0
}

// TestHostileBitmaps: a bitmap directory that is none is refused with its image, as
// QEMU does, and written to by nobody; a table that is none is refused when the bitmap
// is read, and everything else is served.
func TestHostileBitmaps(t *testing.T) {
	t.Parallel()
	const inDirectory, inTable = 0, 1
	for name, poke := range map[string]struct {
		where int
		at    int64
		data  []byte
	}{
		"table is nowhere":         {inDirectory, 0, be64(1 << 60)},
		"table is past the end":    {inDirectory, 0, be64(1 << 40)},
		"table is askew":           {inDirectory, 0, be64(0x30001)},
		"no table":                 {inDirectory, 0, be64(0)},
		"table of nothing":         {inDirectory, 8, be32(0)},
		"table is too large":       {inDirectory, 8, be32(1<<32 - 1)},
		"unknown flags":            {inDirectory, 12, be32(1 << 31)},
		"unknown type":             {inDirectory, 16, []byte{2}},
		"granularity of 256 bytes": {inDirectory, 17, []byte{8}},
		"granularity of 4 GiB":     {inDirectory, 17, []byte{32}},
		"granularity of 2^255":     {inDirectory, 17, []byte{255}},
		"name is too long":         {inDirectory, 18, []byte{0xff, 0xff}},
		"extra data":               {inDirectory, 20, be32(8)},
		"huge extra data":          {inDirectory, 20, be32(1<<32 - 1)},
		"same name":                {inDirectory, 24, []byte("good")},
		"reserved bits":            {inTable, 0, be64(0x1f0)},
		"cluster is askew":         {inTable, 0, be64(0x30200)},
		"cluster past the end":     {inTable, 0, be64(1 << 40)},
		"cluster is nowhere":       {inTable, 0, be64(1<<56 - 1<<16)},
		"a cluster and all ones":   {inTable, 0, be64(0x30001)},
		"high reserved bits":       {inTable, 0, be64(1 << 63)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMaker(t, t.TempDir(), "hostile")
			file := m.create(".qcow2", mib)
			for _, name := range []string{"evil", "good"} {
				m.run("qemu-img", "bitmap", "--add", file, name)
			}
			m.io(file, "write -P 7 64k 64k")
			for _, name := range []string{"evil", "good"} {
				m.run("qemu-img", "bitmap", "--disable", file, name)
			}
			directory, table := bitmapDirectory(t, m, file)
			want := qemuRead(t, m.dir, file, 0, mib)
			at := directory + poke.at
			if poke.where == inTable {
				at = table + poke.at
			}
			m.poke(file, at, poke.data)
			before := readFile(t, m.path(file))
			s := serve(t, m.dir, overNBD()...)
			dirty := imagePath(file, "/extents?dirty=evil")
			s.expectProblem(t, http.StatusUnprocessableEntity, "corrupt-image", dirty)
			a, err := s.send(http.MethodGet, imagePath(file, "/data"), nil)
			must(t, err)
			if a.status == http.StatusUnprocessableEntity {
				if poke.where == inTable {
					t.Errorf("the image is refused for one bitmap: %s", a.body)
				}
				mustRefuse(t, s.put(file, 0, []byte("x"), true), http.StatusUnprocessableEntity, "corrupt-image")
				s.stop()
				if !bytes.Equal(readFile(t, m.path(file)), before) {
					t.Error("it was written to")
				}
				return
			}
			if !bytes.Equal(a.body, want) {
				t.Error("the data is not what it was")
			}
			if list, err := s.dirty(file, "good"); err != nil {
				t.Error(err)
			} else {
				sameFlags(t, "the good one", list, []flagged{{0, 64 * kib, 0}, {64 * kib, 64 * kib, 1}, {128 * kib, mib - 128*kib, 0}})
			}
			if b := s.bitmaps(t, file)["evil"]; b.Dirty != nil {
				t.Errorf("%+v", b)
			}
			for _, operation := range []string{"enable", "merge"} {
				body := object{"changes": []object{{"image": file, "operation": operation, "bitmap": "evil"}}}
				if operation == "merge" {
					body = object{"changes": []object{{"image": file, "operation": operation, "bitmap": "good", "from": []string{"evil"}}}}
				}
				a, err := s.sendJSON(http.MethodPost, "/v1/bitmaps", body)
				mustRefuse(t, accepted(operation, a, err, http.StatusNoContent), http.StatusUnprocessableEntity, "corrupt-image")
			}
		})
	}
}
