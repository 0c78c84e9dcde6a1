package cow_test

import (
	"fmt"
	"io"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/cow"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ended reports whether a read met the end of the file.
func ended(err error) bool { return err == io.EOF } //nolint:errorlint // must be bare

// checked is a node under the check of the truth tables.
func checked(name string, f storage.File) *storage.Node {
	return storage.NewNode(name, f, storage.NodeOptions{Check: true})
}

// scratch is an empty overlay, but for its first bytes.
func scratch(opt storagetest.MemOptions) *storagetest.MemFile {
	opt.Size = 4096
	f := storagetest.NewMemFileWith(opt)
	f.Put([]byte("header"), 0)
	return f
}

// over is a filter over a file, with a new overlay.
func over(t *testing.T, next storage.File) *cow.Filter {
	t.Helper()
	f, err := cow.New(t.Context(), checked("below", next), cow.Options{File: checked("overlay", scratch(storagetest.MemOptions{}))})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestConformance(t *testing.T) {
	for _, c := range []struct{ unit, most int64 }{{1, 0}, {512, 8192}, {4096, 0}} {
		limits := storage.Limits{Minimum: c.unit, MaxData: c.most, MaxTrim: c.most, MaxZero: c.most}
		open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			below := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: limits})
			below.Put(content, 0)
			for _, h := range holes {
				below.Punch(h.Offset, h.Length)
			}
			return over(t, readOnly{below})
		}
		t.Run(fmt.Sprintf("minimum %d, at most %d", c.unit, c.most), func(t *testing.T) {
			storagetest.TestFile(t, c.unit, open)
			if c.unit == 512 {
				storagetest.TestFileTail(t, c.unit, open)
			}
			storagetest.TestWriter(t, c.unit, func(t *testing.T, size int64) storage.File {
				return over(t, readOnly{storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Limits: limits})})
			})
		})
	}
}

// TestOverlayConformance has all that is read in the overlay.
func TestOverlayConformance(t *testing.T) {
	storagetest.TestFile(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
		junk := make([]byte, len(content))
		for i := range junk {
			junk[i] = 0xbb
		}
		f := over(t, readOnly{storagetest.NewMemFile(junk)})
		if _, err := f.WriteAt(t.Context(), content, 0); err != nil {
			t.Fatal(err)
		}
		for i, h := range holes {
			if err := f.Zero(t.Context(), h.Offset, h.Length, i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
		return f
	})
}

// readOnly hides that a file can be written to: nothing may reach it.
type readOnly struct{ storage.File }
