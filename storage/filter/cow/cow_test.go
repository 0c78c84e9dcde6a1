package cow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/cow"
	"github.com/extentd/extentd/storage/storagetest"
)

const block = cow.BlockSize

func write(t *testing.T, f storage.Writer, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(t.Context(), p, off); n != len(p) || err != nil {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOptions(t *testing.T) {
	next := checked("below", storagetest.NewMemFile(nil))
	coarse := scratch(storagetest.MemOptions{Limits: storage.Limits{Minimum: 512}})
	for name, file := range map[string]*storage.Node{"none": nil, "minimum": checked("overlay", coarse)} {
		var invalid *storage.InvalidError
		if _, err := cow.New(t.Context(), next, cow.Options{File: file}); !errors.As(err, &invalid) || invalid.Field != "path" {
			t.Errorf("%s: %v", name, err)
		}
	}
	closed := storagetest.NewMemFile(nil)
	must(t, closed.Close())
	_, err := cow.New(t.Context(), checked("below", closed), cow.Options{File: checked("overlay", scratch(storagetest.MemOptions{}))})
	if !errors.Is(err, storage.ErrClosed) {
		t.Errorf("a node without a size: %v", err)
	}
}

// neverStarted fails the test when it is made ready for being written to.
type neverStarted struct {
	storage.File
	t *testing.T
}

func (n neverStarted) StartWriting(context.Context) error {
	n.t.Error("the node below is made ready for being written to")
	return nil
}

func TestStartWritingStaysAbove(t *testing.T) {
	f := over(t, neverStarted{storagetest.NewMemFile(make([]byte, block)), t})
	must(t, checked("cow", f).StartWriting(t.Context()))
	write(t, f, []byte("x"), 5)
	must(t, f.Close())
	if err := f.StartWriting(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestCloseClosesBoth(t *testing.T) {
	below, file := storagetest.NewMemFile(nil), scratch(storagetest.MemOptions{})
	f, err := cow.New(t.Context(), checked("below", below), cow.Options{File: checked("overlay", file)})
	must(t, err)
	must(t, f.Close())
	for _, m := range []*storagetest.MemFile{below, file} {
		if _, err := m.Size(t.Context()); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("a node is not closed: %v", err)
		}
	}
}

func extents(t *testing.T, f storage.File, off, n int64) []string {
	t.Helper()
	var l storage.ExtentList
	must(t, f.Extents(t.Context(), off, n, &l))
	var all []string
	for i := range l.Len() {
		m := l.At(i)
		all = append(all, fmt.Sprintf("%d+%d %v at %d", m.Offset>>10, m.Length>>10, m.Status, m.NodeOffset>>10))
	}
	return all
}

func TestExtents(t *testing.T) {
	below := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 512<<10), storagetest.Range{Offset: 128 << 10, Length: 64 << 10})
	f := over(t, below)
	write(t, f, []byte("x"), 70<<10)
	must(t, f.Zero(t.Context(), 192<<10, 64<<10, false))
	must(t, f.Truncate(t.Context(), 384<<10))
	must(t, f.Truncate(t.Context(), 600<<10))
	want := []string{
		"0+128 - - A O at 0", "128+128 - Z - O at 128", "256+128 - - A O at 256", "384+216 - Z - O at 384",
	}
	if diff := cmp.Diff(want, extents(t, f, 0, 600<<10)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"130+126 - Z - O at 130"}, extents(t, f, 130<<10, 70<<10)); diff != "" {
		t.Error(diff)
	}
}

// TestStorageIsGivenBack: what is trimmed, zeroed or cut off takes no storage.
func TestStorageIsGivenBack(t *testing.T) {
	for name, change := range map[string]func(*cow.Filter) error{
		"trim":     func(f *cow.Filter) error { return f.Trim(t.Context(), 0, 16*block) },
		"zero":     func(f *cow.Filter) error { return f.Zero(t.Context(), 0, 16*block, false) },
		"truncate": func(f *cow.Filter) error { return f.Truncate(t.Context(), 0) },
	} {
		file := scratch(storagetest.MemOptions{})
		f, err := cow.New(t.Context(), checked("below", storagetest.NewMemFile(make([]byte, 16*block))), cow.Options{File: checked("overlay", file)})
		must(t, err)
		write(t, f, bytes.Repeat([]byte{1}, 16*block), 0)
		must(t, change(f))
		var l storage.ExtentList
		must(t, file.Extents(t.Context(), cow.Base, 16*block, &l))
		if l.At(0).Status.Has(storage.Alloc) || l.Len() != 1 {
			t.Errorf("%s: the overlay still has %v of %d", name, l.At(0).Status, l.At(0).Length)
		}
		if head := file.Bytes()[:6]; string(head) != "header" {
			t.Errorf("%s: the file begins with %q", name, head)
		}
	}
}

