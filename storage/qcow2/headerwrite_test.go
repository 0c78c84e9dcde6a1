package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestHeaderFaults fails a write of the header: what is found there afterwards
// decides.
func TestHeaderFaults(t *testing.T) {
	broken := errors.New("broken")
	mark := func(w *written) error { // writes the dirty bit
		w.write(bytes.Repeat([]byte{1}, 4096), 0)
		return w.image.Flush(t.Context())
	}
	grow := func(w *written) error { // writes where the L1 table is, and how large, and then the size
		return w.image.Resize(t.Context(), 64<<20, storage.ResizeOptions{})
	}
	for _, tt := range []struct {
		name       string
		block      int64 // the node's minimum
		step       func(w *written) error
		written    int64 // so much of the write is done
		err        error
		unreadable bool
		want       error // of the step
	}{
		{"nothing written", 0, mark, 0, broken, false, broken},
		{"nothing of a block", 4096, mark, 0, broken, false, broken},
		{"no space", 0, mark, 0, storage.ErrNoSpace, false, storage.ErrNoSpace},
		{"no space to grow", 0, grow, 0, storage.ErrNoSpace, false, storage.ErrNoSpace},
		{"all that matters", 4096, mark, 512, broken, false, nil},
		{"all that matters of a larger one", 4096, grow, 512, storage.ErrNoSpace, false, nil},
		{"half", 0, grow, 1, storage.ErrNoSpace, false, storage.ErrOutOfService},
		{"unreadable", 0, mark, 0, storage.ErrNoSpace, true, storage.ErrOutOfService},
	} {
		t.Run(tt.name, func(t *testing.T) {
			failures := 0
			w := newWritten(t, 1<<20, "cluster_size=4k,lazy_refcounts=on", nil)
			content := w.file.Bytes()
			w.ok(w.image.Close())
			w.file = storagetest.NewMemFileWith(storagetest.MemOptions{
				Limits: storage.Limits{Minimum: tt.block},
				Hook: func(_ context.Context, op *storagetest.Op) error {
					switch {
					case op.Kind == storagetest.OpWrite && op.Offset < 104 && failures == 0:
						failures++
						if tt.written > 0 {
							op.Length = tt.written
						}
						return tt.err
					case op.Kind == storagetest.OpRead && op.Offset == 0 && failures > 0 && tt.unreadable:
						return broken
					}
					return nil
				},
			})
			w.file.Put(content, 0)
			w.open()
			if err := tt.step(w); !errors.Is(err, tt.want) || failures != 1 {
				t.Fatalf("%d failures, and the error is %v, want %v", failures, err, tt.want)
			}
			if got, want := w.image.Failed(), errors.Is(tt.want, storage.ErrOutOfService); got != want {
				t.Fatalf("out of service: %v", got)
			} else if got {
				return
			}
			if tt.want != nil {
				w.ok(tt.step(w)) // and now it works
			}
			if w.image.Info().Dirty != (w.file.Bytes()[79]&1 != 0) {
				t.Error("the dirty bit on disk is another one")
			}
			w.model = append(w.model, make([]byte, w.image.Size()-int64(len(w.model)))...)
			w.compare()
			w.close()
		})
	}
}
