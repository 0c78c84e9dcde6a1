package storagetest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A mistakenWriter is a file that does all right but for what its name says.
type mistakenWriter struct {
	*storagetest.MemFile
	mistake string
}

func (m *mistakenWriter) is(mistake string) bool { return m.mistake == "writer: "+mistake }

func (m *mistakenWriter) context(ctx context.Context) context.Context {
	if m.is("context") {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

func (m *mistakenWriter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case m.is("short write") && len(p) > 4096:
		p = p[:4096]
	case m.is("changes the buffer"):
		defer clear(p)
	case m.is("grows by nothing") && len(p) == 0:
		return 0, m.MemFile.Truncate(ctx, off)
	case m.is("a wrong place") && off%2 == 1:
		off++
	case m.is("range") && off < 0:
		off = 0
	}
	return m.MemFile.WriteAt(m.context(ctx), p, off)
}

func (m *mistakenWriter) Zero(ctx context.Context, off, n int64, keep bool) error {
	size, err := m.Size(context.WithoutCancel(ctx))
	switch {
	case err != nil:
		return m.MemFile.Zero(ctx, off, n, keep)
	case m.is("zeros only pages") && off >= 0 && n > 0 && off+n <= size && off < off+n-4096:
		n = (off+n)/4096*4096 - off
	case m.is("zeros do not grow") && off >= 0 && off <= size && n > size-off:
		n = size - off
	case m.is("zeros are kept from nobody") && keep:
		return ctx.Err()
	case m.is("growth cuts off") && off >= 0 && n > 0 && n < storage.MaxSize-off && off+n > size:
		if err := m.MemFile.Zero(ctx, off, n, keep); err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond) // for another to write behind it
		return m.MemFile.Truncate(ctx, off+n)
	case m.is("range") && n < 0:
		return nil
	}
	return m.MemFile.Zero(m.context(ctx), off, n, keep)
}

func (m *mistakenWriter) Trim(ctx context.Context, off, n int64) error {
	if size, err := m.Size(ctx); err == nil && m.is("trim grows") && off >= 0 && n > 0 && n < storage.MaxSize-off && off+n > size {
		if err := m.MemFile.Truncate(ctx, off+n); err != nil {
			return err
		}
	}
	if m.is("trim takes more") && off%4096 != 0 && off > 0 {
		n, off = n+1, off-1
	}
	return m.MemFile.Trim(m.context(ctx), off, n)
}

func (m *mistakenWriter) Truncate(ctx context.Context, size int64) error {
	switch was, err := m.Size(ctx); {
	case err != nil:
	case m.is("truncate does not grow") && size > was && size <= storage.MaxSize:
		return nil
	case m.is("truncate adds no zeros") && size > was && size <= storage.MaxSize:
		_, err := m.MemFile.WriteAt(ctx, []byte{1}, size-1)
		return err
	}
	return m.MemFile.Truncate(m.context(ctx), size)
}

func (m *mistakenWriter) Flush(ctx context.Context) error {
	if m.is("flush after close") {
		return ctx.Err()
	}
	return m.MemFile.Flush(m.context(ctx))
}

// A mistakenImage is a qcow2 image that does all right but for what its name
// says.
type mistakenImage struct {
	*qcow2.Image
	mistake string
	last    storage.Blocks
}

func (m *mistakenImage) is(mistake string) bool { return m.mistake == "image: "+mistake }

func (m *mistakenImage) Alloc(ctx context.Context, n int64, opt storage.AllocOptions) (storage.Blocks, error) {
	switch {
	case m.is("alloc of less") && n > 1:
		n /= 2
	case m.is("alloc of nothing") && n <= 0:
		n = 1
	case m.is("alloc twice") && m.last.Length >= n && n > 0:
		return m.last, nil
	}
	b, err := m.Image.Alloc(ctx, n, opt)
	if m.is("alloc twice") {
		m.last = b
	}
	return b, err
}

func (m *mistakenImage) Free(ctx context.Context, b storage.Blocks) error {
	if m.is("free by halves") && b.Length > m.Units().Alloc {
		_ = m.Image.Free(ctx, storage.Blocks{Node: b.Node, Offset: b.Offset, Length: m.Units().Alloc})
	}
	if m.is("free leaks") {
		return nil
	}
	err := m.Image.Free(ctx, b)
	if m.is("free twice") && errors.Is(err, storage.ErrConflict) {
		return nil
	}
	return err
}

