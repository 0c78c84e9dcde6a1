package qcow2_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/extentd/extentd/storage"
)

func deflated(t *testing.T, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := flate.NewWriter(&buf, 9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestUnpack unpacks clusters that are not quite what they should be, and asks
// QEMU whether it can read them.
func TestUnpack(t *testing.T) {
	const c = 64 << 10
	rng := random(t)
	data := make([]byte, c)
	for k := range 2000 {
		data[k] = byte(rng.Uint32())
	}
	copy(data[c/2:], data[:2000])
	junk := bytes.Repeat([]byte{0xa5, 0x17}, 200)
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	d := func(p []byte) []byte { return deflated(t, p) }
	z := func(p []byte) []byte { return e.EncodeAll(p, nil) }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tt := range []struct {
		name   string
		zstd   bool
		packed []byte
		ok     bool
	}{
		{"deflate", false, d(data), true},
		{"deflate, garbage follows", false, cat(d(data), junk), true},
		{"deflate, longer", false, d(cat(data, junk)), true},
		{"deflate, shorter", false, d(data[1:]), false},
		{"deflate, cut", false, d(data)[:500], false},
		{"deflate, garbage", false, junk, false},
		{"deflate, zeros", false, nil, false},
		{"zstd", true, z(data), true},
		{"zstd, garbage follows", true, cat(z(data), junk), true},
		{"zstd, two frames", true, cat(z(data[:1000]), z(data[1000:])), true},
		{"zstd, longer", true, z(cat(data, junk)), false},
		{"zstd, shorter", true, z(data[1:]), false},
		{"zstd, second frame longer", true, cat(z(data[:1000]), z(cat(data[1000:], junk))), false},
		{"zstd, cut", true, z(data)[:500], false},
		{"zstd, garbage", true, junk, false},
		{"zstd, zeros", true, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sectors := uint64(max(len(tt.packed)-1, 0) / 512)
			b := builder{entries: []uint64{packed | sectors<<54 | tableAt}}
			if tt.zstd {
				b.incompatible = 1 << 3
			}
			content := patched(b.bytes(), patch{tableAt, tt.packed})
			i := mustOpen(t, content)
			got, err := fetch(i, 0, c, true)
			if err != nil || len(got) != 1 || got[0].NodeOffset != tableAt || int(got[0].PackedLength) < len(tt.packed) {
				t.Fatalf("%+v, %v", got, err)
			}
			dst := make([]byte, c)
			err = i.Unpack(dst, append(bytes.Clone(tt.packed), make([]byte, int(got[0].PackedLength)-len(tt.packed))...))
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("Unpack: %v", err)
			}
			if err == nil && !bytes.Equal(dst, data) {
				t.Error("unpacked something else")
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, image), content, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := try(t, dir, "qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", image)
			if reads := err == nil && !strings.Contains(out, "failed"); reads != tt.ok {
				t.Errorf("qemu-io: %v\n%s", err, out)
			}
		})
	}
	i := mustOpen(t, (&builder{size: c}).bytes())
	if err := i.Unpack(make([]byte, c/2), d(data)); !errors.Is(err, storage.ErrContract) {
		t.Errorf("Unpack into half a cluster: %v", err)
	}
}
