package raw_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

// writable is an image on a new file in memory, open for writing.
func writable(t *testing.T, opt storagetest.MemOptions) (*raw.Image, *storagetest.MemFile, *storage.Node) {
	t.Helper()
	f := storagetest.NewMemFileWith(opt)
	i, node := open(t, f)
	must(t, i.StartWriting(t.Context()))
	return i, f, node
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFileConformance: the same suite on files of the host.
func TestFileConformance(t *testing.T) {
	storagetest.TestWritableMapper(t, func(t *testing.T, size int64) func(t *testing.T) storagetest.WritableImage {
		path := filepath.Join(t.TempDir(), "disk.raw")
		must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)))
		f, err := file.Open(t.Context(), path, file.Options{})
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		must(t, f.StartWriting(t.Context()))
		return func(t *testing.T) storagetest.WritableImage {
			i, _ := open(t, f)
			return i
		}
	})
}

// readOnly is a file without the methods of a storage.Writer.
type readOnly struct{ storage.File }

func TestStartWritingReadOnly(t *testing.T) {
	i, _ := open(t, readOnly{storagetest.NewMemFile(make([]byte, 10))})
	if err := i.StartWriting(t.Context()); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("StartWriting = %v, want %v", err, storage.ErrReadOnly)
	}
	if err := i.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	i, _ = open(t, storagetest.NewMemFile(nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.StartWriting(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("StartWriting = %v, want %v", err, context.Canceled)
	}
}

// TestWritableMappings: everything that has a place may be overwritten, and
// nothing before writing has started.
func TestWritableMappings(t *testing.T) {
	for _, rule := range storage.ProtocolStatuses() {
		if !rule.Valid || rule.Status == 0 {
			continue
		}
		f := &stub{File: storagetest.NewMemFile(nil), size: 4096, extents: func(off, n int64, into *storage.ExtentList) error {
			return into.Add(storage.Mapping{Offset: off, Length: n, NodeOffset: off, Status: rule.Status})
		}}
		i, err := raw.New(t.Context(), storage.NewNode("disk.raw", &writingStub{f}, storage.NodeOptions{}))
		must(t, err)
		for _, writing := range []bool{false, true} {
			if writing {
				must(t, i.StartWriting(t.Context()))
			}
			var l storage.ExtentList
			must(t, storage.CheckMapper(i).Fetch(t.Context(), 0, 4096, &l))
			want := writing && rule.Status.Has(storage.OffsetValid)
			if got := l.At(0).Flags == storage.Writable; got != want || !got && l.At(0).Flags != 0 {
				t.Errorf("%v, writing %v: flags %v", rule.Status, writing, l.At(0).Flags)
			}
		}
	}
}

// writingStub can be written to, and is not.
type writingStub struct{ *stub }

func (w *writingStub) WriteAt(context.Context, []byte, int64) (int, error)    { return 0, nil }
func (w *writingStub) Zero(context.Context, int64, int64, bool) error         { return nil }
func (w *writingStub) Trim(context.Context, int64, int64) error               { return nil }
func (w *writingStub) Truncate(context.Context, int64) error                  { return nil }
func (w *writingStub) Flush(context.Context) error                            { return nil }
func (w *writingStub) Limit(context.Context, storage.Limit) (int64, error)    { return 0, nil }
func (w *writingStub) ReadAt(context.Context, []byte, int64) (n int, _ error) { return 0, nil }

// TestZeroPieces: what is longer than the node's limit is split at it, and what
// is kept is as the target says.
func TestZeroPieces(t *testing.T) {
	const most = 128 << 20
	var ops []storagetest.Op
	hook := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpZero {
			ops = append(ops, *op)
		}
		return nil
	}
	i, _, _ := writable(t, storagetest.MemOptions{Size: 1 << 40, Limits: storage.Limits{MaxZero: most}, Hook: hook})
	must(t, i.Update(t.Context(), 1, 2*most+5, storage.Target{Kind: storage.ToZero}))
	want := []storagetest.Op{
		{Kind: storagetest.OpZero, Offset: 1, Length: most},
		{Kind: storagetest.OpZero, Offset: 1 + most, Length: most},
		{Kind: storagetest.OpZero, Offset: 1 + 2*most, Length: 5},
	}
	if !slices.Equal(ops, want) {
		t.Errorf("%v, want %v", ops, want)
	}
}

func TestZeroKeepsOrGivesBack(t *testing.T) {
	const page = storagetest.PageSize
	f := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 3*page))
	i, _ := open(t, f)
	must(t, i.StartWriting(t.Context()))
	for k, c := range []struct {
		kind storage.TargetKind
		want storage.Status
	}{
		{storage.ToZero, storage.Local | storage.Zero | storage.OffsetValid},
		{storage.ToUnmapped, storage.Local | storage.Zero | storage.OffsetValid},
		{storage.ToAnchored, storage.Local | storage.Alloc | storage.OffsetValid},
	} {
		must(t, i.Update(t.Context(), int64(k)*page, page, storage.Target{Kind: c.kind}))
		var l storage.ExtentList
		l.ResetWindow(int64(k)*page, int64(k+1)*page)
		must(t, i.Fetch(t.Context(), int64(k)*page, page, &l))
		if got := l.At(l.Find(int64(k) * page)).Status; got != c.want {
			t.Errorf("%v is %v, want %v", c.kind, got, c.want)
		}
	}
	if !bytes.Equal(f.Bytes(), make([]byte, 3*page)) {
		t.Error("there is something left")
	}
}

