package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/storagetest"
)

func openDirect(t testing.TB, path string) *file.File {
	t.Helper()
	f, err := file.Open(t.Context(), path, file.Options{Direct: true})
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// minimum is what a direct file takes multiples of.
func minimum(t testing.TB, f *file.File) int64 {
	t.Helper()
	l, err := storage.NewNode("direct", f, storage.NodeOptions{}).Limits(t.Context())
	must(t, err)
	return l.Minimum
}

// writableDirect is a new direct file of that size, open for writing.
func writableDirect(t *testing.T, dir string, size int64) *file.File {
	t.Helper()
	must(t, writable(t, dir, size).Close())
	f := openDirect(t, filepath.Join(dir, "writable"))
	must(t, f.StartWriting(t.Context()))
	return f
}

// directDirs are where files can be direct, and their minimum there.
func directDirs(t *testing.T) map[string]struct {
	dir  string
	unit int64
} {
	t.Helper()
	all := map[string]struct {
		dir  string
		unit int64
	}{}
	for name, dir := range dirs(t) {
		path := filepath.Join(dir, "probe")
		write(t, path, []byte("x"))
		f, err := file.Open(t.Context(), path, file.Options{Direct: true})
		if errors.Is(err, storage.ErrUnsupported) {
			t.Logf("%s: %v", name, err)
			continue
		}
		must(t, err)
		all[name] = struct {
			dir  string
			unit int64
		}{dir, minimum(t, f)}
		must(t, f.Close())
	}
	if len(all) == 0 {
		t.Fatal("no file system here has direct I/O: set TMPDIR to one that has")
	}
	return all
}

func TestDirectConformance(t *testing.T) {
	for name, at := range directDirs(t) {
		t.Run(fmt.Sprint(name, " ", at.unit), func(t *testing.T) {
			open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				path := filepath.Join(at.dir, "file")
				write(t, path, content, holes...)
				return openDirect(t, path)
			}
			storagetest.TestFile(t, at.unit, open)
			storagetest.TestFileTail(t, at.unit, open)
			for _, kind := range []string{"complete", "nothing"} {
				lack := lacking[kind]
				t.Run(kind, func(t *testing.T) {
					create := func(t *testing.T, size int64) storage.File {
						f := writableDirect(t, at.dir, size)
						lack(f)
						return f
					}
					storagetest.TestWriter(t, at.unit, create)
					storagetest.TestWriterTail(t, at.unit, create)
				})
			}
		})
	}
}

// TestDirectDevice: the same on devices, of either block size.
func TestDirectDevice(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			for _, direct := range []bool{true, false} {
				unit := int64(1)
				if direct {
					unit = sector
				}
				open := func(t *testing.T, content []byte) *file.File {
					path, ok := device(t, content, sector)
					if !ok {
						return nil
					}
					f, err := file.Open(t.Context(), path, file.Options{Direct: direct})
					must(t, err)
					t.Cleanup(func() { _ = f.Close() })
					if got := minimum(t, f); got != unit {
						t.Errorf("minimum is %d, want %d", got, unit)
					}
					return f
				}
				if open(t, make([]byte, 1<<20)) == nil {
					return
				}
				storagetest.TestFixedWriter(t, unit, func(t *testing.T, size int64) storage.File {
					f := open(t, make([]byte, size))
					must(t, f.StartWriting(t.Context()))
					return f
				})
				if direct { // sizes of devices are multiples of a sector
					storagetest.TestFile(t, 4096, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
						return open(t, content)
					})
				}
			}
		})
	}
}

// TestDirectMemory: a buffer may begin anywhere, and end anywhere in the file's
// tail.
func TestDirectMemory(t *testing.T) {
	for name, at := range directDirs(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			size := 1<<20 + at.unit/2 + 3
			want := make([]byte, size)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			for i := range want {
				want[i] = byte(random.Uint32())
			}
			f := writableDirect(t, at.dir, 0)
			memory := make([]byte, size+3*8192)
			base := memory[-int(uintptr(unsafe.Pointer(&memory[0])))&8191:]
			for _, skip := range []int64{0, 1, 4, 256, 511, 512, 513, 4095, 4096} {
				must(t, f.Truncate(ctx, 0))
				p := base[skip : skip+size]
				copy(p, want)
				if n, err := f.WriteAt(ctx, p, 0); int64(n) != size || err != nil {
					t.Fatalf("WriteAt from %d = %d, %v", skip, n, err)
				}
				for _, off := range []int64{0, at.unit, 64 << 10, size / at.unit * at.unit} {
					clear(p)
					n, err := f.ReadAt(ctx, p[off:], off)
					if err != nil && err != io.EOF || int64(n) != size-off || !bytes.Equal(p[off:], want[off:]) { //nolint:errorlint // must be bare
						t.Errorf("ReadAt(%d) to %d = %d, %v", off, skip, n, err)
					}
				}
			}
		})
	}
}