func (m *mistakenImage) Update(ctx context.Context, off, n int64, to storage.Target) error {
	unit := m.Units().Alloc
	switch {
	case m.is("anchors nothing") && to.Kind == storage.ToAnchored:
		to.Kind = storage.ToZero
	case m.is("frees nothing") && to.Kind == storage.ToZero:
		to.Kind = storage.ToAnchored
	case m.is("discards nothing") && to.Kind == storage.ToUnmapped:
		return nil
	case m.is("zeros too much") && to.Kind == storage.ToZero && off > 0 && off+n+unit <= m.Size():
		n += unit
	case m.is("update by halves") && n >= 2*unit && n%(2*unit) == 0 && off+n <= m.Size():
		n /= 2
	case m.is("update rounds") && off >= 0 && off+n > 0:
		off, n = off/unit*unit, (n+unit-1)/unit*unit
	case m.is("update out of range") && off+n > m.Size() && off+n < 1<<40:
		return nil
	}
	err := m.Image.Update(ctx, off, n, to)
	if m.is("maps anything") && errors.Is(err, storage.ErrConflict) {
		return nil
	}
	return err
}

func (m *mistakenImage) CheckWrite(ctx context.Context, node *storage.Node, off, n int64) error {
	if m.is("overwrites metadata") && off == 0 {
		return nil
	}
	return m.Image.CheckWrite(ctx, node, off, n)
}

func (m *mistakenImage) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if !m.is("never in place") {
		return m.Image.Fetch(ctx, off, n, into)
	}
	lo, hi := into.Window()
	var l storage.ExtentList
	l.ResetWindow(lo, hi)
	if err := m.Image.Fetch(ctx, off, n, &l); err != nil {
		return err
	}
	for i := range l.Len() {
		e := *l.At(i)
		e.Flags &^= storage.Writable
		if err := into.Add(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *mistakenImage) Flush(ctx context.Context) error {
	if m.is("context") {
		ctx = context.WithoutCancel(ctx)
	}
	return m.Image.Flush(ctx)
}

func (m *mistakenImage) Pin() storage.Pin {
	if m.is("no pins") {
		return 0
	}
	return m.Image.Pin()
}

func (m *mistakenImage) Unpin(p storage.Pin) {
	if !m.is("no pins") && !m.is("pinned for good") {
		m.Image.Unpin(p)
	}
}

func (m *mistakenImage) Close() error {
	if m.is("close writes nothing") || m.is("open after close") && m.Image.Flush(context.Background()) == nil {
		return nil
	}
	return m.Image.Close()
}

// emptyImage is what qemu-img makes, 4 MiB.
var emptyImage = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "storagetest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is temporary
	path := filepath.Join(dir, "image.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "4M").CombinedOutput(); err != nil {
		return nil, errors.Join(err, errors.New(string(out)+": apt-get install qemu-utils"))
	}
	return os.ReadFile(path)
})

func testMistakenImage(t *testing.T, mistake string) {
	storagetest.TestWritableMapper(t, func(t *testing.T, _ int64) func(t *testing.T) storagetest.WritableImage {
		content, err := emptyImage()
		if err != nil {
			t.Fatal(err)
		}
		node := storage.NewNode("image", storagetest.NewMemFile(content), storage.NodeOptions{})
		return func(t *testing.T) storagetest.WritableImage {
			i, err := qcow2.Open(t.Context(), node, qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if mistake == "image: writes at once" {
				if err := i.StartWriting(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			return &mistakenImage{Image: i, mistake: mistake}
		}
	})
}

func TestWithWriteMistake(t *testing.T) {
	mistake := os.Getenv(mistakes) // without one, everything passes
	if !strings.HasPrefix(mistake, "image") {
		storagetest.TestWriter(t, 1, func(_ *testing.T, size int64) storage.File {
			return &mistakenWriter{storagetest.NewMemFileWith(storagetest.MemOptions{Size: size}), mistake}
		})
	}
	if !strings.HasPrefix(mistake, "writer") {
		testMistakenImage(t, mistake)
	}
}

// TestWriteSuitesFindMistakes: they fail for each.
func TestWriteSuitesFindMistakes(t *testing.T) {
	for _, mistake := range []string{
		"writer: context", "writer: short write", "writer: changes the buffer", "writer: grows by nothing", "writer: a wrong place",
		"writer: range", "writer: zeros only pages", "writer: zeros do not grow", "writer: zeros are kept from nobody",
		"writer: growth cuts off", "writer: trim grows", "writer: trim takes more", "writer: truncate does not grow",
		"writer: truncate adds no zeros", "writer: flush after close",
		"image: writes at once", "image: alloc of less", "image: alloc of nothing", "image: alloc twice", "image: free by halves",
		"image: free leaks", "image: free twice", "image: anchors nothing", "image: frees nothing", "image: discards nothing",
		"image: zeros too much", "image: update by halves", "image: update rounds", "image: update out of range", "image: maps anything",
		"image: overwrites metadata", "image: never in place", "image: context", "image: no pins", "image: pinned for good",
		"image: close writes nothing", "image: open after close",
	} {
		t.Run(mistake, func(t *testing.T) {
			t.Parallel()
			findMistake(t, "TestWithWriteMistake", mistake)
		})
	}
}
