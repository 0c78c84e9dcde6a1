package storagetest

import (
	"fmt"
	"testing"

	"github.com/extentd/extentd/storage"
)

// A MakeFilter puts a filter over a node, which it closes.
type MakeFilter func(t *testing.T, next *storage.Node) (storage.File, error)

// TestFilter runs the suites for a filter that has the content and the limits of
// what it stands on: over nodes of several minimums, which check what they are
// told.
func TestFilter(t *testing.T, over MakeFilter) {
	t.Helper()
	open := func(t *testing.T, next *MemFile) storage.File {
		t.Helper()
		f, err := over(t, storage.NewNode("next", next, storage.NodeOptions{Check: true}))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, unit := range []int64{1, 512} {
		limits := storage.Limits{Minimum: unit}
		openFile := func(t *testing.T, content []byte, holes ...Range) storage.File {
			next := NewMemFileWith(MemOptions{Limits: limits})
			next.Put(content, 0)
			for _, h := range holes {
				next.Punch(h.Offset, h.Length)
			}
			return open(t, next)
		}
		t.Run(fmt.Sprint("minimum ", unit), func(t *testing.T) {
			TestFile(t, unit, openFile)
			if unit > 1 {
				TestFileTail(t, unit, openFile)
			}
			TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				return open(t, NewMemFileWith(MemOptions{Size: size, Limits: limits, Litter: 0xdd}))
			})
		})
	}
}
