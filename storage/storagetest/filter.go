package storagetest

import (
	"fmt"
	"testing"

	"github.com/extentd/extentd/storage"
)

// A MakeFilter puts a filter over a node, which it closes.
type MakeFilter func(t *testing.T, next *storage.Node) (storage.File, error)

// Filtered returns a filter over a file in memory, each under a node that checks
// what it is told.
func Filtered(t *testing.T, opt MemOptions, over MakeFilter) (*storage.Node, *MemFile) {
	t.Helper()
	below := NewMemFileWith(opt)
	f, err := over(t, storage.NewNode("mem", below, storage.NodeOptions{Check: true}))
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewNode("filter(mem)", f, storage.NodeOptions{Check: true}), below
}

// TestFilter runs the suites for a filter that has the content and the limits of
// what it stands on: over nodes of several minimums, which check what they are
// told.
func TestFilter(t *testing.T, over MakeFilter) {
	t.Helper()
	for _, unit := range []int64{1, 512} {
		limits := storage.Limits{Minimum: unit}
		open := func(t *testing.T, content []byte, holes ...Range) storage.File {
			node, next := Filtered(t, MemOptions{Limits: limits}, over)
			next.Put(content, 0)
			for _, h := range holes {
				next.Punch(h.Offset, h.Length)
			}
			return node.File()
		}
		t.Run(fmt.Sprint("minimum ", unit), func(t *testing.T) {
			TestFile(t, unit, open)
			if unit > 1 {
				TestFileTail(t, unit, open)
			}
			TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				node, _ := Filtered(t, MemOptions{Size: size, Limits: limits, Litter: 0xdd}, over)
				return node.File()
			})
		})
	}
}
