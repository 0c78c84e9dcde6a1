package file_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write makes a file in which the holes were never written.
func write(t *testing.T, path string, content []byte, holes ...storagetest.Range) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	off := int64(0)
	put := func(end int64) {
		if _, err := f.WriteAt(content[off:end], off); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range holes {
		put(h.Offset)
		off = h.Offset + h.Length
	}
	put(int64(len(content)))
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) *file.File {
	t.Helper()
	f, err := file.Open(t.Context(), path, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// dirs are where files are made: what has the temporary directory, and tmpfs.
func dirs(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{"temp": t.TempDir(), "tmpfs": tmpfs(t)}
}

// tmpfs is a directory on tmpfs, or where there is none, on what there is.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "extentd-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestConformance(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			storagetest.TestFile(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				path := filepath.Join(dir, "file")
				write(t, path, content, holes...)
				return open(t, path)
			})
		})
	}
}

func TestRawConformance(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			storagetest.TestMapper(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.Mapper {
				path := filepath.Join(dir, "file")
				write(t, path, content, holes...)
				i, err := raw.New(t.Context(), storage.NewNode("file", open(t, path), storage.NodeOptions{Check: true}))
				if err != nil {
					t.Fatal(err)
				}
				return i
			})
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, syscall.Mkfifo(path("fifo"), 0o600))
	must(t, os.Mkdir(path("directory"), 0o700))
	must(t, os.Symlink("fifo", path("link to fifo")))
	must(t, os.Symlink("nowhere", path("dangling")))
	must(t, os.Symlink("loop", path("loop")))
	write(t, path("file"), []byte("x"))
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	defer func() { must(t, syscall.Close(socket)) }()
	must(t, syscall.Bind(socket, &syscall.SockaddrUnix{Name: path("socket")}))
	d := openDir(t, dir)

	for _, c := range []struct {
		name string
		want error
	}{
		{"fifo", storage.ErrRefused},
		{"link to fifo", storage.ErrRefused},
		{"socket", storage.ErrRefused},
		{"directory", storage.ErrRefused},
		{".", storage.ErrRefused},
		{"missing", storage.ErrNotFound},
		{"missing/missing", storage.ErrNotFound},
		{"file/file", storage.ErrNotFound},
		{"dangling", storage.ErrNotFound},
		{"loop", storage.ErrNotFound},
		{strings.Repeat("n", 256), storage.ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := file.Open(t.Context(), path(c.name), file.Options{})
			check(t, "Open", err, c.want, dir)
			_, err = file.Stat(path(c.name))
			check(t, "Stat", err, c.want, dir)
			_, err = d.Open(t.Context(), c.name, file.Options{})
			check(t, "Dir.Open", err, c.want, dir)
			_, err = d.Identity(c.name)
			check(t, "Dir.Identity", err, c.want, dir)
		})
	}
	_, err = file.Open(t.Context(), "/dev/null", file.Options{}) // a character device
	check(t, "Open", err, storage.ErrRefused, "/dev")
	_, err = file.Open(t.Context(), "", file.Options{})
	check(t, "Open of no name", err, storage.ErrNotFound, dir)
	_, err = d.Open(t.Context(), "", file.Options{})
	check(t, "Dir.Open of no name", err, storage.ErrRefused, dir)
}

// TestPermissionDenied keeps the system's error. Root gives up its right to read
// everything, on a thread that ends with the test.
func TestPermissionDenied(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, []byte("x"))
	must(t, os.Chmod(path, 0))
	d := openDir(t, dir)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			const nobody = 65534
			_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0) // tells the old one, and no error
		}
		_, err := file.Open(t.Context(), path, file.Options{})
		check(t, "Open", err, syscall.EACCES, dir)
		_, err = d.Open(t.Context(), "file", file.Options{})
		check(t, "Dir.Open", err, syscall.EACCES, dir)
	}()
	<-done
}

