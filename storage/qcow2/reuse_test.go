package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// reserves reports whether so many single clusters that are reserved now include
// the one at an offset; they are given back.
func (w *written) reserves(at int64, n int) bool {
	w.t.Helper()
	found := false
	var all []storage.Blocks
	for range n {
		b, err := w.image.Alloc(w.t.Context(), 1, storage.AllocOptions{})
		w.ok(err)
		found = found || b.Offset == at
		all = append(all, b)
	}
	for _, b := range all {
		w.ok(w.image.Free(w.t.Context(), b))
	}
	return found
}

// TestDeferredReuse: a cluster that was unmapped is reserved anew only when that
// is durable, and the pins of that time have been returned.
func TestDeferredReuse(t *testing.T) {
	w := newWritten(t, 1<<20, "", nil)
	w.write(bytes.Repeat([]byte{1}, 64<<10), 0)
	at := w.mapping(0).NodeOffset
	w.ok(w.image.Flush(t.Context()))
	pin := w.image.Pin()
	w.clear(0, 64<<10, storage.ToUnmapped)
	later := w.image.Pin()
	if w.reserves(at, 20) {
		t.Error("reserved before it is durable")
	}
	w.ok(w.image.Flush(t.Context()))
	w.ok(w.image.Flush(t.Context()))
	if w.reserves(at, 20) {
		t.Error("reserved while a reader has it")
	}
	if got := make([]byte, 1); true {
		_, err := w.node.ReadAt(t.Context(), got, at)
		if w.ok(err); got[0] != 1 {
			t.Error("trimmed while a reader has it")
		}
	}
	w.image.Unpin(pin)
	w.ok(w.image.Flush(t.Context()))
	w.image.Unpin(later)
	w.ok(w.image.Flush(t.Context()))
	if got := make([]byte, 1); true {
		_, err := w.node.ReadAt(t.Context(), got, at)
		if w.ok(err); got[0] != 0 {
			t.Error("not trimmed")
		}
	}
	if !w.reserves(at, 20) {
		t.Error("never reserved again")
	}
	w.close()
}

// TestPinsMoveOn: new pins do not keep what older ones have let go.
func TestPinsMoveOn(t *testing.T) {
	w := newWritten(t, 1<<20, "", nil)
	w.write(bytes.Repeat([]byte{1}, 64<<10), 0)
	at := w.mapping(0).NodeOffset
	w.clear(0, 64<<10, storage.ToUnmapped)
	pin := w.image.Pin()
	defer func() { w.image.Unpin(pin) }()
	for range 6 { // there is a pin at any time
		w.ok(w.image.Flush(t.Context()))
		next := w.image.Pin()
		w.image.Unpin(pin)
		pin = next
		if w.reserves(at, 20) {
			return
		}
	}
	t.Error("never reserved again")
}

