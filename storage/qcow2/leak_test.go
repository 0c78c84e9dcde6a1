package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestFailedReadLeaksNothing fails each read in turn of what changes more
// refcount blocks than are kept in memory, or ends the context there: what was
// to be given back is given back later, and what was half reserved is not.
func TestFailedReadLeaksNothing(t *testing.T) {
	const options, size = "cluster_size=512,refcount_bits=64", 4 << 20
	dir := t.TempDir()
	create(t, dir, "image", size, options)
	qemuIO(t, dir, "image", "write -P 1 0 768k")
	run(t, dir, "qemu-img", "snapshot", "-c", "s", "image")
	qemuIO(t, dir, "image", "write -P 2 0 320k")
	content := load(t, dir, "image")
	const n = 640 << 10
	// reserved makes the refcount blocks for a run, and opens the image anew.
	reserved := func(w *written) {
		b, err := w.image.Alloc(w.t.Context(), n, storage.AllocOptions{Contiguous: true})
		w.ok(err)
		_, err = w.node.WriteAt(w.t.Context(), make([]byte, 512), b.Offset+b.Length-512)
		w.ok(errors.Join(err, w.image.Free(w.t.Context(), b), w.image.Close()))
		w.open()
	}
	for name, prepare := range map[string]func(w *written) func(ctx context.Context) error{
		"discard": func(w *written) func(ctx context.Context) error {
			w.ok(w.image.Update(w.t.Context(), 160<<10, 480<<10, storage.Target{Kind: storage.ToUnmapped}))
			return w.image.Flush
		},
		"alloc": func(w *written) func(ctx context.Context) error {
			reserved(w)
			return allocate(w, n)
		},
		"longer": func(w *written) func(ctx context.Context) error { // with new refcount blocks
			reserved(w)
			return allocate(w, n+64<<10)
		},
		"free": func(w *written) func(ctx context.Context) error {
			reserved(w)
			b, err := w.image.Alloc(w.t.Context(), n, storage.AllocOptions{Contiguous: true})
			w.ok(err)
			return func(ctx context.Context) error { return w.image.Free(ctx, b) }
		},
	} {
		for _, cancelled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %v", name, cancelled), func(t *testing.T) {
				nth := 0
				for failRead(t, content, nth, cancelled, prepare) {
					nth++
				}
				if nth < 4 {
					t.Errorf("there are %d reads", nth)
				}
			})
		}
	}
}

// allocate returns what reserves n bytes and gives them back.
func allocate(w *written, n int64) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		b, err := w.image.Alloc(ctx, n, storage.AllocOptions{Contiguous: true})
		if err == nil {
			err = w.image.Free(context.WithoutCancel(ctx), b)
		}
		return err
	}
}

// TestCancelledGrowth ends the context of an allocation at one read after the
// other up to that with which the refcount table begins to grow: that goes on.
func TestCancelledGrowth(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 4<<20, "cluster_size=512,refcount_bits=64")
	qemuIO(t, dir, "image", "write -P 1 0 3M")
	content := load(t, dir, "image")
	grown := false
	for nth := 64; nth < 512 && !grown; nth++ {
		failRead(t, content, nth, true, func(w *written) func(ctx context.Context) error {
			w.ok(w.image.Update(w.t.Context(), 0, 1024, storage.Target{Kind: storage.ToUnmapped}))
			w.ok(w.image.Close())
			w.open()
			alloc := allocate(w, 4<<20)
			return func(ctx context.Context) error {
				var before, after [12]byte // where the table is, and how large
				_, _ = w.file.ReadAt(w.t.Context(), before[:], 48)
				err := alloc(ctx)
				_, _ = w.file.ReadAt(w.t.Context(), after[:], 48)
				grown = err != nil && before != after
				return err
			}
		})
	}
	if !grown {
		t.Error("the refcount table never grew for what was given up")
	}
}

// failRead fails a read of what prepare returns, and reports whether there was
// such a one.
func failRead(t *testing.T, content []byte, nth int, cancelled bool, prepare func(w *written) func(ctx context.Context) error) bool {
	t.Helper()
	count := -1 // counts where it is not negative
	broken := errors.New("broken")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: func(ctx context.Context, op *storagetest.Op) error {
		if count < 0 || op.Kind != storagetest.OpRead {
			return nil
		}
		if count++; count != nth+1 {
			return nil
		}
		if cancelled {
			cancel()
			return ctx.Err()
		}
		return broken
	}})
	file.Put(content, 0)
	w := &written{t: t, dir: t.TempDir(), file: file, opt: qcow2.Options{CacheSize: 1}}
	w.open()
	step := prepare(w)
	count = 0
	err := step(ctx)
	came := count > nth
	count = -1
	explained := came && (errors.Is(err, broken) || errors.Is(err, context.Canceled))
	if err != nil && !explained {
		t.Fatalf("read %d: %v", nth, err)
	}
	if w.image.Failed() {
		t.Fatalf("read %d: out of service after %v", nth, err)
	}
	w.ok(w.image.Close())
	res, failed := qcow2.Check(t.Context(), w.node, qcow2.CheckOptions{})
	if w.ok(failed); !res.Clean() {
		t.Fatalf("read %d, %v: %d leaks\n%s", nth, err, res.Leaks, strings.Join(res.Errors, "\n"))
	}
	return came
}
