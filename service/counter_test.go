package service_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// Generations change before and after each write, and none comes back.
func TestGenerations(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.raw")
	mapping, data := h.Generation(), h.DataGeneration()
	w := acquireWritable(t, svc, "a.raw")
	if h.Generation() != mapping || h.DataGeneration() != data {
		t.Error("the upgrade alone has changed a generation")
	}
	seen := map[string]bool{mapping: true, data: true}
	opaque := regexp.MustCompile(`^[A-Za-z0-9-]+$`)
	for i := range 20 {
		before := h.DataGeneration()
		put(t, w, pattern(byte(i), 512), 0)
		now := h.DataGeneration()
		if now == before || seen[now] || now != h.DataGeneration() || !opaque.MatchString(now) {
			t.Errorf("write %d: %q after %q", i, now, before)
		}
		seen[now] = true
	}
	h.Release()
	w.Release()
}

// What was written here keeps its generation while it is closed, as long as
// nobody else changes it.
func TestGenerationsAcrossAClose(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.raw")
	write(t, path, pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir, Idle: 20 * time.Millisecond})
	seen := map[string]bool{}
	for i := range 3 {
		w := acquireWritable(t, svc, "a.raw")
		put(t, w, pattern(byte(i), 512), 0)
		last := w.DataGeneration()
		w.Release()
		eventually(t, "it closes", func() bool { return openFiles(t, dir) == 0 })
		h := acquire(t, svc, "a.raw")
		if h == w || h.DataGeneration() != last || seen[last] {
			t.Errorf("%q was %q", h.DataGeneration(), last)
		}
		seen[last] = true
		h.Release()
	}
	eventually(t, "it closes", func() bool { return openFiles(t, dir) == 0 })
	if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	h := acquire(t, svc, "a.raw")
	defer h.Release()
	if seen[h.DataGeneration()] {
		t.Error("a change by others has left the generation as it was")
	}
}

func TestClaims(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir})
	h := acquireWritable(t, svc, "a.raw")
	defer h.Release()
	for what, claim := range map[string]struct {
		generation func() string
		claim      func(func(string) bool) bool
	}{
		"mapping": {h.Generation, h.ClaimGeneration},
		"data":    {h.DataGeneration, h.ClaimDataGeneration},
	} {
		for range 20 {
			want := claim.generation()
			var won atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if claim.claim(func(g string) bool { return g == want }) {
						won.Add(1)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 || claim.generation() == want {
				t.Errorf("%s: %d have won", what, won.Load())
			}
		}
		before := claim.generation()
		if !claim.claim(nil) || claim.claim(func(string) bool { return false }) || claim.generation() != before {
			t.Errorf("%s: who wants nothing, or what is not there", what)
		}
	}
	if err := svc.Resize(t.Context(), "a.raw", 8192, false, func(string) bool { return false }); !errors.Is(err, service.ErrPrecondition) {
		t.Error(err)
	}
}

// What was written is durable a while after the last write, without a close.
func TestJanitorFlushes(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.counted"), pattern(1, 4096))
	var flushes atomic.Int32
	svc := start(t, service.Options{Dir: dir, Idle: 20 * time.Millisecond, Formats: map[string]service.Driver{"counted": flushDriver(func() error {
		flushes.Add(1)
		return nil
	})}})
	w := acquireWritable(t, svc, "a.counted")
	defer w.Release()
	put(t, w, pattern(2, 512), 0)
	eventually(t, "a flush", func() bool { return flushes.Load() > 0 })
	before := flushes.Load()
	time.Sleep(60 * time.Millisecond)
	if n := flushes.Load(); n != before {
		t.Errorf("%d flushes of nothing", n-before)
	}
}

// An image whose flush fails is opened anew, and somebody is told.
func TestOutOfService(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.counted"), pattern(1, 4096))
	var fail atomic.Bool
	told := make(chan error, 10)
	svc := start(t, service.Options{
		Dir: dir, Idle: 20 * time.Millisecond,
		OnError: func(image string, err error) { told <- err },
		Formats: map[string]service.Driver{"counted": flushDriver(func() error {
			if fail.Load() {
				return storage.ErrOutOfService
			}
			return nil
		})},
	})
	w := acquireWritable(t, svc, "a.counted")
	fail.Store(true)
	put(t, w, pattern(2, 512), 0)
	if err := <-told; !errors.Is(err, storage.ErrOutOfService) {
		t.Error(err)
	}
	fail.Store(false)
	h := acquire(t, svc, "a.counted")
	if h == w {
		t.Error("the handle is the one that failed")
	}
	h.Release()
	refused(t, svc, "a.counted", storage.ErrConflict) // somebody still has what failed
	w.Release()
	w = acquireWritable(t, svc, "a.counted")
	put(t, w, pattern(3, 512), 0)
	w.Report(storage.ErrOutOfService)
	w.Release()
	again := acquireWritable(t, svc, "a.counted")
	if again == w {
		t.Error("the handle is the one that was reported")
	}
	again.Release()
}
