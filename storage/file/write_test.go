package file_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/storagetest"
)

// writable is a new file of that size, open for writing.
func writable(t *testing.T, dir string, size int64) *file.File {
	t.Helper()
	path := filepath.Join(dir, "writable")
	_ = os.Remove(path) // of the test before
	write(t, path, nil)
	must(t, os.Truncate(path, size))
	f := open(t, path)
	must(t, f.StartWriting(t.Context()))
	return f
}

// lacking are the kinds of file system that there are.
var lacking = map[string]func(f *file.File){
	"complete":      func(*file.File) {},
	"no zero range": func(f *file.File) { f.Without(true, false, false) },
	"no reserving":  func(f *file.File) { f.Without(true, false, true) },
	"no punching":   func(f *file.File) { f.Without(false, true, false) },
	"nothing":       func(f *file.File) { f.Without(true, true, true) },
}

func TestWriterConformance(t *testing.T) {
	for name, dir := range dirs(t) {
		for kind, lack := range lacking {
			t.Run(name+" "+kind, func(t *testing.T) {
				storagetest.TestWriter(t, 1, func(t *testing.T, size int64) storage.File {
					f := writable(t, dir, size)
					lack(f)
					return f
				})
			})
		}
	}
}

// TestAgainstMemFile makes the same changes to a file here and in memory, which
// agree on more than the contract asks for: what is trimmed reads as zeros.
func TestAgainstMemFile(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				f, m := writable(t, dir, 0), storagetest.NewMemFile(nil)
				defer f.Close()
				at := rapid.Int64Range(0, 40<<10)
				both := func(change func(w storage.Writer) error) {
					for _, w := range []storage.Writer{f, m} {
						if err := change(w); err != nil {
							rt.Fatal(err)
						}
					}
				}
				ctx := t.Context()
				rt.Repeat(map[string]func(*rapid.T){
					"write": func(rt *rapid.T) {
						p, off := rapid.SliceOfN(rapid.Byte(), 0, 9000).Draw(rt, "p"), at.Draw(rt, "off")
						both(func(w storage.Writer) error { _, err := w.WriteAt(ctx, p, off); return err })
					},
					"zero": func(rt *rapid.T) {
						off, n, keep := at.Draw(rt, "off"), at.Draw(rt, "n"), rapid.Bool().Draw(rt, "keep")
						both(func(w storage.Writer) error { return w.Zero(ctx, off, n, keep) })
					},
					"trim": func(rt *rapid.T) {
						off, n := at.Draw(rt, "off"), at.Draw(rt, "n")
						both(func(w storage.Writer) error { return w.Trim(ctx, off, n) })
					},
					"truncate": func(rt *rapid.T) {
						size := at.Draw(rt, "size")
						both(func(w storage.Writer) error { return w.Truncate(ctx, size) })
					},
					"": func(rt *rapid.T) {
						want := m.Bytes()
						got := make([]byte, len(want)+1)
						n, err := f.ReadAt(ctx, got, 0)
						if n != len(want) || err != io.EOF || !bytes.Equal(got[:n], want) { //nolint:errorlint // must be bare
							rt.Fatalf("contents differ after %d of %d bytes, %v", n, len(want), err)
						}
					},
				})
			})
		})
	}
}

// TestStorage: holes are made and storage is kept where that is asked for.
func TestStorage(t *testing.T) {
	const size = 8 << 20
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			f := writable(t, dir, 0)
			_, err := f.WriteAt(ctx, bytes.Repeat([]byte{1}, size), 0)
			must(t, err)
			expect := func(what string, want int64) {
				t.Helper()
				got, err := f.Allocated(ctx)
				must(t, err)
				if got < want-64<<10 || got > want+64<<10 { // the file system's own blocks
					t.Errorf("%s: %d bytes are allocated, want %d", what, got, want)
				}
			}
			must(t, f.Flush(ctx))
			expect("data", size)
			must(t, f.Zero(ctx, 0, size/2, true))
			expect("zeros that are kept", size)
			must(t, f.Zero(ctx, 0, size/4, false))
			expect("zeros", size*3/4)
			must(t, f.Trim(ctx, size/2, size/4))
			expect("trim", size/2)
			must(t, f.Zero(ctx, size, 1<<40, false))
			expect("a hole of 1 TiB", size/2)
			if got, err := f.Size(ctx); err != nil || got != size+1<<40 {
				t.Errorf("Size() = %d, %v", got, err)
			}
			must(t, f.Trim(ctx, 0, storage.MaxSize))
			expect("trim of everything", 0)
		})
	}
}

// TestNoSpace: the process may write no larger file, as the file system may have
// no room.
func TestNoSpace(t *testing.T) {
	f := writable(t, t.TempDir(), 100)
	ctx := t.Context()
	for name, err := range map[string]error{
		"truncate": f.Truncate(ctx, 1<<60),
		"zero":     f.Zero(ctx, 1<<60, 4096, false),
	} {
		if !errors.Is(err, storage.ErrNoSpace) || !errors.Is(err, unix.EFBIG) {
			t.Errorf("%s = %v, want %v and %v", name, err, storage.ErrNoSpace, unix.EFBIG)
		}
	}
	n, err := f.WriteAt(ctx, make([]byte, 10), 1<<60)
	if n != 0 || !errors.Is(err, storage.ErrNoSpace) || !errors.Is(err, unix.EFBIG) {
		t.Errorf("write = %d, %v", n, err)
	}
	if size, err := f.Size(ctx); err != nil || size != 100 {
		t.Errorf("Size() = %d, %v", size, err)
	}
}