// TestDirectRefuses: what is no multiple of the minimum is refused, by the node
// and by the file.
func TestDirectRefuses(t *testing.T) {
	for name, at := range directDirs(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			f := writableDirect(t, at.dir, 10*at.unit+5)
			node := storage.NewNode("direct", f, storage.NodeOptions{Check: true})
			for _, r := range []storagetest.Range{{Offset: 1, Length: at.unit}, {Offset: at.unit / 2, Length: at.unit / 2}, {Offset: 0, Length: 5}, {Offset: at.unit, Length: at.unit + 5}} {
				p := make([]byte, r.Length)
				_, read := node.ReadAt(ctx, p, r.Offset)
				_, write := node.WriteAt(ctx, p, r.Offset)
				_, own := f.WriteAt(ctx, p, r.Offset)
				for _, err := range []error{read, write, own} {
					if !errors.Is(err, storage.ErrMisaligned) {
						t.Errorf("%d bytes at %d: %v", r.Length, r.Offset, err)
					}
				}
			}
			if _, err := f.ReadAt(ctx, make([]byte, at.unit), 1); !errors.Is(err, storage.ErrMisaligned) {
				t.Errorf("ReadAt(1) = %v", err)
			}
			if _, err := node.WriteAt(ctx, bytes.Repeat([]byte{3}, 5), 10*at.unit); err != nil {
				t.Errorf("writing the tail: %v", err)
			}
			if size, err := f.Size(ctx); err != nil || size != 10*at.unit+5 {
				t.Errorf("Size() = %d, %v", size, err)
			}
		})
	}
}

// TestDirectUnsupported: there are files that know no direct I/O, and the error
// says so when they are opened.
func TestDirectUnsupported(t *testing.T) {
	_, err := file.Open(t.Context(), "/proc/version", file.Options{Direct: true})
	check(t, "Open", err, storage.ErrUnsupported, "/proc")
	f, err := file.Open(t.Context(), "/proc/version", file.Options{})
	must(t, err)
	must(t, f.Close())
}

// TestDirectLock: it has the lock of any other, and Close gives it back.
func TestDirectLock(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, make([]byte, 8192))
	for range 2 {
		f := openDirect(t, path)
		must(t, f.StartWriting(t.Context()))
		_, err := file.Open(t.Context(), path, file.Options{Direct: true})
		check(t, "Open", err, storage.ErrBusy, dir)
		must(t, f.Close())
		for name, err := range changes(t.Context(), f) {
			if !errors.Is(err, storage.ErrClosed) {
				t.Errorf("%s after Close = %v", name, err)
			}
		}
	}
}

// TestDirectTail: many write whole blocks beside the tail while others write the
// tail, which shares a page with them. Nobody's bytes come back.
func TestDirectTail(t *testing.T) {
	const workers, rounds = 3, 150
	for name, at := range directDirs(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			end := workers * at.unit // of the whole blocks
			f := writableDirect(t, at.dir, end+7)
			one := func(worker int64, off, n int64) error {
				p, got := make([]byte, n), make([]byte, n)
				for round := range rounds {
					for i := range p {
						p[i] = byte(int64(round)*8 + worker)
					}
					if _, err := f.WriteAt(ctx, p, off); err != nil {
						return err
					}
					if _, err := f.ReadAt(ctx, got, off); err != nil && err != io.EOF { //nolint:errorlint // must be bare
						return err
					}
					if !bytes.Equal(got, p) {
						return fmt.Errorf("worker %d reads %d in round %d", worker, got[0], round)
					}
				}
				return nil
			}
			var wg sync.WaitGroup
			for k := range int64(workers) {
				wg.Go(func() {
					if err := one(k, k*at.unit, at.unit); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Go(func() {
				if err := one(workers, end, 7); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
			got, err := os.ReadFile(filepath.Join(at.dir, "writable"))
			must(t, err)
			for i, b := range got {
				if worker := min(int64(i)/at.unit, workers); int64(b&7) != worker || b>>3 != (rounds-1)&31 {
					t.Fatalf("byte %d is %d", i, b)
				}
			}
		})
	}
}

// TestDirectNoAllocations: neither a buffer that is aligned nor one that is not
// costs memory for each request.
func TestDirectNoAllocations(t *testing.T) {
	for name, at := range directDirs(t) {
		f := writableDirect(t, at.dir, 1<<20)
		ctx := t.Context()
		p := make([]byte, 64<<10+8192)
		for _, skip := range []int64{0, 1} {
			q := p[-int64(uintptr(unsafe.Pointer(&p[0])))&4095+skip:][:64<<10]
			n := testing.AllocsPerRun(50, func() {
				_, write := f.WriteAt(ctx, q, 64<<10)
				_, read := f.ReadAt(ctx, q, 64<<10)
				if err := errors.Join(write, read); err != nil {
					t.Fatal(err)
				}
			})
			if n >= 1 && !racing {
				t.Errorf("%s, %d bytes beside an aligned address: %v allocations for two requests", name, skip, n)
			}
		}
	}
}
