package service_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// counters are writers that number their writes, each to cells of its own: every
// write goes to the next cell, with the next number.
const (
	cellSize = 4096
	cells    = 64 // of a writer
)

// countUp writes until it is told to stop. answered is the last number that was.
func countUp(ctx context.Context, h *service.Handle, writer int64, answered *atomic.Uint64) error {
	p := make([]byte, cellSize)
	for n := uint64(1); ctx.Err() == nil; n++ {
		for k := 0; k < len(p); k += 8 {
			binary.LittleEndian.PutUint64(p[k:], n)
		}
		off := (writer*cells + int64(n%cells)) * cellSize
		if err := h.Device().WriteAt(context.WithoutCancel(ctx), p, off); err != nil {
			return err
		}
		answered.Store(n)
	}
	return nil
}

// cutOf is how far a writer was in what a snapshot has: an error if that is no
// moment of it.
func cutOf(content []byte, writer int64) (uint64, error) {
	var most uint64
	numbers := make([]uint64, cells)
	for c := range int64(cells) {
		cell := content[(writer*cells+c)*cellSize:][:cellSize]
		n := binary.LittleEndian.Uint64(cell)
		for k := 0; k < len(cell); k += 8 {
			if binary.LittleEndian.Uint64(cell[k:]) != n {
				return 0, fmt.Errorf("writer %d: half of write %d", writer, n)
			}
		}
		numbers[c] = n
		most = max(most, n)
	}
	for n := most; n > 0 && n+cells > most; n-- {
		if got := numbers[n%cells]; got != n {
			return 0, fmt.Errorf("writer %d: write %d is there, and not %d but %d", writer, most, n, got)
		}
	}
	return most, nil
}

// TestSnapshotsUnderWriters takes snapshots while everybody writes: each holds all
// that was answered before it was asked for, nothing that began after it was
// answered, and of each writer everything up to some write. Some are deleted, and
// one is reverted to.
func TestSnapshotsUnderWriters(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "4M")
	svc := start(t, service.Options{Dir: dir})
	const writers = 4
	var answered [writers]atomic.Uint64
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for n := range int64(writers) {
		h := acquireWritable(t, svc, "vm.qcow2")
		work.Go(func() {
			defer h.Release()
			if err := countUp(ctx, h, n, &answered[n]); err != nil {
				t.Error(err)
			}
		})
	}
	type bounds struct{ least, most [writers]uint64 }
	taken := map[string]bounds{}
	for n := range 12 {
		name := fmt.Sprint("s", n)
		var b bounds
		for w := range answered {
			b.least[w] = answered[w].Load()
		}
		takeSnapshot(t, svc, "vm.qcow2", name)
		for w := range answered {
			b.most[w] = answered[w].Load() + 1 // one may have been under way
		}
		taken[name] = b
		if n%4 == 3 {
			if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", name, nil); err != nil {
				t.Error(err)
			}
			delete(taken, name)
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	work.Wait()
	for name, b := range taken {
		content := readSnapshot(t, svc, "vm.qcow2", name)
		for w := range int64(writers) {
			n, err := cutOf(content, w)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if n < b.least[w] || n > b.most[w] {
				t.Errorf("%s: writer %d was at %d, and not from %d to %d", name, w, n, b.least[w], b.most[w])
			}
		}
	}
	want := readSnapshot(t, svc, "vm.qcow2", "s2")
	revert(t, svc, "vm.qcow2", "s2")
	if !bytes.Equal(readImage(t, svc, "vm.qcow2"), want) {
		t.Error("the image is not the snapshot")
	}
	closed(t, svc)
	checkClean(t, dir, "vm.qcow2")
}

