package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func TestOneHandleForAll(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir})
	first := acquire(t, svc, "a.raw")
	defer first.Release()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				h, err := svc.Acquire(t.Context(), "a.raw")
				if err != nil {
					t.Error(err)
					return
				}
				if h != first {
					t.Error("a second handle")
				}
				h.Release()
			}
		})
	}
	wg.Wait()
	if n := openFiles(t, dir); n != 1 {
		t.Errorf("%d files are open, want 1", n)
	}
}

// Within Recheck a look at the files holds, and after it does not.
func TestRecheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.raw")
	write(t, path, pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir, Recheck: 300 * time.Millisecond})
	acquire(t, svc, "a.raw").Release()
	first := acquire(t, svc, "a.raw") // the first after the open looks
	defer first.Release()
	write(t, path, pattern(2, 8192))
	second := acquire(t, svc, "a.raw")
	second.Release()
	if second != first {
		t.Error("the file was looked at again at once")
	}
	time.Sleep(310 * time.Millisecond)
	h := acquire(t, svc, "a.raw")
	defer h.Release()
	if h == first || h.Device().Size() != 8192 {
		t.Errorf("the change is not noticed: size %d", h.Device().Size())
	}
}

func TestUnknownNames(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "notes.txt"), nil)
	write(t, filepath.Join(dir, "sub", "b.raw"), nil)
	write(t, filepath.Join(dir, ".hidden.raw"), nil)
	svc := start(t, service.Options{Dir: dir})
	for _, name := range []string{"", "a.raw", "notes.txt", "sub", "sub/b.raw", "../x.raw", "/etc/passwd", ".hidden.raw", "a.raw\x00"} {
		if _, err := svc.Acquire(t.Context(), name); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestChangedFileIsOpenedAnew(t *testing.T) {
	for what, change := range map[string]func(t *testing.T, path string, content []byte){
		"replaced": func(t *testing.T, path string, content []byte) {
			write(t, path+".new", content)
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"overwritten": func(t *testing.T, path string, content []byte) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.raw")
			write(t, path, pattern(1, 4096))
			svc := start(t, service.Options{Dir: dir})
			before := acquire(t, svc, "a.raw")
			if !bytes.Equal(read(t, before), pattern(1, 4096)) {
				t.Error("wrong content before")
			}
			change(t, path, pattern(2, 4096))
			after := acquire(t, svc, "a.raw")
			defer after.Release()
			if !bytes.Equal(read(t, after), pattern(2, 4096)) {
				t.Error("wrong content after")
			}
			if before.Generation() == after.Generation() || before.DataGeneration() == after.DataGeneration() {
				t.Error("the generations are those of before")
			}
			if before == after {
				t.Fatal("the handle is that of before")
			}
			_ = read(t, before) // still open
			before.Release()
			if n := openFiles(t, dir); n != 1 {
				t.Errorf("%d files are open, want 1", n)
			}
		})
	}
}

func TestEveryChangeIsNoticed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.raw")
	write(t, path, pattern(0, 64))
	svc := start(t, service.Options{Dir: dir})
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := make(map[string]bool)
	for i := range 50 {
		// Right after the open: a clock that ticks slowly must not hide it.
		if _, err := f.WriteAt(pattern(byte(i), 64), 0); err != nil {
			t.Fatal(err)
		}
		h := acquire(t, svc, "a.raw")
		if !bytes.Equal(read(t, h), pattern(byte(i), 64)) {
			t.Fatalf("write %d is not seen", i)
		}
		if seen[h.DataGeneration()] {
			t.Fatalf("write %d left the generation as it was", i)
		}
		seen[h.DataGeneration()] = true
		h.Release()
	}
}

func TestRemovedFileIsNotFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.raw")
	write(t, path, pattern(1, 64))
	svc := start(t, service.Options{Dir: dir})
	acquire(t, svc, "a.raw").Release()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.Acquire(t.Context(), "a.raw"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	if n := openFiles(t, dir); n != 0 {
		t.Errorf("%d files are open", n)
	}
}

func TestIdleHandlesClose(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.raw", i)), pattern(1, 64))
	}
	svc := start(t, service.Options{Dir: dir, Idle: 40 * time.Millisecond})
	busy := acquire(t, svc, "0.raw")
	for i := range 5 {
		acquire(t, svc, fmt.Sprintf("%d.raw", i)).Release()
	}
	eventually(t, "four of five files close", func() bool { return openFiles(t, dir) == 1 })
	generation := busy.Generation()
	time.Sleep(80 * time.Millisecond)
	_ = read(t, busy)
	again := acquire(t, svc, "0.raw")
	if again != busy {
		t.Error("a handle in use was not kept")
	}
	again.Release()
	busy.Release()
	eventually(t, "all close", func() bool { return openFiles(t, dir) == 0 })
	again = acquire(t, svc, "0.raw")
	if again.Generation() != generation {
		t.Error("the generation changed with an idle close")
	}
	again.Release()
}

func TestUsedHandleStaysOpen(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 64))
	svc := start(t, service.Options{Dir: dir, Idle: 400 * time.Millisecond})
	first := acquire(t, svc, "a.raw")
	first.Release()
	for end := time.Now().Add(900 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		h := acquire(t, svc, "a.raw")
		if h != first {
			t.Fatal("it was closed between uses")
		}
		h.Release()
	}
}

