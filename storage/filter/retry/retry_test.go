package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/retry"
	"github.com/extentd/extentd/storage/storagetest"
)

// options are those of the conformance tests, which meet no errors that pass.
func options() retry.Options { return retry.Options{} }

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

// counters are "retries" and "given_up".
func counters(t *testing.T, node *storage.Node) (retries, givenUp int64) {
	t.Helper()
	all := node.File().(filter.Counting).Counters()
	if len(all) != 2 || all[0].Name != "retries" || all[1].Name != "given_up" {
		t.Fatalf("counters are %v", all)
	}
	return all[0].Value, all[1].Value
}

// failing fails the first n operations of every file below, and counts all.
func failing(n int64, err error, asked *atomic.Int64) storagetest.Hook {
	return func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpLimit || op.Kind == storagetest.OpSize {
			return nil
		}
		if asked.Add(1) <= n {
			return err
		}
		return nil
	}
}

// TestTries: what is tried again, how often, and what is told of it.
func TestTries(t *testing.T) {
	for _, c := range []struct {
		fails, retries, givenUp int64
		failed                  bool
	}{{0, 0, 0, false}, {1, 1, 0, false}, {3, 3, 0, false}, {4, 3, 1, true}, {100, 3, 1, true}} {
		synctest.Test(t, func(t *testing.T) {
			for op := range filter.Flush {
				var asked atomic.Int64
				node, _ := over(t, retry.Options{Retries: 3}, storagetest.MemOptions{Size: 4096, Hook: failing(c.fails, syscall.EIO, &asked)})
				err := operations(node)[op](t.Context())
				if (err != nil) != c.failed || asked.Load() != c.retries+1 {
					t.Errorf("%d failures: %v = %v, after %d tries", c.fails, op, err, asked.Load())
				}
				if c.failed && (!errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "after 4 tries: ")) {
					t.Errorf("%d failures: %v = %v", c.fails, op, err)
				}
				if retries, givenUp := counters(t, node); retries != c.retries || givenUp != c.givenUp {
					t.Errorf("%d failures: %v: %d retries, %d given up", c.fails, op, retries, givenUp)
				}
			}
		})
	}
}

// TestFlushIsNotRetried, whatever its error.
func TestFlushIsNotRetried(t *testing.T) {
	var asked atomic.Int64
	node, _ := over(t, retry.Options{}, storagetest.MemOptions{Hook: failing(1, syscall.EIO, &asked)})
	if err := node.Flush(t.Context()); !errors.Is(err, syscall.EIO) || strings.Contains(err.Error(), "tries") || asked.Load() != 1 {
		t.Errorf("Flush = %v, after %d tries", err, asked.Load())
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		passes bool
	}{
		{syscall.EIO, true},
		{syscall.ECONNRESET, true},
		{fmt.Errorf("body: %w", io.ErrUnexpectedEOF), true},
		{fmt.Errorf("body: %w", io.EOF), true}, // not the end of the file, which is bare
		{context.DeadlineExceeded, true},       // a limit of the node below: the caller's context has not ended
		{storage.ErrBackingUnavailable, true},
		{storage.ErrOutOfRange, false},
		{&storage.MisalignedError{Minimum: 512, Offset: 1, Length: 512}, false},
		{&storage.TooLongError{}, false},
		{storage.ErrCorrupt, false},
		{storage.ErrUnsupported, false},
		{storage.ErrRefused, false},
		{storage.ErrBusy, false},
		{storage.ErrNotFound, false},
		{storage.ErrExists, false},
		{storage.ErrReadOnly, false},
		{storage.ErrConflict, false},
		{fmt.Errorf("%w: %w", storage.ErrNoSpace, syscall.ENOSPC), false},
		{storage.ErrOutOfService, false},
		{&storage.InvalidError{Field: "size"}, false},
		{storage.ErrChanged, false},
		{storage.ErrClosed, false},
		{storage.ErrContract, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			node, _ := over(t, retry.Options{}, storagetest.MemOptions{Size: 4096, Hook: failing(1, c.err, &asked)})
			_, err := node.WriteAt(t.Context(), []byte{1}, 0)
			if c.passes && (err != nil || asked.Load() != 2) {
				t.Errorf("%v: WriteAt = %v, after %d tries", c.err, err, asked.Load())
			}
			if !c.passes && (!errors.Is(err, c.err) || asked.Load() != 1) {
				t.Errorf("%v: WriteAt = %v, after %d tries", c.err, err, asked.Load())
			}
		})
	}
}

// TestAnErrorThatStaysEndsIt, also after one that may pass.
func TestAnErrorThatStaysEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, retry.Options{}, storagetest.MemOptions{Size: 4096, Hook: storagetest.Hooks(
			storagetest.FailNth(storagetest.OpRead, 1, syscall.EIO), storagetest.FailNth(storagetest.OpRead, 1, storage.ErrChanged))}) // which does not see the first
		_, err := node.ReadAt(t.Context(), make([]byte, 10), 0)
		if retries, givenUp := counters(t, node); !errors.Is(err, storage.ErrChanged) || !strings.Contains(err.Error(), "after 2 tries") || retries != 1 || givenUp != 1 {
			t.Errorf("ReadAt = %v, %d retries, %d given up", err, retries, givenUp)
		}
	})
}