// check wants an error of a kind whose text does not tell where on the host.
func check(t *testing.T, what string, err, want error, dir string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", what, err, want)
	}
	if err != nil && strings.Contains(err.Error(), dir+"/") {
		t.Errorf("%s tells where on the host: %v", what, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCancelledOpen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := file.Open(ctx, "/dev/null", file.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, want %v", err, context.Canceled)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, []byte("content"))
	must(t, os.Link(path, filepath.Join(dir, "hard")))
	must(t, os.Symlink("file", filepath.Join(dir, "soft")))
	write(t, filepath.Join(dir, "other"), []byte("content"))
	d := openDir(t, dir)
	f := open(t, path)
	identity := func(name string) file.Identity {
		id, err := d.Identity(name)
		must(t, err)
		return id
	}

	opened, err := f.Identity()
	must(t, err)
	for _, name := range []string{"file", "hard", "soft"} {
		if id := identity(name); id != opened {
			t.Errorf("%s is %+v, and open it is %+v", name, id, opened)
		}
		if id, err := file.Stat(filepath.Join(dir, name)); err != nil || id != opened {
			t.Errorf("Stat of %s is %+v, %v", name, id, err)
		}
	}
	if other := identity("other"); other == opened || other.SameFile(opened) {
		t.Error("two files have one identity")
	}
	if opened.Size != 7 || opened.Device || time.Since(opened.Changed()) > time.Hour || time.Since(opened.Changed()) < 0 {
		t.Errorf("identity is %+v", opened)
	}

	must(t, os.Chtimes(path, time.Time{}, time.Unix(1, 5)))
	touched := identity("file")
	if touched == opened || !touched.SameFile(opened) || touched.Mtime != 1e9+5 {
		t.Errorf("after a change of its time: %+v, before: %+v", touched, opened)
	}
	must(t, os.Rename(filepath.Join(dir, "other"), path))
	if replaced := identity("file"); replaced.SameFile(opened) {
		t.Error("a replaced file has the identity of the old one")
	}
	if id, err := f.Identity(); err != nil || !id.SameFile(opened) {
		t.Errorf("the open file is another now: %+v, %v", id, err)
	}
}

func TestAllocated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, make([]byte, 10<<20), storagetest.Range{Offset: 1 << 20, Length: 9 << 20})
	n, err := open(t, path).Allocated(t.Context())
	if err != nil || n < 1<<20 || n > 2<<20 {
		t.Errorf("Allocated() = %d, %v, want about 1 MiB", n, err)
	}
}

// TestSyscallConn: the descriptor is the file's, for reading only, does not pass
// to programs that are started, and is no longer one that does not block.
func TestSyscallConn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, []byte("content"))
	f := open(t, path)
	conn, err := f.SyscallConn()
	must(t, err)
	err = conn.Control(func(fd uintptr) {
		p := make([]byte, 3)
		if n, err := syscall.Pread(int(fd), p, 3); n != 3 || err != nil || string(p) != "ten" {
			t.Errorf("pread = %q, %v", p[:n], err)
		}
		if _, err := syscall.Pwrite(int(fd), p, 0); !errors.Is(err, syscall.EBADF) {
			t.Errorf("pwrite = %v, want %v", err, syscall.EBADF)
		}
		const closeOnExec = 1
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
		if errno != 0 || flags&closeOnExec == 0 {
			t.Errorf("descriptor flags %#x, %v", flags, errno)
		}
		flags, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if errno != 0 || flags&syscall.O_NONBLOCK != 0 {
			t.Errorf("file flags %#x, %v", flags, errno)
		}
	})
	must(t, err)
	must(t, f.Close())
	if err := conn.Control(func(uintptr) {}); err == nil {
		t.Error("the descriptor can be used after Close")
	}
	if _, err := f.Identity(); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Identity after Close = %v", err)
	}
	if _, err := f.Allocated(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Allocated after Close = %v", err)
	}
}

// TestCloseWhileInUse: nothing reaches a descriptor that is another file's by
// then.
func TestCloseWhileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := bytes.Repeat([]byte{7}, 1<<20)
	write(t, path, content)
	for range 20 {
		f := open(t, path)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				p := make([]byte, 4096)
				for {
					off := rand.Int64N(int64(len(content) - len(p)))
					n, err := f.ReadAt(t.Context(), p, off)
					if errors.Is(err, storage.ErrClosed) {
						return
					}
					if err != nil || !bytes.Equal(p[:n], content[:n]) {
						t.Errorf("read %d, %v", n, err)
						return
					}
					var l storage.ExtentList
					if err := f.Extents(t.Context(), off, 1, &l); err != nil && !errors.Is(err, storage.ErrClosed) {
						t.Errorf("extents: %v", err)
						return
					}
				}
			})
		}
		must(t, f.Close())
		wg.Wait()
	}
}

func TestReadAtShortFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, []byte("content"))
	f := open(t, path)
	must(t, os.Truncate(path, 3))
	p := make([]byte, 7)
	if n, err := f.ReadAt(t.Context(), p, 0); n != 3 || err != io.EOF || string(p[:n]) != "con" { //nolint:errorlint // must be bare
		t.Errorf("read of a file that became shorter = %d, %v", n, err)
	}
}
