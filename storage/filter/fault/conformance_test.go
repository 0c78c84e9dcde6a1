package fault_test

import (
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/storagetest"
)

// over is the filter over a file in memory.
func over(t *testing.T, opt fault.Options, m storagetest.MemOptions) (*storage.Node, *storagetest.MemFile) {
	t.Helper()
	mem := storagetest.NewMemFileWith(m)
	f, err := fault.New(storage.NewNode("mem", mem, storage.NodeOptions{Check: true}), opt)
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewNode("fault(mem)", f, storage.NodeOptions{Check: true}), mem
}

func TestConformance(t *testing.T) {
	storagetest.TestFilter(t, func(_ *testing.T, next *storage.Node) (storage.File, error) {
		return fault.New(next, options())
	})
}
