package blocksize_test

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// geometries are limits of the node below: the smallest maxima that there are, the
// largest, and some between.
func geometries() []storage.Limits {
	return []storage.Limits{
		{},
		{Minimum: 1, Preferred: 512, MaxData: 1001, MaxZero: 1003, MaxTrim: 1007},
		{Minimum: 512},
		{Minimum: 512, Preferred: 512, MaxData: 512, MaxZero: 512, MaxTrim: 1024},
		{Minimum: 4096, Preferred: 4096, MaxData: 8192, MaxZero: 12288, MaxTrim: 8192},
		{Minimum: 64 << 10, Preferred: 64 << 10, MaxData: 64 << 10, MaxZero: 64 << 10},
	}
}

func name(l storage.Limits) string {
	return fmt.Sprintf("minimum %d max_data %d", l.Minimum, l.MaxData)
}

// open puts the filter over a file with those limits.
func open(t testing.TB, f storage.File) *blocksize.Filter {
	t.Helper()
	b, err := blocksize.New(storage.NewNode("below", f, storage.NodeOptions{Check: true}), blocksize.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// litter is what is read where something was trimmed.
const litter = 0xdb

func file(l storage.Limits, hook storagetest.Hook) *storagetest.MemFile {
	return storagetest.NewMemFileWith(storagetest.MemOptions{Limits: l, Litter: litter, Hook: hook})
}

// TestConformance: the file's sizes are no multiples of its minimum.
func TestConformance(t *testing.T) {
	for _, l := range geometries() {
		t.Run(name(l), func(t *testing.T) {
			t.Parallel()
			t.Run("file", func(t *testing.T) {
				storagetest.TestFile(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
					f := file(l, nil)
					f.Put(content, 0)
					for _, h := range holes {
						f.Punch(h.Offset, h.Length)
					}
					return open(t, f)
				})
			})
			t.Run("writer", func(t *testing.T) {
				storagetest.TestWriter(t, 1, func(t *testing.T, size int64) storage.File {
					f := file(l, nil)
					f.SetSize(size)
					return open(t, f)
				})
			})
			t.Run("fixed writer", func(t *testing.T) {
				storagetest.TestFixedWriter(t, 1, func(t *testing.T, size int64) storage.File {
					f := file(l, nil)
					f.SetSize(size)
					return open(t, &fixed{f, size})
				})
			})
		})
	}
}