// TestFailedFlush takes the image out of service, and a cancelled one does not.
func TestFailedFlush(t *testing.T) {
	broken := errors.New("broken")
	i, _, node := writable(t, storagetest.MemOptions{Size: 100, Hook: storagetest.FailNth(storagetest.OpFlush, 2, broken)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush = %v", err)
	}
	must(t, i.Flush(t.Context()))
	if err := i.Flush(t.Context()); !errors.Is(err, storage.ErrOutOfService) || !errors.Is(err, broken) {
		t.Errorf("Flush = %v, want %v", err, storage.ErrOutOfService)
	}
	_, alloc := i.Alloc(t.Context(), 1, storage.AllocOptions{})
	for name, err := range map[string]error{
		"Flush":      i.Flush(t.Context()),
		"Alloc":      alloc,
		"Free":       i.Free(t.Context(), storage.Blocks{Node: node, Length: 1}),
		"Update":     i.Update(t.Context(), 0, 1, storage.Target{Kind: storage.ToZero}),
		"CheckWrite": i.CheckWrite(t.Context(), node, 0, 1),
		"Resize":     i.Resize(t.Context(), 200, storage.ResizeOptions{}),
		"Close":      i.Close(),
	} {
		if !errors.Is(err, storage.ErrOutOfService) {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrOutOfService)
		}
	}
	i, _, _ = writable(t, storagetest.MemOptions{Size: 100, Hook: storagetest.FailNth(storagetest.OpFlush, 1, broken)})
	if err := i.Close(); !errors.Is(err, broken) {
		t.Errorf("Close = %v, want %v", err, broken)
	}
}

func TestCheckWrite(t *testing.T) {
	i, _, node := writable(t, storagetest.MemOptions{Size: 100})
	other := storage.NewNode("other", storagetest.NewMemFile(nil), storage.NodeOptions{})
	for _, c := range []struct {
		node   *storage.Node
		off, n int64
		want   error
	}{
		{node, 0, 100, nil},
		{node, 100, 0, nil},
		{node, 0, 101, storage.ErrOutOfRange},
		{node, -1, 1, storage.ErrOutOfRange},
		{node, 0, math.MaxInt64, storage.ErrOutOfRange},
		{node, math.MaxInt64, math.MaxInt64, storage.ErrOutOfRange},
		{other, 0, 1, storage.ErrConflict},
		{nil, 0, 1, storage.ErrConflict},
	} {
		if err := i.CheckWrite(t.Context(), c.node, c.off, c.n); !errors.Is(err, c.want) {
			t.Errorf("CheckWrite(%d, %d) = %v, want %v", c.off, c.n, err, c.want)
		}
	}
}

// TestAlloc: less comes where the image ends, unless all is wanted.
func TestAlloc(t *testing.T) {
	i, _, node := writable(t, storagetest.MemOptions{Size: 100})
	for _, c := range []struct {
		n    int64
		opt  storage.AllocOptions
		got  int64
		want error
	}{
		{100, storage.AllocOptions{Contiguous: true}, 100, nil},
		{math.MaxInt64, storage.AllocOptions{Guest: 60}, 40, nil},
		{41, storage.AllocOptions{Guest: 60, Contiguous: true}, 0, storage.ErrNoSpace},
		{1, storage.AllocOptions{Guest: 100}, 0, storage.ErrOutOfRange},
		{1, storage.AllocOptions{Guest: -1}, 0, storage.ErrOutOfRange},
		{0, storage.AllocOptions{}, 0, storage.ErrOutOfRange},
	} {
		b, err := i.Alloc(t.Context(), c.n, c.opt)
		if !errors.Is(err, c.want) || b.Length != c.got || err == nil && (b.Offset != c.opt.Guest || b.Node != node) {
			t.Errorf("Alloc(%d, %+v) = %+v, %v", c.n, c.opt, b, err)
		}
	}
}

// TestResizeFailures: the size is what it was.
func TestResizeFailures(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int64{50, 200} {
		i, f, _ := writable(t, storagetest.MemOptions{Size: 100, Hook: storagetest.FailNth(storagetest.OpTruncate, 1, broken)})
		if err := i.Resize(t.Context(), size, storage.ResizeOptions{Shrink: true}); !errors.Is(err, broken) || i.Size() != 100 || len(f.Bytes()) != 100 {
			t.Errorf("Resize(%d) = %v, and the size is %d", size, err, i.Size())
		}
	}
	i, _, _ := writable(t, storagetest.MemOptions{Size: 100})
	err := i.Resize(t.Context(), 99, storage.ResizeOptions{})
	if invalid, ok := errors.AsType[*storage.InvalidError](err); !ok || invalid.Field != "shrink" {
		t.Errorf("Resize = %v", err)
	}
}

// TestGrowOverContent: what lies behind the image in its file does not show when
// it grows, as when it lies on a device that it does not fill.
func TestGrowOverContent(t *testing.T) {
	i, f, _ := writable(t, storagetest.MemOptions{Size: 100})
	f.Put(bytes.Repeat([]byte{1}, 300), 0)
	must(t, i.Resize(t.Context(), 200, storage.ResizeOptions{}))
	if got := f.Bytes(); len(got) != 200 || !bytes.Equal(got[:100], bytes.Repeat([]byte{1}, 100)) || !bytes.Equal(got[100:], make([]byte, 100)) {
		t.Errorf("the content is %v", got)
	}
}
