package rate_test

import (
	"fmt"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/storagetest"
)

// over is the filter over a file in memory.
func over(t *testing.T, opt rate.Options, m storagetest.MemOptions) (*storage.Node, *storagetest.MemFile) {
	t.Helper()
	mem := storagetest.NewMemFileWith(m)
	f, err := rate.New(storage.NewNode("mem", mem, storage.NodeOptions{Check: true}), opt)
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewNode("rate(mem)", f, storage.NodeOptions{Check: true}), mem
}

func TestConformance(t *testing.T) {
	for _, unit := range []int64{1, 512} {
		limits := storage.Limits{Minimum: unit}
		open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			node, mem := over(t, options(), storagetest.MemOptions{Limits: limits})
			mem.Put(content, 0)
			for _, h := range holes {
				mem.Punch(h.Offset, h.Length)
			}
			return node.File()
		}
		t.Run(fmt.Sprint("file ", unit), func(t *testing.T) { storagetest.TestFile(t, unit, open) })
		if unit > 1 {
			t.Run(fmt.Sprint("tail ", unit), func(t *testing.T) { storagetest.TestFileTail(t, unit, open) })
		}
		t.Run(fmt.Sprint("writer ", unit), func(t *testing.T) {
			storagetest.TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				node, _ := over(t, options(), storagetest.MemOptions{Size: size, Limits: limits, Litter: 0xdd})
				return node.File()
			})
		})
	}
}
