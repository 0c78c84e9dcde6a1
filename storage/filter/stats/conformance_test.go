package stats_test

import (
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/storagetest"
)

// over is the filter over a file in memory.
func over(t *testing.T, opt stats.Options, m storagetest.MemOptions) (*storage.Node, *storagetest.MemFile) {
	t.Helper()
	return storagetest.Filtered(t, m, func(_ *testing.T, next *storage.Node) (storage.File, error) {
		return stats.New(next, opt)
	})
}

func TestConformance(t *testing.T) {
	storagetest.TestFilter(t, func(_ *testing.T, next *storage.Node) (storage.File, error) {
		return stats.New(next, options())
	})
}
