package filter_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A through is a filter that passes all parts on.
type through struct {
	filter.Sizes
	filter.Reads
	filter.Maps
	filter.Limits
	filter.Changes
	filter.Starts
	filter.Flushes
	filter.Closes
}

var _ filter.Filter = (*through)(nil)

func newThrough(next *storage.Node) storage.File {
	return &through{
		Sizes: filter.Sizes{Next: next}, Reads: filter.Reads{Next: next}, Maps: filter.Maps{Next: next}, Limits: filter.Limits{Next: next},
		Changes: filter.Changes{Next: next}, Starts: filter.Starts{Next: next}, Flushes: filter.Flushes{Next: next}, Closes: filter.Closes{Next: next},
	}
}

// An idle interposer does nothing.
type idle struct{}

func (idle) Interpose(ctx context.Context, r filter.Request) (int, error) { return r.Do(ctx) }

func newIdle(next *storage.Node) storage.File { return filter.Interpose(next, idle{}) }

// filters do nothing, each in its way.
var filters = map[string]func(next *storage.Node) storage.File{
	"through": newThrough,
	"idle":    newIdle,
	"three": func(next *storage.Node) storage.File {
		return newIdle(node(newThrough(node(newIdle(next)))))
	},
}

// node is a node that checks all that its file says.
func node(f storage.File) *storage.Node {
	return storage.NewNode("node", f, storage.NodeOptions{Check: true})
}

// limited is a file in memory that is asked for multiples of minimum only.
func limited(minimum, size int64) *storagetest.MemFile {
	return storagetest.NewMemFileWith(storagetest.MemOptions{
		Size: size, Litter: 0xdb, Limits: storage.Limits{Minimum: minimum, Preferred: max(minimum, 512), MaxData: 2 << 20},
	})
}

func TestConformance(t *testing.T) {
	for name, over := range filters {
		for _, unit := range []int64{1, 512, 4096} {
			t.Run(fmt.Sprint(name, " ", unit), func(t *testing.T) {
				open := func(_ *testing.T, content []byte, holes ...storagetest.Range) storage.File {
					m := limited(unit, 0)
					m.Put(content, 0)
					for _, h := range holes {
						m.Punch(h.Offset, h.Length)
					}
					return over(node(m))
				}
				create := func(_ *testing.T, size int64) storage.File { return over(node(limited(unit, size))) }
				storagetest.TestFile(t, unit, open)
				storagetest.TestWriter(t, unit, create)
				if unit > 1 {
					storagetest.TestFileTail(t, unit, open)
					storagetest.TestWriterTail(t, unit, create)
				}
			})
		}
	}
}

