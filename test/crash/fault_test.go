package crash_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A fault fails operations of a kind from the nth on, counted from 1.
type fault struct {
	kind    storagetest.OpKind
	nth     int64
	err     error
	lasting bool // all from there on, until it is lifted
	half    bool // of a write, a part is done
	count   atomic.Int64
	hit     atomic.Bool
	armed   atomic.Bool
}

func (f *fault) hook(_ context.Context, op *storagetest.Op) error {
	if op.Kind != f.kind || !f.armed.Load() {
		return nil
	}
	if n := f.count.Add(1); n != f.nth && (!f.lasting || n < f.nth) {
		return nil
	}
	f.hit.Store(true)
	if f.half && op.Length > sector {
		op.Length = op.Length / 2 / sector * sector
	}
	return f.err
}

var (
	errDisk = fmt.Errorf("disk: %w", syscall.EIO)
	errFull = fmt.Errorf("%w: %w", storage.ErrNoSpace, syscall.ENOSPC)
)

// faults are those that each operation may have.
var faults = []struct {
	name string
	kind storagetest.OpKind
	err  error
	half bool
	most int // of them are tried, evenly
}{
	{"write", storagetest.OpWrite, errDisk, false, 40},
	{"half a write", storagetest.OpWrite, errDisk, true, 20},
	{"no space", storagetest.OpWrite, errFull, false, 40},
	{"half, no space", storagetest.OpWrite, errFull, true, 20},
	{"sync", storagetest.OpFlush, errDisk, false, 30},
	{"zero", storagetest.OpZero, errDisk, false, 10},
	{"trim", storagetest.OpTrim, errDisk, false, 10},
	{"truncate", storagetest.OpTruncate, errFull, false, 10},
	{"read", storagetest.OpRead, errDisk, false, 20},
}

// TestSoakFaults fails each operation of a workload in turn, once, and for good.
func TestSoakFaults(t *testing.T) {
	soak(t, 4, func(t *testing.T, round int) {
		for _, k := range kinds {
			t.Run(fmt.Sprintf("%s %d", k.name, round), func(t *testing.T) {
				t.Parallel()
				for _, f := range faults {
					failEach(t, k, fmt.Sprintf("%s %s %d", k.name, f.name, round), func(nth int64, lasting bool) *fault {
						return &fault{kind: f.kind, nth: nth, err: f.err, half: f.half, lasting: lasting}
					}, f.most)
				}
			})
		}
	})
}

// failEach tries a workload with a fault at each of its operations.
func failEach(t *testing.T, k *kind, name string, at func(nth int64, lasting bool) *fault, most int) {
	t.Helper()
	never := at(-1, false)
	failOnce(t, k, name, never)
	total := never.count.Load()
	stride := max(1, total*slowness/int64(most))
	for nth := int64(1); nth <= total; nth += stride {
		failOnce(t, k, name, at(nth, nth%3 == 0))
	}
}

