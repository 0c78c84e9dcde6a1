package retry_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/filter/retry"
	"github.com/extentd/extentd/storage/storagetest"
)

// overErrors is the filter over one that fails every other operation, over a file
// of which reads and writes are cut short now and then.
func overErrors(t *testing.T, m storagetest.MemOptions) (storage.File, *storagetest.MemFile) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("errors of seed %d", seed)
	var cuts []storagetest.Hook
	for nth := int64(3); nth < 1000; nth *= 2 {
		cuts = append(cuts, storagetest.ShortNth(storagetest.OpRead, nth, 100, syscall.EIO), storagetest.ShortNth(storagetest.OpWrite, nth, 100, syscall.EIO))
	}
	m.Hook = func(ctx context.Context, op *storagetest.Op) error {
		if op.Offset < 0 { // nothing can be cut there
			return nil
		}
		return storagetest.Hooks(cuts...)(ctx, op)
	}
	mem := storagetest.NewMemFileWith(m)
	errors, err := fault.New(storage.NewNode("mem", mem, storage.NodeOptions{Check: true}), fault.Options{
		Operations: []filter.Op{filter.Read, filter.Extents, filter.Write, filter.Zero, filter.Trim, filter.Truncate},
		Rate:       0.5, Seed: seed,
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := retry.New(storage.NewNode("error(mem)", errors, storage.NodeOptions{Check: true}),
		retry.Options{Retries: 100, Delay: time.Nanosecond, MaxDelay: 10 * time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	return f, mem
}

// TestConformanceOverErrors: with every other operation failing, all is as it is
// without errors.
func TestConformanceOverErrors(t *testing.T) {
	for _, unit := range []int64{1, 512} {
		limits := storage.Limits{Minimum: unit}
		t.Run(fmt.Sprint("file ", unit), func(t *testing.T) {
			storagetest.TestFile(t, unit, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				f, mem := overErrors(t, storagetest.MemOptions{Limits: limits})
				mem.Put(content, 0)
				for _, h := range holes {
					mem.Punch(h.Offset, h.Length)
				}
				return f
			})
		})
		t.Run(fmt.Sprint("writer ", unit), func(t *testing.T) {
			storagetest.TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				f, _ := overErrors(t, storagetest.MemOptions{Size: size, Limits: limits, Litter: 0xdd})
				return f
			})
		})
	}
}
