package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// A fault fails the nth operation of a kind, counted from when it was armed.
type fault struct {
	op    string
	left  atomic.Int64 // operations until it fails; 0: never
	meets func() error
}

func (f *fault) try(op string) error {
	if op == f.op && f.left.Load() > 0 && f.left.Add(-1) == 0 {
		return f.meets()
	}
	return nil
}

// faultDisk is an image with data, packed and shared clusters over a backing.
func faultDisk(t *testing.T, f *fault) (*block.Device, *clusterMapper, []byte) {
	const size = 16 << 10
	m := newClusterMapper(clusterOptions{size: size, cluster: 1024, sub: 256, pack: true, seed: 3, fail: f.try})
	below := randomLayer(size, 4)
	d, err := block.New([]storage.Mapper{m, below.table}, block.Options{})
	must(t, err)
	must(t, d.StartWriting(t.Context()))
	want := bytes.Clone(below.bytes)
	put := func(off, n int64) {
		p := make([]byte, n)
		fillRandom(p, uint64(off))
		must(t, d.WriteAt(t.Context(), p, off))
		copy(want[off:], p)
	}
	put(0, 4096)
	put(5000, 300)
	m.share()
	put(6000, 3000)
	must(t, d.Zero(t.Context(), 10<<10, 2048, true))
	clear(want[10<<10 : 12<<10])
	return d, m, want
}

// mutations are what the faults hit, each with the range that it may change.
func mutations() map[string]func(ctx context.Context, d *block.Device, p []byte) (off, n int64, err error) {
	write := func(off, n int64) func(context.Context, *block.Device, []byte) (int64, int64, error) {
		return func(ctx context.Context, d *block.Device, p []byte) (int64, int64, error) {
			copy(p[off:], bytes.Repeat([]byte{211}, int(n)))
			return off, n, d.WriteAt(ctx, p[off:off+n], off)
		}
	}
	return map[string]func(context.Context, *block.Device, []byte) (int64, int64, error){
		"write of everything": write(0, 16<<10),
		"unaligned write":     write(700, 9000),
		"small write":         write(13000, 10),
		"write in place":      write(7000, 100),
		"write over shared":   write(1300, 10),
		"write over anchored": write(10300, 1000),
		"zero": func(ctx context.Context, d *block.Device, p []byte) (int64, int64, error) {
			clear(p[700:15000])
			return 700, 14300, d.Zero(ctx, 700, 14300, false)
		},
		"anchor": func(ctx context.Context, d *block.Device, p []byte) (int64, int64, error) {
			clear(p[700:15000])
			return 700, 14300, d.Zero(ctx, 700, 14300, true)
		},
		"trim": func(ctx context.Context, d *block.Device, p []byte) (int64, int64, error) {
			clear(p[1024 : 14<<10])
			return 1024, 13 << 10, d.Trim(ctx, 700, 14300)
		},
	}
}

// An error, a full disk, or a cancellation, at each operation in turn: it is
// reported, each byte is the old or the new one, nothing else has changed, and
// nothing stays reserved or pinned.
func TestFaults(t *testing.T) {
	for name, mutate := range mutations() {
		for _, op := range []string{"fetch", "check", "alloc", "write", "read", "update"} {
			t.Run(name+"/"+op, func(t *testing.T) {
				for nth := int64(1); ; nth++ {
					if hit := oneFault(t, op, nth, mutate); !hit || t.Failed() {
						return
					}
				}
			})
		}
	}
}

func oneFault(t *testing.T, op string, nth int64, mutate func(context.Context, *block.Device, []byte) (int64, int64, error)) (hit bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	broken := errors.New("broken")
	cause := []error{broken, storage.ErrNoSpace, context.Canceled}[rand.IntN(3)]
	f := &fault{op: op}
	f.meets = func() error {
		hit = true
		if errors.Is(cause, context.Canceled) {
			cancel()
		}
		return fmt.Errorf("injected: %w", cause)
	}
	d, m, before := faultDisk(t, f)
	after := bytes.Clone(before)
	f.left.Store(nth)
	off, n, err := mutate(ctx, d, after)
	f.left.Store(0)
	if hit != errors.Is(err, cause) {
		t.Errorf("%s %d: hit %v, and the error is %v", op, nth, hit, err)
	}
	if m.leaks() > 0 || m.pinned() > 0 {
		t.Errorf("%s %d: %d clusters reserved, %d epochs pinned", op, nth, m.leaks(), m.pinned())
	}
	got := make([]byte, len(before))
	must(t, d.ReadAt(t.Context(), got, 0))
	for i := range got {
		inside := off <= int64(i) && int64(i) < off+n
		if got[i] != after[i] && (err == nil || !inside || got[i] != before[i]) {
			t.Fatalf("%s %d: byte %d is %d, was %d, should become %d (%v)", op, nth, i, got[i], before[i], after[i], err)
		}
	}
	if _, _, err := mutate(t.Context(), d, after); err != nil { // again, without a fault
		t.Fatal(err)
	}
	must(t, d.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, after) {
		t.Errorf("%s %d: the second attempt has not done all", op, nth)
	}
	return hit
}

