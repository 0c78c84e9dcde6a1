package nbd_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// file writes a file with holes.
func file(t testing.TB, content []byte, holes ...storagetest.Range) string {
	t.Helper()
	name := filepath.Join(directory(t), "f")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(0)
	for _, h := range append(holes, storagetest.Range{Offset: int64(len(content))}) {
		if _, err := f.WriteAt(content[at:h.Offset], at); err != nil {
			t.Fatal(err)
		}
		at = h.Offset + h.Length
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReads(t *testing.T) {
	for _, s := range []struct {
		name string
		unit int64
		uri  func(t *testing.T, file string) string
	}{
		{"nbdkit", 1, func(t *testing.T, f string) string { return nbdkit(t, "file", f) }},
		{"nbdkit with 512", 512, func(t *testing.T, f string) string {
			return nbdkit(t, "--filter=blocksize-policy", "file", f, "blocksize-minimum=512", "blocksize-error-policy=error")
		}},
		{"nbdkit with 4096", 4096, func(t *testing.T, f string) string {
			return nbdkit(t, "--filter=blocksize-policy", "file", f,
				"blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=64K", "blocksize-error-policy=error")
		}},
		{"nbdkit without extents", 1, func(t *testing.T, f string) string { return nbdkit(t, "--filter=noextents", "file", f) }},
		{"nbdkit without structured replies", 1, func(t *testing.T, f string) string { return nbdkit(t, "--no-sr", "file", f) }},
		{"nbdkit without multi-conn", 1, func(t *testing.T, f string) string {
			return nbdkit(t, "--filter=multi-conn", "file", f, "multi-conn-mode=disable")
		}},
		{"qemu-nbd", 512, func(t *testing.T, f string) string { return qemuNBD(t, f) }},
		{"qemu-nbd read-only", 512, func(t *testing.T, f string) string { return qemuNBD(t, f, "-r") }},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			storagetest.TestFile(t, s.unit, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				return openFile(t, options(s.uri(t, file(t, content, holes...))))
			})
		})
	}
}

func TestWrites(t *testing.T) {
	for _, s := range []struct {
		name string
		unit int64
		uri  func(t *testing.T, size int64) string
	}{
		{"nbdkit memory", 1, func(t *testing.T, size int64) string { return nbdkit(t, "memory", strconv.FormatInt(size, 10)) }},
		{"nbdkit file", 1, func(t *testing.T, size int64) string { return nbdkit(t, "file", file(t, make([]byte, size))) }},
		{"nbdkit with 4096", 4096, func(t *testing.T, size int64) string {
			return nbdkit(t, "--filter=blocksize-policy", "memory", strconv.FormatInt(size, 10),
				"blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=64K", "blocksize-error-policy=error")
		}},
		{"nbdkit without zero", 1, func(t *testing.T, size int64) string {
			return nbdkit(t, "--filter=nozero", "memory", strconv.FormatInt(size, 10))
		}},
		{"nbdkit without structured replies", 1, func(t *testing.T, size int64) string {
			return nbdkit(t, "--no-sr", "memory", strconv.FormatInt(size, 10))
		}},
		{"nbdkit one after the other", 1, func(t *testing.T, size int64) string {
			return nbdkit(t, "--filter=noparallel", "memory", strconv.FormatInt(size, 10))
		}},
		{"nbdkit with delays", 1, func(t *testing.T, size int64) string {
			return nbdkit(t, "--filter=delay", "memory", strconv.FormatInt(size, 10), "wdelay=1ms")
		}},
		{"qemu-nbd", 512, func(t *testing.T, size int64) string {
			return qemuNBD(t, file(t, make([]byte, size)), "--discard=unmap")
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			storagetest.TestFixedWriter(t, s.unit, func(t *testing.T, size int64) storage.File {
				return openFile(t, options(s.uri(t, size)))
			})
		})
	}
}
