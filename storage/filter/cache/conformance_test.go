package cache_test

import (
	"fmt"
	"io"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/cache"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ended reports whether a read met the end of the file.
func ended(err error) bool { return err == io.EOF } //nolint:errorlint // must be bare

// checked is a node under the check of the truth tables.
func checked(name string, f storage.File) *storage.Node {
	return storage.NewNode(name, f, storage.NodeOptions{Check: true})
}

// scratch is an empty file for a cache, but for its first bytes.
func scratch(hook storagetest.Hook) *storage.Node {
	f := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 4096, Limits: storage.Limits{MaxData: 12 << 10}, Hook: hook})
	f.Put([]byte("header"), 0)
	return checked("scratch", f)
}

// over is a filter over a file, with a cache of so many blocks.
func over(t *testing.T, next storage.File, blocks, block int64, hook storagetest.Hook) *cache.Filter {
	t.Helper()
	f, err := cache.New(t.Context(), checked("next", next), cache.Options{File: scratch(hook), Size: blocks * block, BlockSize: block})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestConformance(t *testing.T) {
	for _, c := range []struct{ unit, blocks, most int64 }{
		{1, 2, 0}, {512, 3, 16 << 10}, {4096, 1000, 0},
	} {
		limits := storage.Limits{Minimum: c.unit, MaxData: c.most}
		open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			next := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: limits})
			next.Put(content, 0)
			for _, h := range holes {
				next.Punch(h.Offset, h.Length)
			}
			return over(t, next, c.blocks, 32<<10, nil)
		}
		t.Run(fmt.Sprintf("minimum %d, %d blocks, at most %d", c.unit, c.blocks, c.most), func(t *testing.T) {
			storagetest.TestFile(t, c.unit, open)
			if c.unit == 512 {
				storagetest.TestFileTail(t, c.unit, open)
			}
			if c.most > 0 { // the suite writes more at once
				return
			}
			storagetest.TestWriter(t, c.unit, func(t *testing.T, size int64) storage.File {
				return over(t, storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Limits: limits, Litter: 0xdd}), c.blocks, 32<<10, nil)
			})
		})
	}
}
