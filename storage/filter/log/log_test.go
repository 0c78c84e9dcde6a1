package log_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/log"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests.
func options() log.Options { return log.Options{Logger: slog.New(silent{slog.DiscardHandler})} }

// silent takes all records, and writes none.
type silent struct{ slog.Handler }

func (silent) Enabled(context.Context, slog.Level) bool { return true }

// logger writes to a buffer, from which the records are taken.
func logger(level slog.Level) (*slog.Logger, func(t *testing.T) []map[string]any) {
	var b bytes.Buffer
	l := slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: level}))
	return l, func(t *testing.T) []map[string]any {
		t.Helper()
		var all []map[string]any
		for d := json.NewDecoder(&b); d.More(); {
			var one map[string]any
			if err := d.Decode(&one); err != nil {
				t.Fatal(err)
			}
			delete(one, "time")
			all = append(all, one)
		}
		return all
	}
}

func TestRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, records := logger(slog.LevelDebug)
		node, _ := over(t, log.Options{Logger: l}, storagetest.MemOptions{Size: 1 << 20, Hook: storagetest.Hooks(
			storagetest.Delay(storagetest.OpRead, time.Millisecond),
			storagetest.FailNth(storagetest.OpZero, 2, syscall.EIO),
		)})
		ctx := t.Context()
		_, _ = node.ReadAt(ctx, make([]byte, 4096), 512)
		_, _ = node.ReadAt(ctx, make([]byte, 4096), 1<<20-100) // meets the end
		_, _ = node.WriteAt(ctx, make([]byte, 10), 3<<20)
		_ = node.Extents(ctx, 0, 2<<20, new(storage.ExtentList))
		_ = node.Zero(ctx, 4096, 8192, true)
		_ = node.Zero(ctx, 4096, 8192, false)
		_ = node.Trim(ctx, 1, 2)
		_ = node.Truncate(ctx, 12345)
		_ = node.Flush(ctx)
		_, _ = node.Size(ctx)

		record := func(op string, offset, length, took float64) map[string]any {
			return map[string]any{"level": "DEBUG", "msg": "operation", "node": "mem", "op": op, "offset": offset, "length": length, "took": took}
		}
		failed := record("zero", 4096, 8192, 0)
		failed["error"] = "mem: zero of 8192 bytes at 4096: input/output error"
		want := []map[string]any{
			record("read", 512, 4096, 1e6), record("read", 1<<20-100, 4096, 1e6), record("write", 3<<20, 10, 0),
			record("extents", 0, 2<<20, 0), record("zero", 4096, 8192, 0), failed, record("trim", 1, 2, 0),
			record("truncate", 12345, 0, 0), record("flush", 0, 0, 0),
		}
		if diff := cmp.Diff(want, records(t)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestOffCostsNothing: no record, and no allocation.
func TestOffCostsNothing(t *testing.T) {
	l, records := logger(slog.LevelInfo)
	node, _ := over(t, log.Options{Logger: l}, storagetest.MemOptions{Size: 1 << 20})
	ctx, p := t.Context(), make([]byte, 4096)
	var list storage.ExtentList
	allocs := testing.AllocsPerRun(100, func() {
		list.Reset()
		_, err := node.ReadAt(ctx, p, 0)
		if e := node.Extents(ctx, 0, 4096, &list); err != nil || e != nil {
			t.Error(err, e)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if got := records(t); len(got) != 0 {
		t.Errorf("records %v", got)
	}
}

// TestLevelIsAskedForEachTime: logging can be turned on and off while the node is
// open.
func TestLevelIsAskedForEachTime(t *testing.T) {
	var b bytes.Buffer
	var level slog.LevelVar
	node, _ := over(t, log.Options{Logger: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: &level}))}, storagetest.MemOptions{})
	for i, l := range []slog.Level{slog.LevelInfo, slog.LevelDebug, slog.LevelInfo} {
		b.Reset()
		level.Set(l)
		if err := node.Flush(context.WithoutCancel(t.Context())); err != nil || (b.Len() > 0) != (l == slog.LevelDebug) {
			t.Errorf("%d: %v, logged %q", i, err, b.String())
		}
	}
}

func TestDefaultLogger(t *testing.T) {
	l, records := logger(slog.LevelDebug)
	before := slog.Default()
	slog.SetDefault(l)
	t.Cleanup(func() { slog.SetDefault(before) })
	node, _ := over(t, log.Options{}, storagetest.MemOptions{})
	if err := node.Flush(t.Context()); err != nil || len(records(t)) != 1 {
		t.Errorf("Flush = %v, and there is no record", err)
	}
}