// TestReuseUnderReaders changes clusters that are unmapped and reused all the
// time, while readers make sure that what a mapping names is what the guest
// offset had when they looked, or has had since.
func TestReuseUnderReaders(t *testing.T) {
	for _, options := range []string{"cluster_size=4k", "cluster_size=64k,extended_l2=on", "cluster_size=512"} {
		t.Run(options, func(t *testing.T) {
			w := newWritten(t, 1<<20, options, nil)
			unit := w.units.Alloc
			var stop atomic.Bool
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for rng := rand.New(rand.NewPCG(1, 2)); !stop.Load(); {
						if err := readTagged(t.Context(), w.image, rng.Int64N(w.image.Size()/unit)*unit, unit); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			var writers sync.WaitGroup
			for k := range int64(3) { // each has clusters of its own
				writers.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(k), 3))
					for range 400 {
						guest := (rng.Int64N(w.image.Size()/unit/3)*3 + k) * unit
						if err := writeTagged(t.Context(), w.image, rng, guest, unit); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			writers.Wait()
			stop.Store(true)
			wg.Wait()
			w.ok(w.image.Close())
			if out := w.check(); !strings.Contains(out, "No errors") {
				t.Error(out)
			}
		})
	}
}

// readTagged reads a cluster through its mapping: all of it bears the tag of its
// guest offset, or is zeros.
func readTagged(ctx context.Context, i *qcow2.Image, guest, unit int64) error {
	pin := i.Pin()
	defer i.Unpin(pin)
	var l storage.ExtentList
	l.ResetWindow(guest, guest+unit)
	if err := i.Fetch(ctx, guest, unit, &l); err != nil {
		return err
	}
	m := *l.At(l.Find(guest))
	if m.Status != storage.Local|storage.Alloc|storage.OffsetValid {
		return nil
	}
	m.Clip(guest, guest+unit)
	p := make([]byte, m.Length)
	if _, err := m.Node.ReadAt(ctx, p, m.NodeOffset); err != nil {
		return err
	}
	if tag := byte(1 + guest/unit%250); p[0] != tag || p[len(p)-1] != tag {
		return fmt.Errorf("at %d: %d and %d, want the tag %d", guest, p[0], p[len(p)-1], tag)
	}
	return nil
}

func writeTagged(ctx context.Context, i *qcow2.Image, rng *rand.Rand, guest, unit int64) error {
	switch rng.IntN(4) {
	case 0:
		return i.Update(ctx, guest, unit, storage.Target{Kind: storage.ToUnmapped})
	case 1:
		return i.Flush(ctx)
	}
	b, err := i.Alloc(ctx, unit, storage.AllocOptions{})
	if err != nil {
		return err
	}
	if _, err := b.Node.WriteAt(ctx, bytes.Repeat([]byte{byte(1 + guest/unit%250)}, int(unit)), b.Offset); err != nil {
		return err
	}
	return i.Update(ctx, guest, unit, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset})
}

// TestFlushesShare: while one sync is under way, all who come wait for one other.
func TestFlushesShare(t *testing.T) {
	var syncs atomic.Int64
	gate := make(chan struct{})
	hook := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind == storagetest.OpFlush {
			syncs.Add(1)
			<-gate
		}
		return nil
	}
	dir := t.TempDir()
	create(t, dir, "image", 1<<20, "")
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
	file.Put(load(t, dir, "image"), 0)
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.StartWriting(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	flush := func() {
		if err := i.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Go(flush)
	for syncs.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		wg.Go(flush)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		if err := i.Flush(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	cancel()
	if _, err := i.Alloc(t.Context(), 1, storage.AllocOptions{}); err != nil {
		t.Errorf("during a sync: %v", err)
	}
	close(gate)
	wg.Wait()
	if n := syncs.Load(); n != 2 {
		t.Errorf("%d syncs, want 2", n)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUpdateDuringSync updates while a commit waits for its first sync: what that
// refers to is not in use on disk yet, so the commit must not write it.
func TestUpdateDuringSync(t *testing.T) {
	var i *qcow2.Image
	var syncs atomic.Int64
	hook := func(ctx context.Context, op *storagetest.Op) error {
		if op.Kind != storagetest.OpFlush || syncs.Add(1) != 1 {
			return nil
		}
		for guest := range int64(40) { // in the same slice, and in others
			b, err := i.Alloc(ctx, 4096, storage.AllocOptions{})
			if err == nil {
				err = i.Update(ctx, guest*3<<12, 4096, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	w := &written{t: t, dir: t.TempDir()}
	create(t, w.dir, "image", 1<<20, "cluster_size=4k")
	w.file = storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
	w.file.Put(load(t, w.dir, "image"), 0)
	w.model = make([]byte, 1<<20)
	w.open()
	i = w.image
	w.write([]byte("one"), 0)
	w.ok(i.Flush(t.Context()))
	now := w.file
	w.file = now.Clone()
	if out := w.check(); strings.Contains(out, "ERROR") {
		t.Errorf("after the commit:\n%s", out)
	}
	w.file = now
	w.model[0], w.model[1], w.model[2] = 0, 0, 0 // replaced
	w.ok(i.Flush(t.Context()))
	w.close()
}
