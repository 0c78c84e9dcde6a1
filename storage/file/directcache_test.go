package file_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
	blocks "github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
)

// TestDirectIsDirect: what it reads is not in the page cache afterwards, nor what
// it writes, nor what a stream sends. On tmpfs the page cache is all there is, and
// only the stream can be looked at.
func TestDirectIsDirect(t *testing.T) {
	for name, at := range directDirs(t) {
		t.Run(name, func(t *testing.T) { testDirectIsDirect(t, filepath.Join(at.dir, "file")) })
	}
}

func testDirectIsDirect(t *testing.T, path string) {
	const size = 4 << 20
	write(t, path, bytes.Repeat([]byte{1}, size))
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	onDisk := st.Type != unix.TMPFS_MAGIC
	if onDisk {
		drop(t, path)
	}
	expectDirect := func(what string) {
		t.Helper()
		if n := cached(t, path); n != 0 && onDisk {
			t.Errorf("%d bytes are cached after %s", n, what)
		}
	}
	f := openDirect(t, path)
	p := make([]byte, size)
	_, err := f.ReadAt(t.Context(), p, 0)
	must(t, err)
	expectDirect("reading")
	device := image(t, f) // read-only: of a writable one nothing is sent by sendfile
	s, err := device.Stream(t.Context(), 0, size)
	must(t, err)
	for {
		piece, err := s.Next()
		if err == io.EOF { //nolint:errorlint // Next returns it bare
			break
		}
		must(t, err)
		if piece.File != nil {
			t.Fatal("a stream sends from a direct file by sendfile")
		}
	}
	must(t, s.Close())
	expectDirect("streaming")
	must(t, f.StartWriting(t.Context()))
	_, err = f.WriteAt(t.Context(), p, 0)
	must(t, err)
	expectDirect("writing")
}

// image is a raw image on a file.
func image(t *testing.T, f *file.File) *blocks.Device {
	t.Helper()
	node := storage.NewNode("direct", f, storage.NodeOptions{Check: true})
	i, err := raw.New(t.Context(), node)
	must(t, err)
	d, err := blocks.New([]storage.Mapper{i}, blocks.Options{})
	must(t, err)
	return d
}

// drop writes a file's pages back and drops them from the page cache.
func drop(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	if n := cached(t, path); n != 0 {
		t.Fatalf("%d bytes stay in the page cache: the test can tell nothing", n)
	}
}

// cached is how many bytes of a file are in the page cache.
func cached(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(m)) }()
	page := os.Getpagesize()
	in := make([]byte, (len(m)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	n := int64(0)
	for _, b := range in {
		n += int64(b&1) * int64(page)
	}
	return n
}
