package storage_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// readOnly hides everything of a file that writes.
type readOnly struct{ storage.File }

func TestNodeWithoutWriter(t *testing.T) {
	n := storage.NewNode("disk", readOnly{storagetest.NewMemFile(make([]byte, 4096))}, storage.NodeOptions{})
	for name, err := range writes(t.Context(), n, 0, 512) {
		if !errors.Is(err, storage.ErrReadOnly) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrReadOnly)
		}
	}
}

// writes are the results of everything that changes a node.
func writes(ctx context.Context, n *storage.Node, off, length int64) map[string]error {
	_, write := n.WriteAt(ctx, make([]byte, min(length, 8192)), off)
	return map[string]error{
		"WriteAt":  write,
		"Zero":     n.Zero(ctx, off, length, false),
		"Trim":     n.Trim(ctx, off, length),
		"Flush":    n.Flush(ctx),
		"Truncate": n.Truncate(ctx, 4096),
	}
}

func TestNodeWrites(t *testing.T) {
	f := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 8192))
	n := storage.NewNode("disk", f, storage.NodeOptions{Check: true})
	ctx := t.Context()
	steps := []error{
		n.Zero(ctx, 0, 100, true),
		n.Zero(ctx, 4096, 100, false),
		n.Truncate(ctx, 8000),
		n.Flush(ctx),
	}
	if k, err := n.WriteAt(ctx, []byte("written"), 8000); k != 7 || err != nil {
		t.Errorf("WriteAt = %d, %v", k, err)
	}
	for i, err := range steps {
		if err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
	want := bytes.Repeat([]byte{1}, 8000)
	clear(want[:100])
	clear(want[4096:4196])
	if got := f.Bytes(); !bytes.Equal(got, append(want, "written"...)) {
		t.Error("the file has other bytes")
	}
}

// TestNodeRefusesWrites that are misaligned or out of range, before the file is
// asked.
func TestNodeRefusesWrites(t *testing.T) {
	asked := false
	hook := func(_ context.Context, op *storagetest.Op) error {
		asked = asked || op.Kind != storagetest.OpLimit && op.Kind != storagetest.OpSize
		return nil
	}
	f := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 8292, Limits: storage.Limits{Minimum: 512}, Hook: hook})
	n := storage.NewNode("disk", f, storage.NodeOptions{})
	for _, c := range []struct {
		off, length int64
		want        error
	}{
		{1, 512, storage.ErrMisaligned},
		{0, 511, storage.ErrMisaligned},
		{8192, 101, storage.ErrMisaligned},
		{-512, 512, storage.ErrOutOfRange},
		{0, -512, storage.ErrOutOfRange},
		{math.MaxInt64 - 511, 512, storage.ErrOutOfRange},
		{storage.MaxSize, 512, storage.ErrOutOfRange},
	} {
		errs := map[string]error{
			"Zero": n.Zero(t.Context(), c.off, c.length, true),
			"Trim": n.Trim(t.Context(), c.off, c.length),
		}
		if c.length >= 0 {
			_, errs["WriteAt"] = n.WriteAt(t.Context(), make([]byte, c.length), c.off)
		}
		for name, err := range errs {
			if !errors.Is(err, c.want) {
				t.Errorf("%s of %d at %d = %v, want %v", name, c.length, c.off, err, c.want)
			}
		}
	}
	if asked {
		t.Error("the file was asked")
	}
	if _, err := n.WriteAt(t.Context(), make([]byte, 100), 8192); err != nil {
		t.Errorf("a write up to the end = %v", err)
	}
}

func TestNodeNamesFailedWrites(t *testing.T) {
	broken := errors.New("broken")
	hook := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpLimit || op.Kind == storagetest.OpSize {
			return nil
		}
		return broken
	}
	n := storage.NewNode("disk", storagetest.NewMemFileWith(storagetest.MemOptions{Size: 8192, Hook: hook}), storage.NodeOptions{})
	for name, err := range writes(t.Context(), n, 512, 1024) {
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "disk: ") {
			t.Errorf("%s = %v, want %v", name, err, broken)
		}
	}
}
