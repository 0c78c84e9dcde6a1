package stats_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests.
func options() stats.Options { return stats.Options{} }

// counted are the counters that are not 0, without the histograms.
func counted(node *storage.Node) map[string]int64 {
	all := map[string]int64{}
	for _, c := range node.File().(filter.Counting).Counters() {
		if c.Value != 0 && !strings.Contains(c.Name, "_us_le_") {
			all[c.Name] = c.Value
		}
	}
	return all
}

func TestNamesAndOrder(t *testing.T) {
	node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 4096})
	var want []string
	for _, op := range []string{"read", "extents", "write", "zero", "trim", "truncate", "flush"} {
		want = append(want, op+"_operations", op+"_bytes", op+"_errors")
		for _, us := range stats.Bounds() {
			want = append(want, fmt.Sprintf("%s_us_le_%d", op, us))
		}
	}
	for range 2 {
		var got []string
		for _, c := range node.File().(filter.Counting).Counters() {
			got = append(got, c.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if err := node.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if b := stats.Bounds(); !slices.IsSorted(b) || b[0] != 1 || b[len(b)-1] != 10e6 {
		t.Errorf("bounds %v", b)
	}
}

// TestWhatCounts: bytes that were moved or named, and errors that are some.
func TestWhatCounts(t *testing.T) {
	ctx := t.Context()
	p := make([]byte, 1000)
	for _, c := range []struct {
		name string
		do   func(n *storage.Node)
		want map[string]int64
	}{
		{"nothing", func(*storage.Node) {}, map[string]int64{}},
		{"read", func(n *storage.Node) { _, _ = n.ReadAt(ctx, p, 3000) }, map[string]int64{"read_operations": 1, "read_bytes": 1000}},
		{"reads at the end", func(n *storage.Node) {
			_, _ = n.ReadAt(ctx, p, 4000)
			_, _ = n.ReadAt(ctx, p, 5000)
		}, map[string]int64{"read_operations": 2, "read_bytes": 96}},
		{"read that fails half-way", func(n *storage.Node) {
			for range 3 {
				_, _ = n.ReadAt(ctx, p, 0)
			}
		}, map[string]int64{"read_operations": 3, "read_bytes": 2300, "read_errors": 1}},
		{"write", func(n *storage.Node) { _, _ = n.WriteAt(ctx, p, 1<<40) }, map[string]int64{"write_operations": 1, "write_bytes": 1000}},
		{"extents", func(n *storage.Node) {
			_ = n.Extents(ctx, 10, 100, new(storage.ExtentList))
			_ = n.Extents(ctx, 4000, 1000, new(storage.ExtentList)) // out of range
		}, map[string]int64{"extents_operations": 2, "extents_bytes": 100, "extents_errors": 1}},
		{"zero", func(n *storage.Node) {
			_ = n.Zero(ctx, 0, 2000, true)
			_ = n.Zero(ctx, 0, 500, false)
		}, map[string]int64{"zero_operations": 2, "zero_bytes": 2500}},
		{"trim", func(n *storage.Node) { _ = n.Trim(ctx, 0, 2000) }, map[string]int64{"trim_operations": 1, "trim_bytes": 2000}},
		{"truncate", func(n *storage.Node) { _ = n.Truncate(ctx, 77) }, map[string]int64{"truncate_operations": 1}},
		{"flush", func(n *storage.Node) {
			_ = n.Flush(ctx)
			_ = n.Flush(ctx)
		}, map[string]int64{"flush_operations": 2, "flush_errors": 1}},
		{"size and limits", func(n *storage.Node) {
			_, _ = n.Size(ctx)
			_, _ = n.Limits(ctx)
			_, _ = n.Allocated(ctx)
		}, map[string]int64{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 4096, Hook: storagetest.Hooks(
				storagetest.ShortNth(storagetest.OpRead, 3, 300, syscall.EIO),
				storagetest.FailNth(storagetest.OpFlush, 2, syscall.EIO),
			)})
			c.do(node)
			if diff := cmp.Diff(c.want, counted(node)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestARefusedRequestDoesNotCount: the limits are enforced before the filter is
// asked.
func TestARefusedRequestDoesNotCount(t *testing.T) {
	node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 1 << 20, Limits: storage.Limits{Minimum: 512}})
	for _, off := range []int64{1, 511, 513} {
		if _, err := node.ReadAt(t.Context(), make([]byte, 512), off); err == nil {
			t.Errorf("read at %d is not refused", off)
		}
		if _, err := node.WriteAt(t.Context(), make([]byte, 512), off); err == nil {
			t.Errorf("write at %d is not refused", off)
		}
	}
	if got := counted(node); len(got) != 0 {
		t.Errorf("counted %v", got)
	}
}

func TestHistogram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d time.Duration
		node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 4096, Hook: func(ctx context.Context, op *storagetest.Op) error {
			return storagetest.Delay(storagetest.OpWrite, d)(ctx, op)
		}})
		all := []time.Duration{
			0, 1000, 1001, 3 * time.Microsecond, 10 * time.Microsecond, 11 * time.Microsecond, time.Millisecond,
			2 * time.Second, 3 * time.Second, 10 * time.Second, 10*time.Second + 1, time.Hour,
		}
		want := map[string]int64{}
		for _, d = range all {
			if _, err := node.WriteAt(t.Context(), make([]byte, 1), 0); err != nil {
				t.Fatal(err)
			}
			for _, us := range stats.Bounds() {
				if d <= time.Duration(us)*time.Microsecond {
					want[fmt.Sprint("write_us_le_", us)]++
				}
			}
		}
		got := map[string]int64{}
		for _, c := range node.File().(filter.Counting).Counters() {
			if strings.Contains(c.Name, "_us_le_") && c.Value != 0 {
				got[c.Name] = c.Value
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if want["write_us_le_1"] != 2 || want["write_us_le_10000000"] != 10 {
			t.Errorf("the test expects %v", want)
		}
	})
}

// TestConcurrent: nothing is lost, and counters can be read meanwhile.
func TestConcurrent(t *testing.T) {
	node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 4096})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				_, _ = node.WriteAt(t.Context(), make([]byte, 10), 0)
				_ = node.Extents(t.Context(), 0, 5000, new(storage.ExtentList)) // out of range
				if c := counted(node); c["write_bytes"] > c["write_operations"]*10+40 {
					t.Errorf("counted %v", c)
				}
			}
		})
	}
	wg.Wait()
	want := map[string]int64{"write_operations": 2000, "write_bytes": 20000, "extents_operations": 2000, "extents_errors": 2000}
	if got := counted(node); !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestNoAllocation(t *testing.T) {
	node, _ := over(t, stats.Options{}, storagetest.MemOptions{Size: 1 << 20})
	ctx, p := t.Context(), make([]byte, 4096)
	if _, err := node.WriteAt(ctx, p, 0); err != nil {
		t.Fatal(err)
	}
	var list storage.ExtentList
	if allocs := testing.AllocsPerRun(100, func() {
		list.Reset()
		_, read := node.ReadAt(ctx, p, 0)
		_, write := node.WriteAt(ctx, p, 0)
		if extents := node.Extents(ctx, 0, 4096, &list); read != nil || write != nil || extents != nil {
			t.Error(read, write, extents)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
