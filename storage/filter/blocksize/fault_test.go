package blocksize_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestFarEnd: at the largest size there is, and at its tail that is shorter than
// the minimum.
func TestFarEnd(t *testing.T) {
	ctx := t.Context()
	for _, size := range []int64{storage.MaxSize, storage.MaxSize - 100, storage.MaxSize - 4096} {
		below := file(storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024}, nil)
		below.SetSize(size)
		f := open(t, below)
		want := bytes.Repeat([]byte{7}, 2001)
		off := size - 2001
		if n, err := f.WriteAt(ctx, want, off); n != len(want) || err != nil {
			t.Fatalf("write at the end of %d bytes = %d, %v", size, n, err)
		}
		if err := f.Zero(ctx, size-1, 1, true); err != nil {
			t.Fatal(err)
		}
		want[2000] = 0
		got := make([]byte, 4096)
		if n, err := f.ReadAt(ctx, got, off); n != len(want) || err != io.EOF || !bytes.Equal(got[:n], want) { //nolint:errorlint // must be bare
			t.Errorf("read over the end of %d bytes = %d, %v", size, n, err)
		}
		if now, err := f.Size(ctx); now != size || err != nil {
			t.Errorf("the size is %d, %v, want %d", now, err, size)
		}
		if err := f.Trim(ctx, off, storage.MaxSize-off); err != nil {
			t.Error(err)
		}
		for _, past := range []int64{storage.MaxSize, math.MaxInt64, math.MaxInt64 - 512} {
			if n, err := f.ReadAt(ctx, got, past); n != 0 || err != io.EOF { //nolint:errorlint // must be bare
				t.Errorf("read at %d = %d, %v", past, n, err)
			}
			if n, err := f.WriteAt(ctx, got, past); n != 0 || !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("write at %d = %d, %v", past, n, err)
			}
			if err := f.Zero(ctx, past, math.MaxInt64-511, false); !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("zero at %d = %v", past, err)
			}
		}
		if size < storage.MaxSize { // up to the last byte that there can be
			if _, err := f.WriteAt(ctx, []byte{1}, storage.MaxSize-1); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestFaults: what fails below fails above, and nothing beside it has changed.
func TestFaults(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		name string
		hook storagetest.Hook
		want error
	}{
		{"read", storagetest.FailNth(storagetest.OpRead, 1, syscall.EIO), syscall.EIO},
		{"short read", storagetest.ShortNth(storagetest.OpRead, 1, 100, syscall.EIO), syscall.EIO},
		{"short read without an error", storagetest.ShortNth(storagetest.OpRead, 1, 100, nil), storage.ErrContract},
		{"write", storagetest.FailNth(storagetest.OpWrite, 1, syscall.EIO), syscall.EIO},
		{"no space", storagetest.NoSpaceAfter(700), storage.ErrNoSpace},
	} {
		t.Run(c.name, func(t *testing.T) {
			below := file(storage.Limits{Minimum: 512}, c.hook)
			content := bytes.Repeat([]byte{1}, 4000)
			below.Put(content, 0)
			f := open(t, below)
			p := bytes.Repeat([]byte{2}, 1000)
			n, err := f.WriteAt(ctx, p, 300)
			if !errors.Is(err, c.want) || n >= len(p) {
				t.Errorf("write = %d, %v, want %v", n, err, c.want)
			}
			got := below.Bytes()
			for i, b := range got {
				if in := i >= 300 && i < 1300; b != 1 && !in || b != 1 && b != 2 {
					t.Fatalf("byte %d is %d", i, b)
				}
			}
			if len(got) != len(content) {
				t.Errorf("the size is %d, want %d", len(got), len(content))
			}
		})
	}
	for _, cut := range []error{syscall.EIO, nil} {
		below := file(storage.Limits{Minimum: 512}, storagetest.ShortNth(storagetest.OpRead, 1, 600, cut))
		below.Put(bytes.Repeat([]byte{1}, 4000), 0)
		n, err := open(t, below).ReadAt(ctx, make([]byte, 1000), 300)
		if n != 300 || err == nil || cut != nil && !errors.Is(err, cut) || cut == nil && !errors.Is(err, storage.ErrContract) {
			t.Errorf("read = %d, %v, want 300 and %v", n, err, cut)
		}
	}
}

// readOnly is a file alone.
type readOnly struct{ storage.File }

func TestReadOnly(t *testing.T) {
	below := file(storage.Limits{Minimum: 512}, nil)
	below.SetSize(1000)
	f := open(t, readOnly{below})
	_, write := f.WriteAt(t.Context(), []byte{1}, 1)
	_, growth := f.WriteAt(t.Context(), []byte{1}, 1001)
	for k, err := range []error{
		write, growth, f.Zero(t.Context(), 1, 1, false), f.Zero(t.Context(), 1, 1000, false), f.Trim(t.Context(), 0, 1000),
		f.Truncate(t.Context(), 1), f.Flush(t.Context()), f.StartWriting(t.Context()),
	} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%d: %v", k, err)
		}
	}
}

// TestWaiting: who waits for a block stops when its context ends, and others of
// other blocks do not wait.
func TestWaiting(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	below := file(storage.Limits{Minimum: 512}, func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpWrite && op.Offset == 512 {
			close(entered)
			<-leave
		}
		return nil
	})
	below.SetSize(8192)
	f := open(t, below)
	done := make(chan error)
	go func() {
		_, err := f.WriteAt(context.Background(), []byte{1}, 600)
		done <- err
	}()
	<-entered
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := f.WriteAt(short, make([]byte, 512), 512); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write of the same block = %v, want %v", err, context.DeadlineExceeded)
	}
	for _, off := range []int64{100, 511 - 99, 1024} {
		if _, err := f.WriteAt(t.Context(), make([]byte, 100), off); err != nil {
			t.Errorf("write of another block = %v", err)
		}
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 100), 600); err != nil {
		t.Errorf("read of the same block = %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
