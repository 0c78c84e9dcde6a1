package delay_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/delay"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests.
func options() delay.Options {
	return delay.Options{Read: time.Microsecond, Write: time.Microsecond, Flush: time.Microsecond}
}

// operations are what the filter treats, through a node over it.
func operations(n *storage.Node) map[filter.Op]func(context.Context) error {
	return map[filter.Op]func(context.Context) error{
		filter.Read: func(ctx context.Context) error {
			_, err := n.ReadAt(ctx, make([]byte, 100), 0)
			return err
		},
		filter.Extents: func(ctx context.Context) error {
			return n.Extents(ctx, 0, 100, new(storage.ExtentList))
		},
		filter.Write: func(ctx context.Context) error {
			_, err := n.WriteAt(ctx, make([]byte, 100), 0)
			return err
		},
		filter.Zero:     func(ctx context.Context) error { return n.Zero(ctx, 0, 100, false) },
		filter.Trim:     func(ctx context.Context) error { return n.Trim(ctx, 0, 100) },
		filter.Truncate: func(ctx context.Context) error { return n.Truncate(ctx, 4096) },
		filter.Flush:    func(ctx context.Context) error { return n.Flush(ctx) },
	}
}

func TestEachOperationWaitsAsLongAsItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opt := delay.Options{
			Read: 1 * time.Hour, Extents: 2 * time.Hour, Write: 3 * time.Hour, Zero: 4 * time.Hour,
			Trim: 5 * time.Hour, Truncate: 6 * time.Hour, Flush: 7 * time.Hour,
		}
		node, _ := over(t, opt, storagetest.MemOptions{Size: 4096})
		all := operations(node)
		for op := range filter.Ops {
			begun := time.Now()
			if err := all[op](t.Context()); err != nil {
				t.Error(err)
			}
			if took, want := time.Since(begun), time.Duration(op+1)*time.Hour; took != want {
				t.Errorf("%v took %v, want %v", op, took, want)
			}
		}
	})
}

func TestNoDelayIsNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, delay.Options{}, storagetest.MemOptions{Size: 4096})
		begun := time.Now()
		for op, do := range operations(node) {
			if err := do(t.Context()); err != nil || time.Since(begun) != 0 {
				t.Errorf("%v: %v, after %v", op, err, time.Since(begun))
			}
		}
		for range 10 {
			if _, err := node.Limits(t.Context()); err != nil || time.Since(begun) != 0 {
				t.Errorf("limits: %v, after %v", err, time.Since(begun))
			}
		}
	})
}

func TestOperationsWaitSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, delay.Options{Read: time.Second}, storagetest.MemOptions{Size: 4096})
		begun := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := node.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
					t.Error(err)
				}
			})
		}
		if wg.Wait(); time.Since(begun) != time.Second {
			t.Errorf("100 reads took %v, want 1s", time.Since(begun))
		}
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := func(_ context.Context, op *storagetest.Op) error {
			if op.Kind != storagetest.OpLimit {
				t.Errorf("the node below is asked: %+v", *op)
			}
			return nil
		}
		opt := delay.Options{Read: time.Hour, Extents: time.Hour, Write: time.Hour, Zero: time.Hour, Trim: time.Hour, Truncate: time.Hour, Flush: time.Hour}
		node, _ := over(t, opt, storagetest.MemOptions{Size: 4096, Hook: asked})
		for op, do := range operations(node) {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := do(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
				t.Errorf("%v: %v, after %v", op, err, time.Since(begun))
			}
			cancel()
		}
	})
}

func TestNegativeDelays(t *testing.T) {
	for field, opt := range map[string]delay.Options{
		"read": {Read: -1}, "extents": {Extents: -1}, "write": {Write: -1}, "zero": {Zero: -1},
		"trim": {Trim: -1}, "truncate": {Truncate: -1}, "flush": {Flush: -time.Hour},
	} {
		_, err := delay.New(storage.NewNode("mem", storagetest.NewMemFile(nil), storage.NodeOptions{}), opt)
		if invalid, ok := errors.AsType[*storage.InvalidError](err); !ok || invalid.Field != field {
			t.Errorf("%s below 0: %v", field, err)
		}
	}
}