// TestSnapshotsUnderReaders deletes and reverts while snapshots are read, and others
// take their blocks: who reads one gets what it has, or an error. Of the image, each
// block is one that it had.
func TestSnapshotsUnderReaders(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "4M")
	svc := start(t, service.Options{Dir: dir})
	h := acquireWritable(t, svc, "vm.qcow2")
	defer h.Release()
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var reads, lost atomic.Int64
	const size = 4 << 20
	for n := range 12 {
		seed := byte(n + 1)
		put(t, h, bytes.Repeat([]byte{seed}, size), 0)
		name := fmt.Sprint("s", n)
		takeSnapshot(t, svc, "vm.qcow2", name)
		s := acquireSnapshot(t, svc, "vm.qcow2", name)
		work.Go(func() {
			defer s.Release()
			p := make([]byte, size)
			for ctx.Err() == nil {
				err := readStream(ctx, s, p)
				switch {
				case errors.Is(err, storage.ErrNotFound):
					lost.Add(1)
					return
				case err != nil && ctx.Err() == nil:
					t.Errorf("%s: %v", name, err)
					return
				case err == nil && bytes.Count(p, []byte{seed}) != size:
					t.Errorf("%s has what it never had", name)
					return
				}
				reads.Add(1)
			}
		})
		if n >= 2 {
			old := fmt.Sprint("s", n-2)
			if n%3 == 0 {
				revert(t, svc, "vm.qcow2", old)
			}
			if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", old, nil); err != nil {
				t.Error(err)
			}
		}
	}
	stop()
	work.Wait()
	if reads.Load() == 0 || lost.Load() == 0 {
		t.Errorf("%d reads, %d readers lost what they read", reads.Load(), lost.Load())
	}
}

// readStream reads all of a snapshot, as it is sent, or here and there.
func readStream(ctx context.Context, s *service.SnapshotHandle, p []byte) error {
	if rand.IntN(2) == 0 {
		return s.Device().ReadAt(ctx, p, 0)
	}
	stream, err := s.Device().Stream(ctx, 0, int64(len(p)))
	if err != nil {
		return err
	}
	defer stream.Close()
	for len(p) > 0 {
		piece, err := stream.Next()
		if err != nil {
			return err
		}
		if piece.File != nil {
			return errors.New("a range of a file that is written to is handed out")
		}
		p = p[copy(p, piece.Data):]
	}
	return nil
}

// TestRevertsUnderReaders reverts to and fro between two sizes, while others write
// what neither has: who reads a block gets one of both, or that it is beyond the end.
func TestRevertsUnderReaders(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "vm.qcow2", "512k")
	svc := start(t, service.Options{Dir: dir})
	h := acquireWritable(t, svc, "vm.qcow2")
	defer h.Release()
	const small, large, part = 512 << 10, 8 << 20, 128 << 10
	put(t, h, bytes.Repeat([]byte{1}, small), 0)
	takeSnapshot(t, svc, "vm.qcow2", "small")
	if err := svc.Resize(t.Context(), "vm.qcow2", large, false, nil); err != nil {
		t.Fatal(err)
	}
	put(t, h, bytes.Repeat([]byte{2}, large), 0)
	takeSnapshot(t, svc, "vm.qcow2", "large")
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var found [3]atomic.Int64
	for range 3 {
		work.Go(func() {
			p := make([]byte, 512)
			for ctx.Err() == nil {
				off := rand.Int64N(large-part) / 512 * 512
				if rand.IntN(4) == 0 {
					off %= small - part
				}
				if off >= small-part && off < small { // written to below
					continue
				}
				err := h.Device().ReadAt(ctx, p, off)
				switch {
				case errors.Is(err, storage.ErrOutOfRange) && off >= small:
					found[0].Add(1)
				case err != nil && ctx.Err() == nil:
					t.Errorf("at %d: %v", off, err)
					return
				case err == nil && bytes.Count(p, p[:1]) != len(p), err == nil && (p[0] != 2 && (p[0] != 1 || off >= small)):
					t.Errorf("at %d there are %v", off, p[:8])
					return
				case err == nil:
					found[p[0]].Add(1)
				}
			}
		})
	}
	for n := range 30 {
		revert(t, svc, "vm.qcow2", []string{"small", "large"}[n%2])
		// Into blocks that were freed, past the end of what is read.
		off := h.Device().Size() - part
		put(t, h, bytes.Repeat([]byte{byte(n)}, part), off)
	}
	stop()
	work.Wait()
	for what := range found {
		if found[what].Load() == 0 {
			t.Errorf("no read has found %d", what)
		}
	}
}