func TestBoundOnOpenImages(t *testing.T) {
	const most = 4
	dir := t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.raw", i)), pattern(byte(i), 64))
	}
	svc := start(t, service.Options{Dir: dir, MaxOpen: most})
	for i := range 20 {
		acquire(t, svc, fmt.Sprintf("%d.raw", i)).Release()
		if n := openFiles(t, dir); n > most {
			t.Fatalf("%d are open", n)
		}
	}
	var held []*service.Handle
	for i := range most {
		held = append(held, acquire(t, svc, fmt.Sprintf("%d.raw", i)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := svc.Acquire(ctx, "9.raw"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one more than may be open: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		h, err := svc.Acquire(t.Context(), "9.raw")
		if err == nil {
			h.Release()
		}
		got <- err
	}()
	time.Sleep(20 * time.Millisecond)
	for _, h := range held {
		h.Release()
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestOpensAreShared(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.gated"), pattern(1, 64))
	var opens atomic.Int32
	gate := make(chan struct{})
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{"gated": gatedDriver(func(ctx context.Context) error {
		opens.Add(1)
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})}})
	var wg sync.WaitGroup
	impatient, cancel := context.WithCancel(t.Context())
	for i := range 16 {
		wg.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = impatient
			}
			h, err := svc.Acquire(ctx, "a.gated")
			if i%2 == 0 {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("impatient: %v", err)
				}
				return
			}
			if err != nil {
				t.Errorf("patient: %v", err)
				return
			}
			h.Release()
		})
	}
	time.Sleep(20 * time.Millisecond)
	cancel()
	time.Sleep(20 * time.Millisecond)
	close(gate)
	wg.Wait()
	if n := opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

func TestAbandonedOpenEnds(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.gated"), pattern(1, 64))
	ended := make(chan struct{}, 1)
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{"gated": gatedDriver(func(ctx context.Context) error {
		<-ctx.Done()
		ended <- struct{}{}
		return ctx.Err()
	})}})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := svc.Acquire(ctx, "a.gated"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the open goes on")
	}
	eventually(t, "the file closes", func() bool { return openFiles(t, dir) == 0 })
}

func TestFailedOpenIsNotRemembered(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.gated"), pattern(1, 64))
	fail := errors.New("fails")
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{"gated": gatedDriver(func(context.Context) error { return fail })}})
	if _, err := svc.Acquire(t.Context(), "a.gated"); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
	fail = nil
	acquire(t, svc, "a.gated").Release()
}

func TestClose(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.gated"), pattern(1, 64))
	write(t, filepath.Join(dir, "b.raw"), pattern(1, 64))
	opening := make(chan struct{})
	svc, err := service.New(service.Options{Dir: dir, Formats: map[string]service.Driver{
		"raw": service.RawDriver(),
		"gated": gatedDriver(func(ctx context.Context) error {
			close(opening)
			<-ctx.Done()
			return ctx.Err()
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := acquire(t, svc, "b.raw")
	got := make(chan error, 1)
	go func() {
		_, err := svc.Acquire(t.Context(), "a.gated")
		got <- err
	}()
	<-opening
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, storage.ErrClosed) {
		t.Errorf("who waited: %v", err)
	}
	if _, err := svc.Acquire(t.Context(), "b.raw"); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("who comes after: %v", err)
	}
	_ = read(t, h)
	h.Release()
	if n := openFiles(t, dir); n != 0 {
		t.Errorf("%d files are open", n)
	}
	if err := svc.Close(); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

// TestCrowd lets everything happen at once: the race detector and the count of
// open files are what it is for.
func TestCrowd(t *testing.T) {
	dir := t.TempDir()
	for i := range 6 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.raw", i)), pattern(byte(i), 512))
	}
	svc := start(t, service.Options{Dir: dir, MaxOpen: 3, Idle: 4 * time.Millisecond})
	var wg sync.WaitGroup
	stop := time.Now().Add(400 * time.Millisecond)
	for w := range 8 {
		wg.Go(func() {
			p := make([]byte, 512)
			for i := w; time.Now().Before(stop); i++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%20)*time.Millisecond)
				h, err := svc.Acquire(ctx, fmt.Sprintf("%d.raw", i%6))
				cancel()
				if errors.Is(err, context.DeadlineExceeded) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := h.Device().ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, pattern(p[0], 512)) {
					t.Errorf("read: %v", err)
				}
				h.Release()
			}
		})
	}
	wg.Go(func() {
		for i := 0; time.Now().Before(stop); i++ {
			path := filepath.Join(dir, fmt.Sprintf("%d.raw", i%6))
			write(t, path+"~", pattern(byte(i), 512))
			if err := os.Rename(path+"~", path); err != nil {
				t.Error(err)
			}
			if _, err := svc.List(t.Context(), "", 10, nil); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	wg.Wait()
	eventually(t, "all close", func() bool { return openFiles(t, dir) == 0 })
}

func BenchmarkAcquire(b *testing.B) {
	dir := b.TempDir()
	write(b, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	for what, opt := range map[string]service.Options{
		"directory": {Dir: dir},
		"explicit":  {Images: []service.ImageSpec{{Name: "a.raw", Path: filepath.Join(dir, "a.raw")}}},
	} {
		b.Run(what, func(b *testing.B) {
			svc := start(b, opt)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					h, err := svc.Acquire(b.Context(), "a.raw")
					if err != nil {
						b.Fatal(err)
					}
					h.Release()
				}
			})
		})
	}
}