// TestPassedOn: what is not in the suite comes from the node below too.
func TestPassedOn(t *testing.T) {
	ctx := t.Context()
	for name, over := range filters {
		t.Run(name, func(t *testing.T) {
			below := &telling{MemFile: limited(512, 1<<20)}
			top := node(over(node(below)))
			want, err := node(below).Limits(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := top.Limits(ctx); err != nil || got != want {
				t.Errorf("limits are %+v, %v, want %+v", got, err, want)
			}
			told, err := top.Advertised(ctx)
			if err != nil || told.Preferred != 64<<10 || told.MaxZero != 1<<30 || told.Minimum != 4096 {
				t.Errorf("told are %+v, %v", told, err)
			}
			if got, err := top.Allocated(ctx); err != nil || got != 12345 {
				t.Errorf("Allocated() = %d, %v", got, err)
			}
			for range 2 {
				if err := top.StartWriting(ctx); err != nil {
					t.Error(err)
				}
			}
			if below.started != 2 {
				t.Errorf("writing was started %d times below, want 2", below.started)
			}
			if err := top.Close(); err != nil {
				t.Error(err)
			}
			if _, err := below.Size(ctx); !errors.Is(err, storage.ErrClosed) {
				t.Errorf("the node below is open: %v", err)
			}
		})
	}
}

// A telling file has all abilities that a file may have.
type telling struct {
	*storagetest.MemFile
	started int
}

func (f *telling) StartWriting(context.Context) error { f.started++; return nil }

func (f *telling) Allocated(context.Context) (int64, error) { return 12345, nil }

func (f *telling) Advertise(_ context.Context, which storage.Limit) (int64, error) {
	switch which {
	case storage.Minimum:
		return 4096, nil
	case storage.Preferred:
		return 64 << 10, nil
	case storage.MaxZero:
		return 1 << 30, nil
	}
	return 0, nil
}

// A recorder says what it was asked.
type recorder struct {
	asked  []filter.Request
	closed int
	fails  error
}

func (r *recorder) Interpose(ctx context.Context, q filter.Request) (int, error) {
	r.asked = append(r.asked, filter.Request{Op: q.Op, Offset: q.Offset, Length: q.Length})
	return q.Do(ctx)
}

func (r *recorder) Counters() []filter.Counter {
	return []filter.Counter{{Name: "asked", Value: int64(len(r.asked))}}
}

func (r *recorder) Close() error {
	r.closed++
	return r.fails
}

// TestInterpose: each operation is seen with its range, once, and answered by the
// node below.
func TestInterpose(t *testing.T) {
	ctx := t.Context()
	below := limited(1, 8192)
	r := &recorder{fails: errors.New("close")}
	f := filter.Interpose(node(below), r)
	var l storage.ExtentList
	p := []byte{1, 2, 3}
	n, err := f.WriteAt(ctx, p, 4000)
	if n != 3 || err != nil {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	got := make([]byte, 3)
	if n, err := f.ReadAt(ctx, got, 4000); n != 3 || err != nil || !cmp.Equal(got, p) {
		t.Errorf("ReadAt = %d, %v, %v", n, err, got)
	}
	for _, err := range []error{
		f.Extents(ctx, 1, 4095, &l), f.Zero(ctx, 4001, 1, true), f.Zero(ctx, 0, 4096, false), f.Trim(ctx, 4096, 10),
		f.Truncate(ctx, 5000), f.Flush(ctx),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []filter.Request{
		{Op: filter.Write, Offset: 4000, Length: 3},
		{Op: filter.Read, Offset: 4000, Length: 3},
		{Op: filter.Extents, Offset: 1, Length: 4095},
		{Op: filter.Zero, Offset: 4001, Length: 1},
		{Op: filter.Zero, Length: 4096},
		{Op: filter.Trim, Offset: 4096, Length: 10},
		{Op: filter.Truncate, Offset: 5000},
		{Op: filter.Flush},
	}
	if diff := cmp.Diff(want, r.asked, cmp.Comparer(sameRequest)); diff != "" {
		t.Error(diff)
	}
	if size, err := below.Size(ctx); err != nil || size != 5000 {
		t.Errorf("the size below is %d, %v", size, err)
	}
	counters := f.(filter.Counting).Counters()
	if diff := cmp.Diff([]filter.Counter{{Name: "asked", Value: 8}}, counters); diff != "" {
		t.Error(diff)
	}
	if got := filter.Interpose(node(below), idle{}).(filter.Counting).Counters(); got != nil {
		t.Errorf("counters of what does not count are %v", got)
	}
	if err := f.Close(); !errors.Is(err, r.fails) || r.closed != 1 {
		t.Errorf("Close = %v, and the interposer was closed %d times", err, r.closed)
	}
	if _, err := below.Size(ctx); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("the node below is open: %v", err)
	}
}

func sameRequest(a, b filter.Request) bool {
	return a.Op == b.Op && a.Offset == b.Offset && a.Length == b.Length
}

// TestRequestAgain: a request may be made anew after an error.
func TestRequestAgain(t *testing.T) {
	broken := errors.New("broken")
	below := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 100, Hook: storagetest.FailNth(storagetest.OpRead, 1, broken)})
	f := filter.Interpose(node(below), twice{})
	if n, err := f.ReadAt(t.Context(), make([]byte, 10), 0); n != 10 || err != nil {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
}

type twice struct{}

func (twice) Interpose(ctx context.Context, r filter.Request) (int, error) {
	if n, err := r.Do(ctx); err == nil {
		return n, errors.New("the first did not fail")
	}
	return r.Do(ctx)
}

func TestOp(t *testing.T) {
	names := []string{}
	for op := range filter.Ops {
		names = append(names, op.String())
	}
	if diff := cmp.Diff([]string{"read", "extents", "write", "zero", "trim", "truncate", "flush"}, names); diff != "" {
		t.Error(diff)
	}
	if got := filter.Ops.String(); got != "Op(7)" {
		t.Errorf("no operation is called %q", got)
	}
}

// TestNoAllocations: a request costs no memory on its way through.
func TestNoAllocations(t *testing.T) {
	ctx, p := t.Context(), make([]byte, 4096)
	var l storage.ExtentList
	for name, over := range filters {
		top := node(over(storage.NewNode("node", limited(512, 1<<20), storage.NodeOptions{})))
		allocated := testing.AllocsPerRun(100, func() {
			_, read := top.ReadAt(ctx, p, 8192)
			_, write := top.WriteAt(ctx, p, 8192)
			l.Reset()
			if err := errors.Join(read, write, top.Zero(ctx, 0, 4096, true), top.Extents(ctx, 8192, 4096, &l)); err != nil {
				t.Fatal(err)
			}
		})
		if allocated > 0 && !racing {
			t.Errorf("%s: %v allocations for four requests", name, allocated)
		}
	}
}