// TestFar: a file of the largest size takes no memory, and no sum overflows.
func TestFar(t *testing.T) {
	ctx := t.Context()
	f := over(t, storagetest.NewMemFileWith(storagetest.MemOptions{Size: storage.MaxSize}))
	node := checked("cow", f)
	must(t, f.Trim(ctx, 0, storage.MaxSize))
	must(t, f.Zero(ctx, 0, storage.MaxSize, true))
	last := storage.MaxSize - block
	write(t, f, []byte("end"), last-3)
	p := make([]byte, 8)
	if n, err := node.ReadAt(ctx, p, last-4); n != 8 || err != nil || string(p) != "\x00end\x00\x00\x00\x00" {
		t.Errorf("ReadAt = %q, %d, %v", p, n, err)
	}
	if n, err := node.WriteAt(ctx, []byte("ab"), last-1); n != 0 || !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("a write past the overlay's end = %d, %v", n, err)
	}
	if n, err := node.ReadAt(ctx, p, storage.MaxSize-4); n != 4 || !ended(err) {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
	must(t, f.Zero(ctx, storage.MaxSize-block/2, block/2, false)) // zeros already
	must(t, f.Trim(ctx, 1, storage.MaxSize-1))
	want := []string{"0+2251799813685248 - Z - O at 0"}
	if diff := cmp.Diff(want, extents(t, f, 0, storage.MaxSize)); diff != "" {
		t.Error(diff)
	}
	must(t, f.Truncate(ctx, 1))
	must(t, f.Truncate(ctx, storage.MaxSize))
	if diff := cmp.Diff(want, extents(t, f, 0, storage.MaxSize)); diff != "" {
		t.Error(diff)
	}
}

// TestCopyUpIsOnce: writers of parts of a block that is not in the overlay yet
// lose nothing of each other, while others trim beside them and readers read.
func TestCopyUpIsOnce(t *testing.T) {
	const blocks, parts = 24, 16
	seed := rand.Uint64()
	t.Logf("content of seed %d", seed)
	old := make([]byte, blocks*block)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range old {
		old[i] = byte(random.IntN(256))
	}
	below := storagetest.NewMemFile(old)
	f := over(t, below)
	want := bytes.Clone(old)
	var wg sync.WaitGroup
	for k := range parts {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(k)}, 1500)
			for b := range int64(blocks) {
				off := b*block + int64(k)*4000 + 77
				if b%4 == 3 && k == 0 { // this block is nobody else's
					if err := f.Trim(t.Context(), b*block, block); err != nil {
						t.Error(err)
					}
					clear(want[b*block : (b+1)*block])
				}
				if b%4 == 3 {
					continue
				}
				if _, err := f.WriteAt(t.Context(), p, off); err != nil {
					t.Error(err)
				}
				got := make([]byte, len(p))
				if _, err := f.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("reading back at %d: %v", off, err)
				}
				copy(want[off:], p)
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("wrong bytes, %v", err)
	}
	if !bytes.Equal(below.Bytes(), old) {
		t.Error("the node below has changed")
	}
}

// TestPublication: while a block is being copied up it reads as before, and one
// who waits for it can leave.
func TestPublication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := scratch(storagetest.MemOptions{Hook: storagetest.Delay(storagetest.OpWrite, time.Second)})
		old := bytes.Repeat([]byte{7}, 2*block)
		f, err := cow.New(t.Context(), checked("below", storagetest.NewMemFile(old)), cow.Options{File: checked("overlay", file)})
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() { write(t, f, bytes.Repeat([]byte{8}, 100), 50) })
		time.Sleep(time.Second / 2)
		read := func() []byte {
			p := make([]byte, block)
			if _, err := f.ReadAt(t.Context(), p, 0); err != nil {
				t.Error(err)
			}
			return p
		}
		if !bytes.Equal(read(), old[:block]) {
			t.Error("a block is seen before it is complete")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		if n, err := f.WriteAt(ctx, []byte("x"), 1000); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a write that waited in vain = %d, %v", n, err)
		}
		start := time.Now()
		write(t, f, []byte("other"), block) // waits for nobody
		if time.Since(start) > time.Second {
			t.Error("a write of another block has waited")
		}
		wg.Wait()
		want := bytes.Clone(old[:block])
		copy(want[50:], bytes.Repeat([]byte{8}, 100))
		if !bytes.Equal(read(), want) {
			t.Error("wrong bytes after the write")
		}
	})
}

// TestHotPathsAllocateNothing: reads, and writes of what the overlay has.
func TestHotPathsAllocateNothing(t *testing.T) {
	f := over(t, storagetest.NewMemFile(make([]byte, 16*block)))
	p := make([]byte, 4096)
	write(t, f, p, 0)
	ctx := t.Context()
	for name, do := range map[string]func(){
		"read below":   func() { _, _ = f.ReadAt(ctx, p, 4*block) },
		"read overlay": func() { _, _ = f.ReadAt(ctx, p, 0) },
		"write":        func() { _, _ = f.WriteAt(ctx, p, 8192) },
	} {
		if n := testing.AllocsPerRun(100, do); n > 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
