package readahead_test

import (
	"fmt"
	"io"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/readahead"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ended reports whether a read met the end of the file.
func ended(err error) bool { return err == io.EOF } //nolint:errorlint // must be bare

// checked is a node under the check of the truth tables.
func checked(name string, f storage.File) *storage.Node {
	return storage.NewNode(name, f, storage.NodeOptions{Check: true})
}

// over is a filter over a file.
func over(t *testing.T, next storage.File, size int64) *readahead.Filter {
	t.Helper()
	f, err := readahead.New(checked("next", next), readahead.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestConformance(t *testing.T) {
	for _, unit := range []int64{1, 512, 4096} {
		limits := storage.Limits{Minimum: unit}
		open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			next := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: limits})
			next.Put(content, 0)
			for _, h := range holes {
				next.Punch(h.Offset, h.Length)
			}
			return over(t, next, 64<<10)
		}
		t.Run(fmt.Sprint("minimum ", unit), func(t *testing.T) {
			storagetest.TestFile(t, unit, open)
			if unit == 512 {
				storagetest.TestFileTail(t, unit, open)
			}
			storagetest.TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				return over(t, storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Limits: limits, Litter: 0xdd}), 64<<10)
			})
		})
	}
}
