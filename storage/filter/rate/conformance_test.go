package rate_test

import (
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/storagetest"
)

// over is the filter over a file in memory.
func over(t *testing.T, opt rate.Options, m storagetest.MemOptions) (*storage.Node, *storagetest.MemFile) {
	t.Helper()
	return storagetest.Filtered(t, m, func(_ *testing.T, next *storage.Node) (storage.File, error) {
		return rate.New(next, opt)
	})
}

func TestConformance(t *testing.T) {
	storagetest.TestFilter(t, func(_ *testing.T, next *storage.Node) (storage.File, error) {
		return rate.New(next, options())
	})
}
