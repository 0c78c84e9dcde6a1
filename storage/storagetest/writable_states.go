package storagetest

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/extentd/extentd/storage"
)

// changes are what each way of changing an image says.
func (s *writableSuite) changes(ctx context.Context) map[string]error {
	_, alloc := s.image.Alloc(ctx, s.block, storage.AllocOptions{})
	all := map[string]error{
		"Alloc":  alloc,
		"Update": s.image.Update(ctx, 0, s.block, storage.Target{Kind: storage.ToZero}),
		"Flush":  s.image.Flush(ctx),
	}
	if r, ok := s.image.(storage.Resizer); ok {
		all["Resize"] = r.Resize(ctx, s.m.size()+s.block, storage.ResizeOptions{})
	}
	return all
}

// forReading: nothing can be changed before writing starts, and it starts once.
func (s *writableSuite) forReading(t *testing.T) {
	for name, err := range s.changes(t.Context()) {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrReadOnly)
		}
	}
	if err := s.image.Free(t.Context(), storage.Blocks{Length: s.block}); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("Free = %v, want %v", err, storage.ErrReadOnly)
	}
	for _, m := range s.alike(t) {
		if m.Flags&storage.Writable != 0 && s.granule.Alloc == 1 {
			t.Errorf("%+v is writable", m)
		}
	}
	s.check(t)
	s.startWriting(t)
	s.startWriting(t)
	s.fill(t, s.block, s.block, 1)
	s.startWriting(t)
	s.check(t)
	s.reopen(t)
	s.check(t)
}

// resize: what is cut off does not come back.
func (s *writableSuite) resize(t *testing.T) {
	r, ok := s.image.(storage.Resizer)
	if !ok {
		return
	}
	ctx := t.Context()
	s.fill(t, 0, s.m.size(), 1)
	for _, c := range []struct {
		size int64
		opt  storage.ResizeOptions
	}{
		{s.m.size() - s.block, storage.ResizeOptions{}},
		{0, storage.ResizeOptions{}},
		{-1, storage.ResizeOptions{Shrink: true}},
		{math.MinInt64, storage.ResizeOptions{Shrink: true}},
		{storage.MaxSize + 1, storage.ResizeOptions{}},
		{math.MaxInt64, storage.ResizeOptions{}},
	} {
		if err := r.Resize(ctx, c.size, c.opt); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("Resize(%d, %+v) = %v, want %v", c.size, c.opt, err, storage.ErrInvalid)
		}
	}
	s.check(t)
	size := s.m.size()
	for _, to := range []int64{size, size + s.block, size / 2, size, size/2 + s.block/2, size * 2, s.block, size} {
		if err := r.Resize(ctx, to, storage.ResizeOptions{Shrink: true}); err != nil {
			t.Fatalf("Resize(%d): %v", to, err)
		}
		s.m.resize(to)
		s.check(t)
		if to >= 4*s.block {
			s.fill(t, to-2*s.block, 2*s.block, byte(to/s.block)|1)
		}
	}
	if err := s.image.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	s.reopen(t)
	s.check(t)
}

// cancelled: a context that has ended does nothing, or is not asked.
func (s *writableSuite) cancelled(t *testing.T) {
	s.fill(t, 0, 2*s.block, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range s.changes(ctx) {
		switch {
		case err != nil && !errors.Is(err, context.Canceled):
			t.Errorf("%s = %v, want %v, or nothing where no I/O is needed", name, err, context.Canceled)
		case err == nil && name == "Flush":
			t.Error("Flush does not look at the context")
		case err == nil && name == "Update":
			clear(s.m.content[:s.block])
		case err == nil && name == "Resize":
			s.m.resize(s.m.size() + s.block)
		}
	}
	s.check(t)
	for name, err := range s.changes(t.Context()) { // it is not out of service
		if err != nil {
			t.Errorf("%s after one that was cancelled: %v", name, err)
		}
	}
}

func (s *writableSuite) closed(t *testing.T) {
	s.fill(t, 0, 2*s.block, 1)
	b := s.reserve(t, 4*s.block, 1)
	if err := s.image.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range s.changes(t.Context()) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrClosed)
		}
	}
	for name, err := range map[string]error{
		"Free":         s.image.Free(t.Context(), b),
		"CheckWrite":   s.image.CheckWrite(t.Context(), b.Node, b.Offset, b.Length),
		"StartWriting": s.image.StartWriting(t.Context()),
	} {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrClosed)
		}
	}
	if err := s.image.Close(); err != nil && !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second Close = %v, want nil or %v", err, storage.ErrClosed)
	}
	s.image = s.open(t)
	s.check(t)
}
