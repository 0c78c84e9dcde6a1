package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A meter counts reads.
type meter struct{ reads, bytes atomic.Int64 }

func (m *meter) hook(_ context.Context, op *storagetest.Op) error {
	if op.Kind == storagetest.OpRead {
		m.reads.Add(1)
		m.bytes.Add(op.Length)
	}
	return nil
}

// metered opens an image with a hook on what it reads.
func metered(t testing.TB, content []byte, hook storagetest.Hook, opt qcow2.Options) *qcow2.Image {
	t.Helper()
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
	file.Put(content, 0)
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// TestColdImage opens large images and fetches once: what is read must not grow
// with the image, nor with what its header claims.
func TestColdImage(t *testing.T) {
	for _, tt := range []struct {
		b       builder
		patches []patch
	}{
		{b: builder{size: 1 << 40}},
		{b: builder{clusterBits: 9, size: 1 << 37}},
		{b: builder{clusterBits: 21, size: 1 << 61}},
		{b: builder{size: 1 << 40}, patches: field(36, be32(4<<20))},
	} {
		var m meter
		i := metered(t, patched(tt.b.bytes(), tt.patches...), m.hook, qcow2.Options{})
		if _, err := fetch(i, i.Size()/2, 4096, true); err != nil {
			t.Fatal(err)
		}
		if m.reads.Load() > 3 || m.bytes.Load() > 12<<10 {
			t.Errorf("%d reads of %d bytes", m.reads.Load(), m.bytes.Load())
		}
	}
}

// TestCacheHolds walks images twice. One that fits into the cache is read once,
// one that does not again and again, with the same result.
func TestCacheHolds(t *testing.T) {
	for _, bits := range []uint32{9, 12, 16} {
		for _, tables := range []int64{1, 3, 40} {
			content := alternating(bits, int(tables<<bits/8)).bytes()
			for _, size := range []int64{0, 1, 16 << 10, 100 << 10} {
				t.Run(fmt.Sprintf("cluster_bits %d, %d tables, cache %d", bits, tables, size), func(t *testing.T) {
					var m meter
					i := metered(t, content, m.hook, qcow2.Options{CacheSize: size})
					if err := walk(t.Context(), i); err != nil {
						t.Fatal(err)
					}
					once := m.reads.Load()
					if err := walk(t.Context(), i); err != nil {
						t.Fatal(err)
					}
					again := m.reads.Load() - once
					if fits := size == 0; fits && again != 0 {
						t.Errorf("%d of %d reads again", again, once)
					}
					if slices := tables << bits / 4096; size > 1 && slices*4096 > 4*size && again < slices/2 {
						t.Errorf("%d of %d reads again: the cache keeps more than %d bytes", again, once, size)
					}
				})
			}
		}
	}
}

// walk checks an alternating image.
func walk(ctx context.Context, i *qcow2.Image) error {
	var l storage.ExtentList
	unit := i.PackedUnit()
	for off := int64(0); off < i.Size(); off = l.End() {
		l.Reset()
		if err := i.Fetch(ctx, off, 1, &l); err != nil {
			return err
		}
		for k := range l.Len() {
			m := l.At(k)
			even := m.Offset/unit%2 == 0
			if m.Length != unit || even != m.Status.Has(storage.Local) || even && m.NodeOffset != m.Offset+1024*unit {
				return fmt.Errorf("extent %+v", *m)
			}
		}
	}
	return nil
}

// TestConcurrentWalks fetches at random from many goroutines through a cache
// that is far too small.
func TestConcurrentWalks(t *testing.T) {
	i := metered(t, alternating(12, 1<<15).bytes(), nil, qcow2.Options{CacheSize: 16 << 10})
	rng := random(t)
	var wg sync.WaitGroup
	for range 8 {
		start := rng.Int64N(i.Size())
		wg.Go(func() {
			var l storage.ExtentList
			off := start
			for range 1000 {
				off = (off*7 + 4096*13) % i.Size()
				l.ResetWindow(off, off+1)
				if err := i.Fetch(t.Context(), off, 1, &l); err != nil {
					t.Error(err)
					return
				}
				m := l.At(0)
				if even := off/4096%2 == 0; even != m.Status.Has(storage.Local) || even && m.NodeOffset != m.Offset+1024*4096 {
					t.Errorf("at %d: %+v", off, *m)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A gate holds up reads of a file until it is opened, or their contexts end.
type gate struct {
	meter
	closed  atomic.Bool
	waiting chan struct{} // one for each read that is held up
	open    chan struct{}
}

func newGate() *gate { return &gate{waiting: make(chan struct{}, 100), open: make(chan struct{})} }

func (g *gate) hook(ctx context.Context, op *storagetest.Op) error {
	if op.Kind != storagetest.OpRead || !g.closed.Load() {
		return nil
	}
	_ = g.meter.hook(ctx, op)
	g.waiting <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func fetchOne(ctx context.Context, i *qcow2.Image) error {
	var l storage.ExtentList
	return i.Fetch(ctx, 0, 1, &l)
}

// TestMissesReadOnce lets many goroutines miss the same slice.
func TestMissesReadOnce(t *testing.T) {
	g := newGate()
	i := metered(t, alternating(16, 8192).bytes(), g.hook, qcow2.Options{})
	g.closed.Store(true)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := fetchOne(t.Context(), i); err != nil {
				t.Error(err)
			}
		})
	}
	<-g.waiting // the L1 page is being read
	time.Sleep(10 * time.Millisecond)
	close(g.open)
	wg.Wait()
	if n := g.reads.Load(); n != 2 {
		t.Errorf("%d reads, want one of the L1 table and one of the L2 table", n)
	}
}

// TestGivingUp cancels the goroutine that reads: those that wait for it must
// not fail, and those that are cancelled must not wait.
func TestGivingUp(t *testing.T) {
	g := newGate()
	i := metered(t, alternating(16, 8192).bytes(), g.hook, qcow2.Options{})
	g.closed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 20)
	first := make(chan error)
	go func() { first <- fetchOne(ctx, i) }()
	<-g.waiting
	for range 20 {
		go func() { results <- fetchOne(t.Context(), i) }()
	}
	impatient, giveUp := context.WithCancel(t.Context())
	waiter := make(chan error)
	go func() { waiter <- fetchOne(impatient, i) }()
	time.Sleep(10 * time.Millisecond)
	giveUp()
	if err := <-waiter; !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that is cancelled: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the reader that is cancelled: %v", err)
	}
	<-g.waiting // another one took over
	close(g.open)
	for range 20 {
		if err := <-results; err != nil {
			t.Errorf("a waiter that is not: %v", err)
		}
	}
}

// TestClosed uses an image that is closed, also while it is being used.
func TestClosed(t *testing.T) {
	i := mustOpen(t, alternating(12, 1<<12).bytes())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if err := walk(t.Context(), i); err != nil {
					if !errors.Is(err, storage.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	_, snapshots := i.Snapshots(t.Context())
	_, bitmaps := i.Bitmaps(t.Context())
	_, looks := i.LooksPreallocated(t.Context())
	for name, err := range map[string]error{
		"Snapshots": snapshots, "Bitmaps": bitmaps, "LooksPreallocated": looks,
		"Unpack": i.Unpack(make([]byte, 4096), nil), "Fetch": fetchOne(t.Context(), i),
	} {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s: %v, want %v", name, err, storage.ErrClosed)
		}
	}
	if err := i.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
