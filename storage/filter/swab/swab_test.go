package swab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/swab"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func memory(l storage.Limits) *storagetest.MemFile {
	return storagetest.NewMemFileWith(storagetest.MemOptions{Limits: l, Litter: 0xdb})
}

func open(t testing.TB, f storage.File, bits int) *swab.Filter {
	t.Helper()
	s, err := swab.New(storage.NewNode("below", f, storage.NodeOptions{Check: true}), swab.Options{Bits: bits})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// swapped is p with the bytes of every group in reverse order.
func swapped(p []byte, bits int) []byte {
	q := make([]byte, len(p))
	for i, b := range p {
		q[i^(bits/8-1)] = b
	}
	return q
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		bits    int
		minimum int64
	}{{16, 4096}, {32, 2}, {64, 512}} {
		t.Run(fmt.Sprintf("%d bits minimum %d", c.bits, c.minimum), func(t *testing.T) {
			t.Parallel()
			limits := storage.Limits{Minimum: c.minimum}
			unit := max(c.minimum, int64(c.bits/8))
			storagetest.TestFile(t, unit, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				f := memory(limits)
				f.Put(swapped(content, c.bits), 0)
				for _, h := range holes {
					f.Punch(h.Offset, h.Length)
				}
				return open(t, f, c.bits)
			})
			storagetest.TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
				f := memory(limits)
				f.SetSize(size)
				return open(t, f, c.bits)
			})
		})
	}
}

// TestOdd: a file whose size is no multiple of the group keeps its size and its
// last bytes.
func TestOdd(t *testing.T) {
	tail := []byte{91, 92, 93}
	limits := storage.Limits{Minimum: 4} // less than the group
	storagetest.TestFile(t, 8, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
		f := memory(limits)
		f.Put(append(swapped(content, 64), tail...), 0)
		for _, h := range holes {
			f.Punch(h.Offset, h.Length)
		}
		return open(t, f, 64)
	})
	storagetest.TestFixedWriter(t, 8, func(t *testing.T, size int64) storage.File {
		f := memory(limits)
		f.Put(tail, size)
		return open(t, &tailed{f, t, tail}, 64)
	})
}

// A tailed file looks, when it is closed, whether its tail is as it was.
type tailed struct {
	*storagetest.MemFile
	t    *testing.T
	tail []byte
}

func (f *tailed) Close() error {
	if now := f.Bytes(); f.t != nil && !bytes.HasSuffix(now, f.tail) {
		f.t.Errorf("the tail has become %v", now[len(now)-len(f.tail):])
	}
	f.t = nil
	return f.MemFile.Close()
}

// TestOddBlock: where the minimum is larger than the group, the incomplete block
// is left out.
func TestOddBlock(t *testing.T) {
	ctx := t.Context()
	f := memory(storage.Limits{Minimum: 512})
	f.Put(bytes.Repeat([]byte{1, 2}, 600), 0)
	f.Put([]byte{1}, 1200)
	s := open(t, f, 16)
	if size, err := s.Size(ctx); size != 1024 || err != nil {
		t.Errorf("the size is %d, %v", size, err)
	}
	p := make([]byte, 2048)
	if n, err := s.ReadAt(ctx, p, 512); n != 512 || err != io.EOF || p[0] != 2 { //nolint:errorlint // must be bare
		t.Errorf("read = %d, %v", n, err)
	}
	if _, err := s.WriteAt(ctx, p[:1024], 512); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("write = %v", err)
	}
	var l storage.ExtentList
	if err := s.Extents(ctx, 0, 1024, &l); err != nil || l.End() != 1024 {
		t.Errorf("extents = %v, end at %d", err, l.End())
	}
	// An even size that is no multiple of the minimum is served whole.
	f.SetSize(1200)
	if n, err := s.ReadAt(ctx, p[:688], 512); n != 688 || err != nil && err != io.EOF || p[687] != 1 { //nolint:errorlint // must be bare
		t.Errorf("read of the even tail = %d, %v", n, err)
	}
	if _, err := s.WriteAt(ctx, p[:688], 512); err != nil {
		t.Errorf("write of the even tail = %v", err)
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		bits        int
		below, want storage.Limits
	}{
		{
			16,
			storage.Limits{},
			storage.Limits{Minimum: 2, Preferred: 4096, MaxData: 64 << 20, MaxTrim: 4<<30 - 2, MaxZero: 4<<30 - 2, MaxCache: 64 << 20},
		},
		{
			64,
			storage.Limits{Preferred: 512, MaxData: 521, MaxTrim: 527, MaxZero: 528, MaxCache: 535},
			storage.Limits{Minimum: 8, Preferred: 512, MaxData: 520, MaxTrim: 520, MaxZero: 528, MaxCache: 528},
		},
		{
			32,
			storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024, MaxTrim: 1024, MaxZero: 1536, MaxCache: 1024},
			storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024, MaxTrim: 1024, MaxZero: 1536, MaxCache: 1024},
		},
	} {
		top := storage.NewNode("top", open(t, memory(c.below), c.bits), storage.NodeOptions{})
		got, err := top.Limits(t.Context())
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%d bits over %+v: %v\n%s", c.bits, c.below, err, diff)
		}
		got, err = top.Advertised(t.Context())
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%d bits over %+v, advertised: %v\n%s", c.bits, c.below, err, diff)
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, bits := range []int{0, 8, 24, 48, 128, -16} {
		_, err := swab.New(storage.NewNode("below", memory(storage.Limits{}), storage.NodeOptions{}), swab.Options{Bits: bits})
		want := fmt.Sprintf("bits is %d, must be 16, 32 or 64", bits)
		if !errors.Is(err, storage.ErrInvalid) || err.Error() != want {
			t.Errorf("%d: %v", bits, err)
		}
	}
}