// What a failed write of many clusters has not come to is as it was: the first
// clusters are written, one after the other.
func TestFailedWriteStopsAtACluster(t *testing.T) {
	f := &fault{op: "update", meets: func() error { return storage.ErrNoSpace }}
	m := newClusterMapper(clusterOptions{size: 64 << 10, cluster: 1024, sub: 1024, fail: f.try})
	d, err := block.New([]storage.Mapper{m}, block.Options{})
	must(t, err)
	must(t, d.StartWriting(t.Context()))
	f.left.Store(20)
	if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 64<<10), 0); !errors.Is(err, storage.ErrNoSpace) {
		t.Fatal(err)
	}
	got := make([]byte, 64<<10)
	must(t, d.ReadAt(t.Context(), got, 0))
	want := append(bytes.Repeat([]byte{9}, 19<<10), make([]byte, 45<<10)...)
	if !bytes.Equal(got, want) || m.leaks() > 0 {
		t.Errorf("%d clusters reserved", m.leaks())
	}
}

// A resize that fails has changed nothing, be it before the layer has its new
// size or after.
func TestFailedResize(t *testing.T) {
	for _, op := range []string{"alloc 1", "update 1", "flush 1", "resize 1", "update 2"} {
		t.Run(op, func(t *testing.T) {
			f := &fault{meets: func() error { return storage.ErrNoSpace }}
			m := newClusterMapper(clusterOptions{size: 1500, cluster: 1024, sub: 256, fail: f.try})
			below := make([]byte, 4096)
			fillRandom(below, 1)
			d, err := block.New([]storage.Mapper{m, uniform(below, 0)}, block.Options{Check: true})
			must(t, err)
			must(t, d.StartWriting(t.Context()))
			var nth int64
			if _, err := fmt.Sscan(op, &f.op, &nth); err != nil {
				t.Fatal(err)
			}
			f.left.Store(nth)
			if err := d.Resize(t.Context(), 4096, false); !errors.Is(err, storage.ErrNoSpace) {
				t.Fatal(err)
			}
			if d.Size() != 1500 || m.Size() != 1500 || m.leaks() > 0 {
				t.Errorf("the size is %d and %d, %d reserved", d.Size(), m.Size(), m.leaks())
			}
			must(t, d.Resize(t.Context(), 4096, false))
			got := make([]byte, 4096)
			must(t, d.ReadAt(t.Context(), got, 0))
			if !bytes.Equal(got, append(bytes.Clone(below[:1500]), make([]byte, 4096-1500)...)) {
				t.Error("the backing shows where the image has grown")
			}
		})
	}
}

// A crash right after the size has changed shows neither the backing nor what
// was there before the image shrank.
func TestTailIsSealedBeforeTheImageGrows(t *testing.T) {
	for _, kind := range []string{"deferred", "data", "shared", "packed"} {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			m := newClusterMapper(clusterOptions{size: 4096, cluster: 1024, sub: 1024, pack: kind == "packed", seed: 6})
			below := make([]byte, 4096)
			fillRandom(below, 1)
			d, err := block.New([]storage.Mapper{m, uniform(below, 0)}, block.Options{Check: true})
			must(t, err)
			must(t, d.StartWriting(ctx))
			if kind != "deferred" {
				for range 20 { // until it is packed
					must(t, d.Zero(ctx, 0, 2048, false))
					must(t, d.WriteAt(ctx, below[:2048], 0))
				}
			}
			if kind == "shared" {
				m.share()
			}
			must(t, d.Resize(ctx, 1500, true))
			crash := &crashing{clusterMapper: m}
			d, err = block.New([]storage.Mapper{crash, uniform(below, 0)}, block.Options{Check: true})
			must(t, err)
			must(t, d.StartWriting(ctx))
			must(t, d.Resize(ctx, 4096, false))
			if got, want := crash.seen, append(bytes.Clone(below[:1500]), make([]byte, 2596)...); !bytes.Equal(got, want) {
				t.Error("it does not read as what was there, and zeros")
			}
		})
	}
}

// crashing looks at the image at the instant when its size has changed.
type crashing struct {
	*clusterMapper
	seen []byte
}

func (c *crashing) Resize(ctx context.Context, size int64, opt storage.ResizeOptions) error {
	if err := c.clusterMapper.Resize(ctx, size, opt); err != nil {
		return err
	}
	below := make([]byte, 4096)
	fillRandom(below, 1)
	d, err := block.New([]storage.Mapper{c.clusterMapper, uniform(below, 0)}, block.Options{})
	if err != nil {
		return err
	}
	c.seen = make([]byte, size)
	return d.ReadAt(ctx, c.seen, 0)
}
