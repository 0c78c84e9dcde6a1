package service_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// What caches and filters have counted stays when images and graphs are closed.
func TestStatsOutliveImages(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -c 0 64k", "-c", "write 64k 64k", "a.qcow2")
	d := &diary{}
	g := &service.Graph{Node: d.keptNode(pattern(1, 4096), nil), Filters: []service.GraphFilter{d.pass("a")}}
	g.Node.Keep = false
	svc := start(t, service.Options{Dir: dir, Idle: shortIdle, Images: []service.ImageSpec{{Name: "x", Format: "raw", Graph: g}}})
	for range 2 {
		h, x := acquire(t, svc, "a.qcow2"), acquire(t, svc, "x")
		for range 3 {
			for _, off := range []int64{0, 64 << 10} {
				if err := h.Device().ReadAt(t.Context(), make([]byte, 512), off); err != nil {
					t.Fatal(err)
				}
			}
		}
		open := svc.Stats()
		if open.OpenImages != 2 || open.CacheBytes <= 0 || open.CacheBytes > open.MaxCacheBytes {
			t.Errorf("open: %+v", open)
		}
		h.Release()
		x.Release()
		eventually(t, "they are closed", func() bool { return svc.Stats().OpenImages == 0 })
		eventually(t, "what they had is given back", func() bool { return svc.Stats().CacheBytes == 0 })
	}
	st := svc.Stats()
	if st.UnpackedHits != 4 || st.UnpackedMisses != 2 || st.Opens != 4 || st.OpenFailures != 0 {
		t.Errorf("%d hits and %d misses of unpacked clusters in %d opens, want 4, 2 and 4", st.UnpackedHits, st.UnpackedMisses, st.Opens)
	}
	if st.MetadataHits < 8 || st.MetadataMisses < 4 {
		t.Errorf("%d hits and %d misses of metadata, want 8 and 4 or more", st.MetadataHits, st.MetadataMisses)
	}
	if diff := cmp.Diff(map[service.FilterCounter]int64{{Kind: "a", Name: "tests"}: 14}, st.Filters); diff != "" {
		t.Errorf("filters (-want +got):\n%s", diff)
	}
}

// Failures are counted by what they are.
func TestStatsOfFailures(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.counted"), pattern(1, 4096))
	write(t, filepath.Join(dir, "b.gated"), pattern(1, 4096))
	write(t, filepath.Join(dir, "c.raw"), pattern(1, 4096))
	flushing := storage.ErrOutOfService
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{
		"counted": flushDriver(func() error { return flushing }),
		"gated":   gatedDriver(func(context.Context) error { return errors.New("closed") }),
		"raw":     service.RawDriver(),
	}})
	_, _ = svc.Acquire(t.Context(), "none.raw") // no failure
	_, _ = svc.Acquire(t.Context(), "b.gated")
	h := acquireWritable(t, svc, "a.counted")
	for range 3 { // one image, however often it is told
		h.Report(h.Device().Flush(t.Context()))
	}
	h.Release()
	flushing = nil
	other, err := file.Open(t.Context(), filepath.Join(dir, "c.raw"), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.StartWriting(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := svc.Acquire(t.Context(), "c.raw"); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("got %v", err)
		}
	}
	st := svc.Stats()
	if st.OpenFailures != 3 || st.LockConflicts != 2 || st.OutOfService != 1 {
		t.Errorf("%d opens failed, %d met a lock, %d images are out of service; want 3, 2, 1", st.OpenFailures, st.LockConflicts, st.OutOfService)
	}
}

// seen notes what is asked of a file, and the value that comes with it.
type seen struct {
	storage.File
	storage.Writer
	mu  sync.Mutex // protects ops
	ops []string
}

type seenKey struct{}

func (s *seen) note(ctx context.Context, op string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = append(s.ops, fmt.Sprint(op, " for ", ctx.Value(seenKey{})))
}

func (s *seen) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.note(ctx, "read")
	return s.File.ReadAt(ctx, p, off)
}

func (s *seen) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.note(ctx, "write")
	return s.Writer.WriteAt(ctx, p, off)
}

func (s *seen) Flush(ctx context.Context) error {
	s.note(ctx, "flush")
	return s.Writer.Flush(ctx)
}

func (s *seen) StartWriting(ctx context.Context) error {
	s.note(ctx, "start")
	return s.File.(storage.Starter).StartWriting(ctx)
}

// Whatever a request asks of a node comes with the request's context: as an image
// is opened, which goes on without who asked, as it is read, and as it is written.
func TestObserveSeesContexts(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
	node := &seen{}
	var work []string
	svc := start(t, service.Options{
		Dir: dir,
		Observe: func(next *storage.Node) (storage.File, error) {
			node.File, node.Writer = next.File(), next.File().(storage.Writer)
			return node, nil
		},
		Trace: func(ctx context.Context, what, image string) (context.Context, func(error)) {
			work = append(work, what+" "+image)
			return context.WithValue(ctx, seenKey{}, fmt.Sprint(what, " of ", ctx.Value(seenKey{}))), func(err error) {
				work = append(work, fmt.Sprint("end: ", err))
			}
		},
	})
	request := func(n int) context.Context { return context.WithValue(t.Context(), seenKey{}, n) }
	h, err := svc.Acquire(request(1), "a.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	h.Release()
	if h, err = svc.AcquireWritable(request(2), "a.qcow2"); err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	d := h.Device()
	if err := errors.Join(d.WriteAt(request(3), pattern(1, 4096), 0), d.Flush(request(4)), d.ReadAt(request(5), make([]byte, 4096), 0)); err != nil {
		t.Fatal(err)
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	for _, want := range []string{"read for open of 1", "start for start writing of 2", "write for 3", "flush for 4", "read for 5"} {
		if !slices.Contains(node.ops, want) {
			t.Errorf("no %s among %q", want, node.ops)
		}
	}
	if diff := cmp.Diff([]string{"open a.qcow2", "end: <nil>", "start writing a.qcow2", "end: <nil>"}, work); diff != "" {
		t.Errorf("work (-want +got):\n%s", diff)
	}
}

// An observer that fails leaves nothing open.
func TestObserveFails(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	broken := errors.New("broken")
	d := &diary{}
	g := &service.Graph{Node: d.keptNode(pattern(1, 4096), nil)}
	g.Node.Keep = false
	svc := start(t, service.Options{
		Dir:     dir,
		Images:  []service.ImageSpec{{Name: "x", Format: "raw", Graph: g}, {Name: "y", Format: "raw", Graph: on(filepath.Join(dir, "a.raw"), d.pass("a"))}},
		Observe: func(*storage.Node) (storage.File, error) { return nil, broken },
	})
	for _, name := range []string{"a.raw", "x", "y"} {
		if _, err := svc.Acquire(t.Context(), name); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.expect(t, "open mem", "close mem")
	if n := openFiles(t, dir); n > 0 {
		t.Errorf("%d files are open", n)
	}
}