// TestMisaligned: nothing but whole groups, and no size between them.
func TestMisaligned(t *testing.T) {
	ctx, f := t.Context(), memory(storage.Limits{})
	f.SetSize(4096)
	s := open(t, f, 32)
	_, read := s.ReadAt(ctx, make([]byte, 4), 2)
	_, write := s.WriteAt(ctx, make([]byte, 6), 4)
	for k, err := range []error{read, write, s.Zero(ctx, 0, 2, false), s.Trim(ctx, 2, 2), s.Truncate(ctx, 4095)} {
		if !errors.Is(err, storage.ErrMisaligned) {
			t.Errorf("%d: %v", k, err)
		}
	}
}

// TestLong: more than fits in a buffer, and less than a word at the end.
func TestLong(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, bits := range []int{16, 32, 64} {
		for _, n := range []int{0, bits / 8, 3 * bits / 8, 4096 + bits/8, 256<<10 + 3*bits/8, 1 << 20} {
			want := make([]byte, n)
			for i := range want {
				want[i] = byte(random.Uint32())
			}
			f := memory(storage.Limits{})
			s := open(t, f, bits)
			kept := bytes.Clone(want)
			if got, err := s.WriteAt(t.Context(), want, 0); got != n || err != nil || !bytes.Equal(kept, want) {
				t.Fatalf("%d bits: write of %d bytes = %d, %v, or the buffer has changed", bits, n, got, err)
			}
			if !bytes.Equal(f.Bytes(), swapped(want, bits)) {
				t.Errorf("%d bits: %d bytes below are not swapped", bits, n)
			}
			got := make([]byte, n)
			if _, err := s.ReadAt(t.Context(), got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) { //nolint:errorlint // must be bare
				t.Errorf("%d bits: read of %d bytes: %v, or other bytes", bits, n, err)
			}
		}
	}
}

// TestFaults: what was read or written before an error is told in whole groups.
func TestFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct{ cut, want int64 }{{0, 0}, {5, 4}, {8, 8}} {
		hook := storagetest.Hooks(storagetest.ShortNth(storagetest.OpRead, 1, c.cut, broken), storagetest.ShortNth(storagetest.OpWrite, 1, c.cut, broken))
		f := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 64, Hook: hook})
		f.Put([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 0)
		s := open(t, f, 32)
		p := make([]byte, 16)
		n, err := s.ReadAt(t.Context(), p, 0)
		if int64(n) != c.want || !errors.Is(err, broken) || !bytes.Equal(p[:n], []byte{4, 3, 2, 1, 8, 7, 6, 5}[:n]) {
			t.Errorf("read that ends at %d = %d, %v: %v", c.cut, n, err, p)
		}
		if n, err = s.WriteAt(t.Context(), p, 0); int64(n) != c.want || !errors.Is(err, broken) {
			t.Errorf("write that ends at %d = %d, %v", c.cut, n, err)
		}
	}
}

func TestAllocations(t *testing.T) {
	if racing {
		return // it makes pools forget
	}
	f := memory(storage.Limits{})
	f.SetSize(1 << 20)
	s, p := open(t, f, 16), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		_, read := s.ReadAt(context.Background(), p, 0)
		_, write := s.WriteAt(context.Background(), p, 0)
		if read != nil || write != nil {
			t.Error(read, write)
		}
	}); n >= 1 {
		t.Errorf("a read and a write cost %v allocations", n)
	}
}
