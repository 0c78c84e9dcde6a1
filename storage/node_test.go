package storage_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// counted returns a node over a file of the size, and how often each operation
// reached the file.
func counted(size int64, limits storage.Limits, hooks ...storagetest.Hook) (*storage.Node, func(storagetest.OpKind) int64) {
	var counts [storagetest.OpFlush + 1]atomic.Int64
	count := func(_ context.Context, op *storagetest.Op) error {
		counts[op.Kind].Add(1)
		return nil
	}
	f := storagetest.NewMemFileWith(storagetest.MemOptions{
		Size: size, Limits: limits, Hook: storagetest.Hooks(append([]storagetest.Hook{count}, hooks...)...),
	})
	return storage.NewNode("disk", f, storage.NodeOptions{Check: true}), func(kind storagetest.OpKind) int64 { return counts[kind].Load() }
}

func TestNodeAsksLimitsOnce(t *testing.T) {
	n, count := counted(8192, storage.Limits{Minimum: 512})
	if _, err := n.Size(t.Context()); err != nil || count(storagetest.OpLimit) != 0 {
		t.Errorf("a size asks %d limits, %v", count(storagetest.OpLimit), err)
	}
	var l storage.ExtentList
	if err := n.Extents(t.Context(), 0, 8192, &l); err != nil || count(storagetest.OpLimit) != 1 {
		t.Errorf("a map asks %d limits, %v", count(storagetest.OpLimit), err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if _, err := n.ReadAt(t.Context(), make([]byte, 512), 512); err != nil {
					t.Error(err)
				}
				if got, err := n.Limits(t.Context()); err != nil || got.Minimum != 512 {
					t.Errorf("%+v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if got := count(storagetest.OpLimit); got != 6 {
		t.Errorf("%d limits were asked, want 6", got)
	}
}

// TestNodeAsksNoLimitInVain: what nobody needs is not computed.
func TestNodeAsksNoLimitInVain(t *testing.T) {
	for _, c := range []struct {
		which storage.Limit
		want  int64
	}{{storage.Minimum, 1}, {storage.Preferred, 2}, {storage.MaxData, 3}, {storage.MaxTrim, 4}, {storage.MaxZero, 4}, {storage.MaxCache, 4}} {
		n, count := counted(8192, storage.Limits{})
		for range 2 {
			if _, err := n.Limit(t.Context(), c.which); err != nil {
				t.Error(err)
			}
		}
		if got := count(storagetest.OpLimit); got != c.want {
			t.Errorf("%d limits were asked for %v, want %d", got, c.which, c.want)
		}
	}
}

func TestNodeKeepsNoError(t *testing.T) {
	broken := errors.New("broken")
	n, count := counted(8192, storage.Limits{}, storagetest.FailNth(storagetest.OpLimit, 2, broken))
	if _, err := n.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, broken) || !strings.Contains(err.Error(), "disk: limit preferred") {
		t.Errorf("ReadAt = %v, want %v", err, broken)
	}
	if count(storagetest.OpRead) != 0 {
		t.Error("the file was read without its limits")
	}
	if _, err := n.Limits(t.Context()); err != nil {
		t.Errorf("Limits after an error = %v", err)
	}
	if _, err := n.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Errorf("ReadAt after an error = %v", err)
	}
}

// TestNodeRefusesTooLong before the file is asked.
func TestNodeRefusesTooLong(t *testing.T) {
	limits := storage.Limits{Preferred: 512, MaxData: 1024, MaxZero: 2048, MaxTrim: 4096}
	n, count := counted(1<<20, limits)
	for _, c := range []struct {
		which storage.Limit
		most  int64
		do    func(length int64) error
	}{
		{storage.MaxData, 1024, func(length int64) error { _, err := n.ReadAt(t.Context(), make([]byte, length), 1); return err }},
		{storage.MaxData, 1024, func(length int64) error { _, err := n.WriteAt(t.Context(), make([]byte, length), 1); return err }},
		{storage.MaxZero, 2048, func(length int64) error { return n.Zero(t.Context(), 1, length, false) }},
		{storage.MaxTrim, 4096, func(length int64) error { return n.Trim(t.Context(), 1, length) }},
	} {
		if err := c.do(c.most); err != nil {
			t.Errorf("%v: %d bytes = %v", c.which, c.most, err)
		}
		err := c.do(c.most + 1)
		long, ok := errors.AsType[*storage.TooLongError](err)
		if !ok || long.Limit != c.which || long.Most != c.most || !errors.Is(err, storage.ErrMisaligned) {
			t.Errorf("%v: %d bytes = %v", c.which, c.most+1, err)
		}
	}
	for kind, want := range map[storagetest.OpKind]int64{storagetest.OpRead: 1, storagetest.OpWrite: 1, storagetest.OpZero: 1, storagetest.OpTrim: 1} {
		if got := count(kind); got != want {
			t.Errorf("%d operations of kind %d reached the file, want %d", got, kind, want)
		}
	}
}

// TestNodeListAfterError: what was in the list is still there, and no more.
func TestNodeListAfterError(t *testing.T) {
	n, _ := counted(8192, storage.Limits{}, storagetest.FailNth(storagetest.OpExtents, 2, io.ErrUnexpectedEOF))
	var l storage.ExtentList
	if err := n.Extents(t.Context(), 0, 4096, &l); err != nil {
		t.Fatal(err)
	}
	if err := n.Extents(t.Context(), 4096, 4096, &l); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if l.Len() != 1 || l.Start() != 0 || l.End() != 8192 {
		t.Errorf("%d extents from %d to %d", l.Len(), l.Start(), l.End())
	}
}

func TestNodeRefusesBrokenLimits(t *testing.T) {
	n, count := counted(8192, storage.Limits{Minimum: 3})
	if _, err := n.ReadAt(t.Context(), make([]byte, 3), 0); !errors.Is(err, storage.ErrContract) {
		t.Errorf("ReadAt = %v, want %v", err, storage.ErrContract)
	}
	if count(storagetest.OpRead) != 0 {
		t.Error("the file was read in spite of its limits")
	}
}

// TestNodeRefusesMisaligned before the file is asked, its end excepted.
func TestNodeRefusesMisaligned(t *testing.T) {
	const size = 8192 + 100
	for _, c := range []struct {
		off, n int64
		ok     bool
	}{
		{0, 512, true},
		{512, 1024, true},
		{8192, 100, true},
		{0, size, true},
		{0, 511, false},
		{1, 511, false},
		{1, 512, false},
		{8191, 101, false},
		{8192, 99, false},
	} {
		n, count := counted(size, storage.Limits{Minimum: 512})
		_, err := n.ReadAt(t.Context(), make([]byte, c.n), c.off)
		if c.ok {
			if err != nil {
				t.Errorf("read of %d at %d = %v", c.n, c.off, err)
			}
			continue
		}
		if m, ok := errors.AsType[*storage.MisalignedError](err); !ok || m.Minimum != 512 || m.Offset != c.off || m.Length != c.n {
			t.Errorf("read of %d at %d = %v", c.n, c.off, err)
		}
		if count(storagetest.OpRead) != 0 {
			t.Errorf("read of %d at %d reached the file", c.n, c.off)
		}
	}
}

func TestNodeWithoutMinimumAsksNoSize(t *testing.T) {
	n, count := counted(8192, storage.Limits{})
	for off := range int64(10) {
		if _, err := n.ReadAt(t.Context(), make([]byte, 3), off); err != nil {
			t.Fatal(err)
		}
	}
	if count(storagetest.OpSize) != 0 {
		t.Errorf("the size was asked %d times", count(storagetest.OpSize))
	}
}

func TestNodeReadErrors(t *testing.T) {
	broken := errors.New("broken")
	n, _ := counted(100, storage.Limits{}, storagetest.FailNth(storagetest.OpRead, 2, broken))
	if got, err := n.ReadAt(t.Context(), make([]byte, 200), 0); got != 100 || err != io.EOF { //nolint:errorlint // must be bare
		t.Errorf("read past the end = %d, %v", got, err)
	}
	if _, err := n.ReadAt(t.Context(), make([]byte, 20), 7); !errors.Is(err, broken) || err.Error() != "disk: read of 20 bytes at 7: broken" {
		t.Errorf("ReadAt = %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Size(t.Context()); !errors.Is(err, storage.ErrClosed) || !strings.HasPrefix(err.Error(), "disk: ") {
		t.Errorf("Size after Close = %v", err)
	}
}

func TestNodeExtents(t *testing.T) {
	f := storagetest.NewMemFile(make([]byte, 4*storagetest.PageSize), storagetest.Range{Offset: storagetest.PageSize, Length: storagetest.PageSize})
	n := storage.NewNode("disk", f, storage.NodeOptions{Check: true})
	var l storage.ExtentList
	if err := n.Extents(t.Context(), 0, 1, &l); err != nil {
		t.Fatal(err)
	}
	if err := n.Extents(t.Context(), l.End(), 2*storagetest.PageSize, &l); err != nil {
		t.Fatal(err)
	}
	const page = storagetest.PageSize
	want := []storage.Mapping{
		{Offset: 0, Length: page, Status: data, Node: n, NodeOffset: 0},
		{Offset: page, Length: page, Status: hole, Node: n, NodeOffset: page},
		{Offset: 2 * page, Length: 2 * page, Status: data, Node: n, NodeOffset: 2 * page},
	}
	if diff := cmp.Diff(want, mappings(&l), cmp.Comparer(sameNode)); diff != "" {
		t.Error(diff)
	}
	if err := n.Extents(t.Context(), 0, 1<<40, &l); !errors.Is(err, storage.ErrOutOfRange) || !strings.HasPrefix(err.Error(), "disk: extents at 0: ") {
		t.Errorf("Extents = %v", err)
	}
	if n.Name() != "disk" || n.File() != storage.File(f) {
		t.Error("the node forgets its name or its file")
	}
}

// liar is a file whose extents are not what they should be.
type liar struct {
	storage.File
	status storage.Status
}

func (l *liar) Extents(_ context.Context, off, n int64, into *storage.ExtentList) error {
	return into.Add(storage.Mapping{Offset: off, Length: n, NodeOffset: off, Status: l.status})
}

func TestNodeChecksOnDemand(t *testing.T) {
	f := &liar{File: storagetest.NewMemFile(make([]byte, 100)), status: storage.Local}
	var l storage.ExtentList
	if err := storage.NewNode("disk", f, storage.NodeOptions{Check: true}).Extents(t.Context(), 0, 10, &l); !errors.Is(err, storage.ErrContract) {
		t.Errorf("Extents = %v, want %v", err, storage.ErrContract)
	}
	l.Reset()
	if err := storage.NewNode("disk", f, storage.NodeOptions{}).Extents(t.Context(), 0, 10, &l); err != nil {
		t.Errorf("unchecked, Extents = %v", err)
	}
}
