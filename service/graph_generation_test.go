package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A remote is a file elsewhere, which others replace.
type remote struct {
	now    atomic.Pointer[edition] // nil: it is not there
	opened atomic.Int32
	closed atomic.Int32
}

type edition struct {
	content   []byte
	validator string
}

func (r *remote) put(content []byte, validator string) { r.now.Store(&edition{content, validator}) }

func (r *remote) node() service.GraphNode {
	return service.GraphNode{Kind: "http", Name: "disk.img", ReadOnly: true, Open: func(context.Context) (storage.File, error) {
		now := r.now.Load()
		if now == nil {
			return nil, fmt.Errorf("%w: there is no such file", storage.ErrNotFound)
		}
		r.opened.Add(1)
		return &remoteFile{storagetest.NewMemFile(now.content), r, now}, nil
	}}
}

// remoteFile is a remote that is open.
type remoteFile struct {
	file storage.File
	r    *remote
	was  *edition
}

func (f *remoteFile) Validator() string { return f.was.validator }

func (f *remoteFile) check() error {
	switch f.r.now.Load() {
	case f.was:
		return nil
	case nil:
		return storage.ErrNotFound
	}
	return storage.ErrChanged
}

func (f *remoteFile) Size(ctx context.Context) (int64, error) { return f.file.Size(ctx) }

func (f *remoteFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	return f.file.ReadAt(ctx, p, off)
}

func (f *remoteFile) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	return f.file.Extents(ctx, off, n, into)
}

func (f *remoteFile) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	return f.file.Limit(ctx, which)
}

func (f *remoteFile) Close() error {
	f.r.closed.Add(1)
	return f.file.Close()
}

// A remote file that changes is an error to who reads it, and the next one reads
// the new one.
func TestRemoteChanges(t *testing.T) {
	d := &diary{}
	counted := d.pass("counted")
	counted.Keep = true
	for _, filters := range [][]service.GraphFilter{nil, {d.pass("x")}, {counted}} {
		r := &remote{}
		svc := start(t, service.Options{Images: []service.ImageSpec{
			{Name: "x", Format: "raw", Graph: &service.Graph{Node: r.node(), Filters: filters}},
		}})
		if _, err := svc.Acquire(t.Context(), "x"); !errors.Is(err, storage.ErrBackingUnavailable) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("a node that is not there: %v", err)
		}
		r.put(pattern(1, 4096), "one")
		slow := acquire(t, svc, "x")
		generation := slow.Generation()
		refused(t, svc, "x", storage.ErrReadOnly)
		r.put(pattern(2, 8192), "two")
		p := make([]byte, 512)
		if err := slow.Device().ReadAt(t.Context(), p, 0); !errors.Is(err, storage.ErrChanged) {
			t.Fatalf("what has changed: %v", err)
		}
		h := acquire(t, svc, "x")
		if h == slow || h.Generation() == generation || !bytes.Equal(read(t, h), pattern(2, 8192)) {
			t.Error("it was not opened anew")
		}
		slow.Release()
		r.now.Store(nil)
		if err := h.Device().ReadAt(t.Context(), p, 0); !errors.Is(err, storage.ErrChanged) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("what is gone: %v", err)
		}
		h.Release()
		r.put(pattern(1, 4096), "one")
		h = acquire(t, svc, "x")
		if h.Generation() != generation {
			t.Error("the same file has another generation")
		}
		h.Report(fmt.Errorf("somewhere: %w", storage.ErrChanged))
		again := acquire(t, svc, "x")
		if again == h {
			t.Error("the handle is the one that was reported")
		}
		h.Release()
		again.Release()
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
		if r.opened.Load() != 4 || r.closed.Load() != 4 {
			t.Errorf("%d opened, %d closed", r.opened.Load(), r.closed.Load())
		}
	}
}

// generationOf is an image's as a service says that is started for it alone.
func generationOf(t *testing.T, format string, g *service.Graph) string {
	t.Helper()
	svc := start(t, service.Options{Images: []service.ImageSpec{{Name: "x", Format: format, Graph: g}}})
	h := acquire(t, svc, "x")
	generation := h.Generation()
	h.Release()
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	return generation
}

// Generations tell configurations and contents apart, and hold where they are
// the same.
func TestGraphGenerations(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.raw")
	write(t, path, pattern(1, 1<<20))
	write(t, other, pattern(1, 1<<20))
	r, unknown := &remote{}, &remote{}
	r.put(pattern(1, 512), "one")
	unknown.put(pattern(1, 512), "")
	d := &diary{}
	d1, d2 := d.pass("d"), d.pass("d")
	d1.Options, d2.Options = "1", "2"
	configured := func(options string) *service.Graph {
		g := &service.Graph{Node: r.node()}
		g.Node.Options = options
		return g
	}
	seen := map[string]string{}
	for _, c := range []struct {
		what  string
		g     *service.Graph
		holds bool
	}{
		{"file", on(path), true},
		{"another file", on(other), true},
		{"window", on(path, window(0, 4096)), true},
		{"another window", on(path, window(4096, 4096)), true},
		{"options", on(path, d1), true},
		{"other options", on(path, d2), true},
		{"order", on(path, d1, d2), true},
		{"another order", on(path, d2, d1), true},
		{"validator", configured(""), true},
		{"configured", configured("a"), true},
		{"no validator", &service.Graph{Node: unknown.node()}, false},
		{"memory", &service.Graph{Node: d.keptNode(pattern(1, 512), nil)}, false},
		{"overlay", on(path, overlaid()), false},
	} {
		first, second := generationOf(t, "raw", c.g), generationOf(t, "raw", c.g)
		if (first == second) != c.holds {
			t.Errorf("%s: %s, then %s", c.what, first, second)
		}
		if was := seen[first]; was != "" {
			t.Errorf("%s and %s have the same generation", was, c.what)
		}
		seen[first] = c.what
	}
	before := generationOf(t, "raw", on(path, d1))
	write(t, path, pattern(2, 1<<20))
	if generationOf(t, "raw", on(path, d1)) == before {
		t.Error("a file that has changed has its generation still")
	}
	r.put(pattern(2, 512), "two")
	if generation := generationOf(t, "raw", configured("")); seen[generation] != "" {
		t.Error("a remote file that has changed has its generation still")
	}
}

// Who writes over a remote backing that changes goes on, and until he is done
// nobody else reads what he writes to.
func TestRemoteBackingChanges(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "top.qcow2", "1M")
	r := &remote{}
	r.put(pattern(1, 1<<20), "one")
	svc := start(t, service.Options{Images: []service.ImageSpec{
		{Name: "remote", Format: "raw", Graph: &service.Graph{Node: r.node()}},
		{Name: "top", Path: filepath.Join(dir, "top.qcow2"), Backing: "remote"},
	}})
	w := acquireWritable(t, svc, "top")
	put(t, w, pattern(5, 65536), 0)
	r.put(pattern(2, 1<<20), "two")
	err := w.Device().WriteAt(t.Context(), pattern(6, 512), 65536)
	if !errors.Is(err, storage.ErrChanged) {
		t.Fatalf("a write that copies what has changed: %v", err)
	}
	w.Report(err)
	if _, err := svc.Acquire(t.Context(), "top"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("while the writer is not done: %v", err)
	}
	put(t, w, pattern(7, 65536), 65536)
	w.Release()
	want := append(append(pattern(5, 65536), pattern(7, 65536)...), pattern(2, 1<<20-131072)...)
	if !bytes.Equal(readImage(t, svc, "top"), want) {
		t.Error("wrong content")
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	checkClean(t, dir, "top.qcow2")
}