// TestHalfDone: what was cut short is done anew as a whole.
func TestHalfDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := bytes.Repeat([]byte("0123456789"), 1000)
		var fresh atomic.Bool
		node, mem := over(t, retry.Options{}, storagetest.MemOptions{Hook: storagetest.Hooks(
			func(_ context.Context, op *storagetest.Op) error {
				fresh.CompareAndSwap(false, op.Kind == storagetest.OpRead && op.Offset == 100 && op.Length == 7000)
				return nil
			},
			storagetest.ShortNth(storagetest.OpRead, 1, 1234, syscall.EIO), storagetest.ShortNth(storagetest.OpRead, 2, 5000, syscall.EIO),
			storagetest.ShortNth(storagetest.OpWrite, 1, 55, syscall.EIO))})
		if n, err := node.WriteAt(t.Context(), content, 0); n != len(content) || err != nil || !bytes.Equal(mem.Bytes(), content) {
			t.Errorf("WriteAt = %d, %v", n, err)
		}
		p := make([]byte, 7000)
		if n, err := node.ReadAt(t.Context(), p, 100); n != len(p) || err != nil || !bytes.Equal(p, content[100:7100]) || !fresh.Load() {
			t.Errorf("ReadAt = %d, %v", n, err)
		}
		if n, err := node.ReadAt(t.Context(), p, 9000); n != 1000 || err != io.EOF { //nolint:errorlint // must be bare
			t.Errorf("ReadAt of the end = %d, %v", n, err)
		}
		if retries, givenUp := counters(t, node); retries != 3 || givenUp != 0 {
			t.Errorf("%d retries, %d given up", retries, givenUp)
		}
	})
}

// TestEndAfterARetry: a read that meets the end of the file after a failure.
func TestEndAfterARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, _ := over(t, retry.Options{}, storagetest.MemOptions{Size: 1000, Hook: storagetest.FailNth(storagetest.OpRead, 1, syscall.EIO)})
		if n, err := node.ReadAt(t.Context(), make([]byte, 500), 600); n != 400 || err != io.EOF { //nolint:errorlint // must be bare
			t.Errorf("ReadAt = %d, %v", n, err)
		}
	})
}

func TestBackOff(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		opt  retry.Options
		want []time.Duration // the longest waits
	}{
		{retry.Options{}, []time.Duration{s / 10, s / 5, 2 * s / 5, 4 * s / 5, 8 * s / 5}},
		{retry.Options{Retries: 6, Delay: s, MaxDelay: 5 * s}, []time.Duration{s, 2 * s, 4 * s, 5 * s, 5 * s, 5 * s}},
		{retry.Options{Retries: 3, Delay: 30 * s}, []time.Duration{30 * s, 30 * s, 30 * s}},
		{retry.Options{Retries: 2, Delay: 4 * s}, []time.Duration{4 * s, 8 * s}},
		{retry.Options{Retries: 3, Delay: 1, MaxDelay: 1}, []time.Duration{1, 1, 1}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var last time.Time
			var waits []time.Duration
			node, _ := over(t, c.opt, storagetest.MemOptions{Size: 4096, Hook: func(_ context.Context, op *storagetest.Op) error {
				if op.Kind != storagetest.OpRead {
					return nil
				}
				waits, last = append(waits, time.Since(last)), time.Now()
				return syscall.EIO
			}})
			jitter := map[time.Duration]bool{}
			for range 20 {
				waits = nil
				if _, err := node.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
					t.Fatal(err)
				}
				if waits = waits[1:]; len(waits) != len(c.want) {
					t.Fatalf("%+v: waits %v", c.opt, waits)
				}
				for i, most := range c.want {
					if waits[i] > most || waits[i] < most/2 {
						t.Errorf("%+v: wait %d is %v, want %v to %v", c.opt, i, waits[i], most/2, most)
					}
				}
				jitter[waits[0]] = true
			}
			if len(jitter) < 15 && c.want[0] > time.Millisecond {
				t.Errorf("%+v: first waits are %v", c.opt, jitter)
			}
		})
	}
}

func TestContextEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		node, _ := over(t, retry.Options{Delay: time.Minute}, storagetest.MemOptions{Size: 4096, Hook: failing(100, syscall.EIO, &asked)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		n, err := node.ReadAt(ctx, make([]byte, 10), 0)
		if n != 0 || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EIO) || time.Since(begun) != time.Second || asked.Load() != 1 {
			t.Errorf("ReadAt = %d, %v, after %v and %d tries", n, err, time.Since(begun), asked.Load())
		}
		if text := fmt.Sprint(err); !strings.Contains(text, "after 1 try") || !strings.Contains(text, syscall.EIO.Error()) {
			t.Errorf("the error does not say what it was waiting for: %v", err)
		}
		if retries, givenUp := counters(t, node); retries != 0 || givenUp != 1 {
			t.Errorf("%d retries, %d given up", retries, givenUp)
		}
		asked.Store(0)
		if err := operations(node)[filter.Read](ctx); !errors.Is(err, context.DeadlineExceeded) || asked.Load() != 0 {
			t.Errorf("ReadAt = %v, after %d tries", err, asked.Load())
		}
	})
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		field string
		opt   retry.Options
	}{
		{"retries", retry.Options{Retries: -1}},
		{"retries", retry.Options{Retries: 101}},
		{"delay", retry.Options{Delay: -time.Second}},
		{"delay", retry.Options{Delay: 2 * time.Hour}},
		{"max_delay", retry.Options{MaxDelay: -1}},
		{"max_delay", retry.Options{MaxDelay: 2 * time.Hour}},
		{"max_delay", retry.Options{Delay: 2 * time.Second, MaxDelay: time.Second}},
	} {
		_, err := retry.New(storage.NewNode("mem", storagetest.NewMemFile(nil), storage.NodeOptions{}), c.opt)
		if invalid, ok := errors.AsType[*storage.InvalidError](err); !ok || invalid.Field != c.field {
			t.Errorf("%+v: %v", c.opt, err)
		}
	}
}
