package file

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// playDirect is a writer that is direct to a file of any file system, with an
// alignment of its own that its calls check.
func playDirect(t *testing.T, size, offset, memory int64) (*File, *direct) {
	t.Helper()
	f := started(t, size)
	w := f.w.Load()
	conn, err := w.f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	d := newDirect(w.f, conn, alignment{memory: memory, offset: offset})
	aligned := func(p []byte, off int64) {
		if off%offset != 0 || int64(len(p))%offset != 0 || len(p) == 0 || int64(address(p))%memory != 0 {
			t.Errorf("a call for %d bytes at %d, with memory at %#x", len(p), off, address(p))
		}
	}
	d.calls = directCalls{
		pread: func(fd int, p []byte, off int64) (int, error) {
			aligned(p, off)
			return unix.Pread(fd, p, off)
		},
		pwrite: func(fd int, p []byte, off int64) (int, error) {
			aligned(p, off)
			return unix.Pwrite(fd, p, off)
		},
	}
	return f, d
}

// content is such that no two blocks are the same.
func content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>9 + i)
	}
	return p
}

// TestDirectAlignments: all calls are aligned, whatever is to be aligned, and
// wherever the caller's buffer is.
func TestDirectAlignments(t *testing.T) {
	for offset := int64(1); offset <= maxAlignment; offset *= 8 {
		for memory := int64(1); memory <= maxAlignment; memory *= 16 {
			size := 2*bounceSize + 3*offset + offset/2
			_, d := playDirect(t, size, offset, memory)
			want := content(int(size))
			whole := size &^ (offset - 1)
			for _, skip := range []int{0, 1, 8} {
				p := append(make([]byte, skip), want...)[skip:]
				if n, err := d.writeAt(p[:whole], 0); int64(n) != whole || err != nil {
					t.Fatalf("offset %d, memory %d: writeAt = %d, %v", offset, memory, n, err)
				}
				clear(p)
				if n, err := d.readAt(p[:whole], 0); int64(n) != whole || err != nil || !bytes.Equal(p[:whole], want[:whole]) {
					t.Fatalf("offset %d, memory %d: readAt = %d, %v", offset, memory, n, err)
				}
				clear(p)
				n, err := d.readAt(append(p[offset:], 0, 0, 0), offset)
				if int64(n) != size-offset || err != io.EOF { //nolint:errorlint // must be bare
					t.Fatalf("offset %d, memory %d: readAt past the end = %d, %v", offset, memory, n, err)
				}
			}
		}
	}
}

// TestDirectInParts: what the system does in parts goes on where it stopped, if
// that is aligned.
func TestDirectInParts(t *testing.T) {
	const block = 512
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		part func(calls, n int) (int, error) // of n bytes
		read error
		n    int // that are read or written
		want error
	}{
		{"block by block", func(int, int) (int, error) { return block, nil }, nil, 4 * block, nil},
		{"interrupted", func(calls, n int) (int, error) {
			if calls%2 == 0 {
				return -1, unix.EINTR
			}
			return n, nil
		}, nil, 4 * block, nil},
		{"fails at once", func(int, int) (int, error) { return -1, broken }, broken, 0, broken},
		{"fails later", func(calls, _ int) (int, error) {
			if calls > 0 {
				return -1, broken
			}
			return 2 * block, nil
		}, broken, 2 * block, broken},
		{"a part of a block", func(int, int) (int, error) { return block + 100, nil }, io.EOF, block + 100, io.ErrShortWrite},
		{"nothing", func(int, int) (int, error) { return 0, nil }, io.EOF, 0, io.ErrShortWrite},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, memory := range []int64{1, 1 << 16} { // in place, and copied
				_, d := playDirect(t, 4*block, block, memory)
				calls := 0
				partly := func(do func(fd int, p []byte, off int64) (int, error)) func(fd int, p []byte, off int64) (int, error) {
					return func(fd int, p []byte, off int64) (int, error) {
						n, err := c.part(calls, len(p))
						if calls++; n > 0 {
							_, _ = do(fd, p[:(n+block-1)/block*block], off)
						}
						return n, err
					}
				}
				d.calls = directCalls{pread: partly(d.calls.pread), pwrite: partly(d.calls.pwrite)}
				want := content(4 * block)
				if n, err := d.writeAt(want, 0); n != c.n || !errors.Is(err, c.want) {
					t.Errorf("writeAt = %d, %v, want %d, %v", n, err, c.n, c.want)
				}
				calls = 0
				got := make([]byte, 4*block)
				n, err := d.readAt(got, 0)
				if n != c.n || !errors.Is(err, c.read) || !bytes.Equal(got[:n], want[:n]) {
					t.Errorf("readAt = %d, %v, want %d, %v", n, err, c.n, c.read)
				}
			}
		})
	}
}

func TestAlignmentIsValid(t *testing.T) {
	for _, c := range []struct {
		a     alignment
		valid bool
	}{
		{alignment{1, 1}, true},
		{alignment{4, 512}, true},
		{alignment{4096, 64 << 10}, true},
		{alignment{0, 0}, false}, // as the kernel says that there is no direct I/O
		{alignment{512, 0}, false},
		{alignment{0, 512}, false},
		{alignment{512, 128 << 10}, false},
		{alignment{512, 513}, false},
		{alignment{3, 512}, false},
	} {
		if err := c.a.valid(); (err == nil) != c.valid || err != nil && !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("%+v: %v", c.a, err)
		}
	}
}

// TestDirectByName: without /proc the name must still lead to the same file.
func TestDirectByName(t *testing.T) {
	dir := t.TempDir()
	path, missing := filepath.Join(dir, "file"), filepath.Join(dir, "no proc", "1")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := f.reopen(missing)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []*os.File{f.direct.f, w.direct.f} {
		flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_DIRECT == 0 || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("flags are %#x, %v", flags, err)
		}
	}
	if err := errors.Join(w.direct.f.Close(), w.f.Close()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.WriteFile(path+"2", []byte("another"), 0o600), os.Rename(path+"2", path)); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []int{os.O_RDONLY, os.O_RDWR} {
		if _, err := f.againDirect(missing, flag); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("another file: %v", err)
		}
	}
}

// TestPreferred: what is told is taken where it is sensible.
func TestPreferred(t *testing.T) {
	f := started(t, 8192)
	if got, err := f.Limit(t.Context(), storage.Preferred); got != 0 || err != nil {
		t.Errorf("preferred of a regular file is %d, %v, want the default", got, err)
	}
	_, f.direct = playDirect(t, 8192, 64<<10, 1)
	if got, err := f.Limit(t.Context(), storage.Preferred); got != 64<<10 || err != nil {
		t.Errorf("preferred is %d, %v, want the minimum", got, err)
	}
	if got, err := f.Limit(t.Context(), storage.Minimum); got != 64<<10 || err != nil {
		t.Errorf("minimum is %d, %v", got, err)
	}
	f.direct = nil
	f.device = true // that tells nothing
	if got, err := f.Limit(t.Context(), storage.Preferred); got != minPreferred || err != nil {
		t.Errorf("preferred of a device that does not tell is %d, %v", got, err)
	}
}