// failOnce runs a workload with a fault. What fails says why; what was flushed
// is there; nothing is corrupt; and the image goes on, opened anew if need be.
func failOnce(t *testing.T, k *kind, name string, f *fault) {
	t.Helper()
	r, d := newRecording(t, k, name, 1, f.hook)
	w := r.workers[0]
	fatal := func(err error) {
		t.Helper()
		t.Fatalf("operation %d fails with %v, for good %v: %v\n-seed %d, %s:\n%s", f.nth, f.err, f.lasting, err, *seed, name, r.log())
	}
	ctx := t.Context()
	out := false // of service
	f.armed.Store(true)
	if err := d.startWriting(ctx); err != nil {
		if !f.explains(err) {
			fatal(fmt.Errorf("start writing: %w", err))
		}
		out = true
	}
	for i := 0; i < 25 && !out; i++ {
		err := w.step(ctx)
		if err != nil {
			w.note("failed: %v", err)
		}
		switch {
		case err == nil:
		case !f.explains(err):
			fatal(fmt.Errorf("%s: %w", w.log[len(w.log)-1], err))
		case errors.Is(err, storage.ErrOutOfService):
			out = true
		}
	}
	if !out {
		got, err := readAll(ctx, d)
		if err == nil {
			err = r.history.check(got, r.journal.Len())
		}
		if err != nil && !f.explains(err) {
			fatal(fmt.Errorf("reading back: %w", err))
		}
	}
	called := r.history.now()
	closed := d.close()
	switch {
	case closed == nil:
		r.history.flushed(called, r.journal.Len())
	case !f.explains(closed):
		fatal(fmt.Errorf("close: %w", closed))
	}
	f.armed.Store(false)
	files := r.journal.Cut(r.journal.Len(), storagetest.CutOptions{})
	cutOff := f.kind == storagetest.OpRead && k.resizes > 0 // a shrink leaves behind what it did not come to
	if closed == nil && !out && !cutOff {
		// It went on: then nothing has leaked either.
		if err := clean(ctx, files); err != nil {
			fatal(fmt.Errorf("after an error that did not end it: %w", err))
		}
	}
	if _, err := r.sound(ctx, files, r.journal.Len()); err != nil {
		fatal(err)
	}
	files = r.journal.Cut(r.journal.Len(), storagetest.CutOptions{})
	if err := r.reopened(t, files, name+" reopened"); err != nil {
		fatal(fmt.Errorf("opened anew: %w", err))
	}
	if f.nth > 0 && !f.hit.Load() {
		fatal(errors.New("the fault was never met: the workload is not the same each time"))
	}
}

// explains tells whether an error is what the fault leads to.
func (f *fault) explains(err error) bool {
	return f.hit.Load() && (errors.Is(err, f.err) || errors.Is(err, storage.ErrOutOfService))
}

// TestFailedWriteLeaksNothing is case 305 of QEMU's suite: the data of a write
// of several clusters fails after they were reserved. The error is told, the
// clusters are free again, and the next write has them.
func TestFailedWriteLeaksNothing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{errDisk, errFull} {
		for _, k := range kinds {
			if k.weights[5] > 0 {
				continue
			}
			t.Run(fmt.Sprint(k.name, " ", err), func(t *testing.T) {
				var armed atomic.Bool
				hook := func(_ context.Context, op *storagetest.Op) error {
					if op.Kind == storagetest.OpWrite && op.Length >= 2*k.cluster && armed.Load() {
						return err
					}
					return nil
				}
				r, d := newRecording(t, k, "305 "+k.name, 1, hook)
				must(t, d.startWriting(t.Context()))
				w := r.workers[0]
				must(t, w.write(t.Context()))
				must(t, w.flush(t.Context()))
				before := r.journal.Cut(r.journal.Len(), storagetest.CutOptions{})["image.qcow2"]
				sizeBefore, _ := before.Size(t.Context())
				n := min(k.size, 8*k.cluster, 128*kib)
				armed.Store(true)
				for range 20 {
					if failed := d.WriteAt(t.Context(), w.stamped(0, n), 0); !errors.Is(failed, err) || errors.Is(failed, storage.ErrOutOfService) {
						t.Fatalf("a write whose data fails: %v, want %v", failed, err)
					}
				}
				armed.Store(false)
				c := r.history.begin(0, 0, n, w.stamped(0, n))
				must(t, d.WriteAt(t.Context(), c.data, 0))
				r.history.answered(c)
				called := r.history.now()
				must(t, d.close())
				r.history.flushed(called, r.journal.Len())
				files := r.journal.Cut(r.journal.Len(), storagetest.CutOptions{})
				must(t, clean(t.Context(), files))
				_, err := r.sound(t.Context(), files, r.journal.Len())
				must(t, err)
				if size, _ := files["image.qcow2"].Size(t.Context()); size > sizeBefore+n+64*k.cluster {
					t.Errorf("the file has grown from %d to %d bytes by a write of %d: what failed was not used again", sizeBefore, size, n)
				}
			})
		}
	}
}
