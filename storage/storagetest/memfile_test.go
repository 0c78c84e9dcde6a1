package storagetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemFileConformance(t *testing.T) {
	storagetest.TestFile(t, 1, func(_ *testing.T, content []byte, holes ...storagetest.Range) storage.File {
		return storagetest.NewMemFile(content, holes...)
	})
}

func TestMemFileWriter(t *testing.T) {
	storagetest.TestWriter(t, 1, func(_ *testing.T, size int64) storage.File {
		return storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Litter: 0xdb})
	})
}

func TestMemFileHoles(t *testing.T) {
	const page = storagetest.PageSize
	m := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 4*page+100), storagetest.Range{Offset: page - 1, Length: page + 2})
	m.Punch(4*page, 100) // the whole of the last page that there is
	m.Put([]byte{1}, 6*page+5)
	got := extents(t, m)
	const data, hole = storage.Alloc | storage.OffsetValid, storage.Zero | storage.OffsetValid
	want := []storage.Mapping{
		{Offset: 0, Length: page, NodeOffset: 0, Status: data},
		{Offset: page, Length: page, NodeOffset: page, Status: hole},
		{Offset: 2 * page, Length: 2 * page, NodeOffset: 2 * page, Status: data},
		{Offset: 4 * page, Length: 2 * page, NodeOffset: 4 * page, Status: hole},
		{Offset: 6 * page, Length: 6, NodeOffset: 6 * page, Status: data},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func extents(t interface {
	Fatal(args ...any)
	Context() context.Context
}, f storage.File,
) []storage.Mapping {
	size, err := f.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var l storage.ExtentList
	if err := f.Extents(t.Context(), 0, size, &l); err != nil {
		t.Fatal(err)
	}
	var all []storage.Mapping
	for i := range l.Len() {
		all = append(all, *l.At(i))
	}
	return all
}

// TestMemFileModel compares with a byte slice after random changes.
func TestMemFileModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, model := storagetest.NewMemFile(nil), []byte(nil)
		at := rapid.Int64Range(0, 40<<10)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				p, off := rapid.SliceOfN(rapid.Byte(), 1, 9000).Draw(t, "p"), at.Draw(t, "off")
				m.Put(p, off)
				model = append(model, make([]byte, max(0, off+int64(len(p))-int64(len(model))))...)
				copy(model[off:], p)
			},
			"punch": func(t *rapid.T) {
				off, n := at.Draw(t, "off"), at.Draw(t, "n")
				m.Punch(off, n)
				size := int64(len(model))
				clear(model[min(off, size):min(off+n, size)])
			},
			"truncate": func(t *rapid.T) {
				size := at.Draw(t, "size")
				m.SetSize(size)
				model = append(model, make([]byte, max(0, size-int64(len(model))))...)[:size]
			},
			"": func(t *rapid.T) {
				got := make([]byte, len(model)+1)
				n, err := m.ReadAt(t.Context(), got, 0)
				if n != len(model) || err != io.EOF || !bytes.Equal(got[:n], model) { //nolint:errorlint // must be bare
					t.Fatalf("content differs after %d bytes, %v", n, err)
				}
				if len(model) == 0 {
					return
				}
				for _, e := range extents(t, m) {
					if e.Status.Has(storage.Zero) && len(bytes.Trim(model[e.Offset:e.End()], "\x00")) > 0 {
						t.Fatalf("no hole: %+v", e)
					}
				}
			},
		})
	})
}

func TestFaults(t *testing.T) {
	broken := errors.New("broken")
	m := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1 << 20, Hook: storagetest.Hooks(
		storagetest.FailNth(storagetest.OpRead, 2, broken),
		storagetest.FailNth(storagetest.OpExtents, 1, broken),
		storagetest.ShortNth(storagetest.OpRead, 2, 10, io.ErrUnexpectedEOF), // the second that gets so far: the third
		storagetest.ShortNth(storagetest.OpRead, 2, 20, nil),                 // likewise: the fourth
	)})
	for i, want := range []struct {
		n   int
		err error
	}{{100, nil}, {0, broken}, {10, io.ErrUnexpectedEOF}, {20, nil}, {100, nil}} {
		n, err := m.ReadAt(t.Context(), make([]byte, 100), 0)
		if n != want.n || !errors.Is(err, want.err) {
			t.Errorf("read %d = %d, %v, want %d, %v", i+1, n, err, want.n, want.err)
		}
	}
	var l storage.ExtentList
	if err := m.Extents(t.Context(), 0, 1, &l); !errors.Is(err, broken) {
		t.Errorf("extents = %v, want %v", err, broken)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1, Hook: storagetest.Delay(storagetest.OpRead, time.Hour)})
		begin := time.Now()
		if _, err := m.ReadAt(t.Context(), make([]byte, 1), 0); err != nil || time.Since(begin) != time.Hour {
			t.Errorf("read = %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin = time.Now()
		if _, err := m.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("read = %v after %v", err, time.Since(begin))
		}
	})
}
