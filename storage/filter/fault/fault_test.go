package fault_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests: nothing fails.
func options() fault.Options { return fault.Options{Trigger: func() bool { return false }} }

// operations are what the filter treats, through a node over it.
func operations(n *storage.Node) [filter.Ops]func(context.Context) error {
	return [filter.Ops]func(context.Context) error{
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

func injected(t *testing.T, node *storage.Node) int64 {
	t.Helper()
	counters := node.File().(filter.Counting).Counters()
	if len(counters) != 1 || counters[0].Name != "injected" {
		t.Fatalf("counters are %v", counters)
	}
	return counters[0].Value
}

// TestOperations: each kind fails alone, and all do by default; what fails does
// not reach the node below.
func TestOperations(t *testing.T) {
	all := []filter.Op{filter.Read, filter.Extents, filter.Write, filter.Zero, filter.Trim, filter.Truncate, filter.Flush}
	for _, fails := range [][]filter.Op{nil, all[:1], all[1:2], all[2:3], all[3:4], all[4:5], all[5:6], all[6:], all[2:5], all} {
		var asked int64
		node, _ := over(t, fault.Options{Operations: fails}, storagetest.MemOptions{Size: 4096, Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind != storagetest.OpLimit && op.Kind != storagetest.OpSize {
				asked++
			}
			return nil
		}})
		if fails == nil {
			fails = all
		}
		for op, do := range operations(node) {
			want := false
			for _, f := range fails {
				want = want || f == filter.Op(op)
			}
			err := do(t.Context())
			if failed := errors.Is(err, syscall.EIO) && strings.Contains(err.Error(), "injected by the error filter"); failed != want || !want && err != nil {
				t.Errorf("of %v, %v = %v", fails, filter.Op(op), err)
			}
		}
		if n := int64(len(fails)); injected(t, node) != n || asked != int64(filter.Ops)-n {
			t.Errorf("of %v, %d injected, and %d asked", fails, injected(t, node), asked)
		}
		if _, err := node.Limits(t.Context()); err != nil {
			t.Error(err)
		}
		if size, err := node.Size(t.Context()); size != 4096 || err != nil {
			t.Errorf("Size() = %d, %v", size, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, want := range []error{storage.ErrNoSpace, syscall.EIO, storage.ErrChanged} {
		node, _ := over(t, fault.Options{Err: want}, storagetest.MemOptions{Size: 4096})
		if n, err := node.WriteAt(t.Context(), []byte{1}, 0); n != 0 || !errors.Is(err, want) {
			t.Errorf("WriteAt = %d, %v, want %v", n, err, want)
		}
		var l storage.ExtentList
		if err := node.Extents(t.Context(), 0, 1, &l); l.Len() != 0 || !errors.Is(err, want) {
			t.Errorf("Extents = %v, %d of them", err, l.Len())
		}
	}
}

// pattern is which of many reads fail.
func pattern(t *testing.T, opt fault.Options) string {
	t.Helper()
	node, _ := over(t, opt, storagetest.MemOptions{Size: 4096})
	var p strings.Builder
	for range 10000 {
		if err := operations(node)[filter.Read](t.Context()); err == nil {
			p.WriteByte('.')
		} else {
			p.WriteByte('x')
		}
	}
	if n := strings.Count(p.String(), "x"); injected(t, node) != int64(n) {
		t.Errorf("%d injected, and %d failed", injected(t, node), n)
	}
	return p.String()
}

func TestRate(t *testing.T) {
	for _, rate := range []float64{0, 1e-9, 0.01, 0.5, 0.9, 1} {
		got := pattern(t, fault.Options{Rate: rate, Seed: 7})
		if pattern(t, fault.Options{Rate: rate, Seed: 7}) != got {
			t.Errorf("rate %v: the same seed makes other operations fail", rate)
		}
		want := rate
		if rate == 0 {
			want = 1
		}
		n := float64(strings.Count(got, "x"))
		if off := math.Abs(n - 10000*want); off > 6*math.Sqrt(10000*want*(1-want)) { // six standard deviations
			t.Errorf("rate %v: %v of 10000 fail", rate, n)
		}
	}
	a, b := pattern(t, fault.Options{Rate: 0.5}), pattern(t, fault.Options{Rate: 0.5})
	if a == b || a == pattern(t, fault.Options{Rate: 0.5, Seed: 1}) {
		t.Error("without a seed the same operations fail each time")
	}
	if strings.Contains(a, strings.Repeat("x", 50)) || strings.Contains(a, strings.Repeat(".", 50)) {
		t.Error("failures come in long runs")
	}
}

func TestTrigger(t *testing.T) {
	var on atomic.Bool
	node, _ := over(t, fault.Options{Operations: []filter.Op{filter.Read}, Trigger: on.Load}, storagetest.MemOptions{Size: 4096})
	for i := range 6 {
		on.Store(i%2 == 1)
		if err := operations(node)[filter.Read](t.Context()); (err != nil) != on.Load() {
			t.Errorf("ReadAt = %v, and the trigger is %v", err, on.Load())
		}
		if err := operations(node)[filter.Write](t.Context()); err != nil {
			t.Error(err)
		}
	}
	asked := 0
	node, _ = over(t, fault.Options{Rate: 1e-12, Trigger: func() bool { asked++; return true }}, storagetest.MemOptions{Size: 4096})
	for range 100 {
		if err := operations(node)[filter.Read](t.Context()); err != nil {
			t.Error(err)
		}
	}
	if asked != 0 {
		t.Errorf("asked the trigger %d times where nothing would fail", asked)
	}
}

// TestWhatHasEndedIsNotInjected: the contexts' errors and a closed file's are
// their own.
func TestWhatHasEndedIsNotInjected(t *testing.T) {
	node, _ := over(t, fault.Options{}, storagetest.MemOptions{Size: 4096})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for op, do := range operations(node) {
		if err := do(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled %v = %v", filter.Op(op), err)
		}
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	for op, do := range operations(node) {
		if err := do(t.Context()); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("closed %v = %v", filter.Op(op), err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	node, _ := over(t, fault.Options{Rate: 0.5, Trigger: func() bool { return true }}, storagetest.MemOptions{Size: 4096})
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if operations(node)[filter.Write](t.Context()) != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n != injected(t, node) || n < 1500 || n > 2500 {
		t.Errorf("%d of 4000 failed, and %d are counted", n, injected(t, node))
	}
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		field string
		opt   fault.Options
	}{
		{"rate", fault.Options{Rate: -0.1}},
		{"rate", fault.Options{Rate: 1.0001}},
		{"rate", fault.Options{Rate: math.NaN()}},
		{"rate", fault.Options{Rate: math.Inf(1)}},
		{"operations", fault.Options{Operations: []filter.Op{filter.Read, filter.Ops}}},
	} {
		_, err := fault.New(storage.NewNode("mem", storagetest.NewMemFile(nil), storage.NodeOptions{}), c.opt)
		if invalid, ok := errors.AsType[*storage.InvalidError](err); !ok || invalid.Field != c.field {
			t.Errorf("%+v: %v", c.opt, err)
		}
	}
}
