package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/storagetest"
)

// A cluster that is packed where an earlier one of the same range was packed is
// not taken for it.
func TestPackedAgainInTheSamePlace(t *testing.T) {
	const size = 1024
	d := clusterDevice(t, clusterOptions{size: size, cluster: size, sub: size, pack: true, seed: 5})
	for i := range 500 {
		want := bytes.Repeat([]byte{byte(1 + i%250)}, size)
		must(t, d.Zero(t.Context(), 0, size, false)) // else it is overwritten in place
		must(t, d.WriteAt(t.Context(), want, 0))
		got := make([]byte, 100)
		must(t, d.ReadAt(t.Context(), got, 3))
		if !bytes.Equal(got, want[:100]) {
			t.Fatalf("round %d reads %d", i, got[0])
		}
	}
}

// connFile is a file that may be sent from.
type connFile struct{ *storagetest.MemFile }

func (connFile) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

// While nothing is writable a stream hands out ranges of files, pinned until the
// next call; after that it hands out bytes, of what is there by then.
func TestUpgradeDuringStream(t *testing.T) {
	const size = 40 << 20
	m := newClusterMapper(clusterOptions{size: size, cluster: 64 << 10, sub: 64 << 10})
	m.node = storage.NewNode("clusters", connFile{m.file}, storage.NodeOptions{})
	writer, err := block.New([]storage.Mapper{m}, block.Options{})
	must(t, err)
	must(t, writer.StartWriting(t.Context()))
	must(t, writer.WriteAt(t.Context(), bytes.Repeat([]byte{1}, size), 0))

	d, err := block.New([]storage.Mapper{m}, block.Options{})
	must(t, err)
	s, err := d.Stream(t.Context(), 0, size)
	must(t, err)
	first, err := s.Next()
	if err != nil || first.File != nil || m.pinned() != 0 {
		t.Fatalf("the first piece: %v, a file %v, %d pinned", err, first.File != nil, m.pinned())
	}
	sent, err := s.Next()
	if err != nil || sent.File == nil || m.pinned() != 1 {
		t.Fatalf("the second piece: %v, a file %v, %d pinned", err, sent.File != nil, m.pinned())
	}
	must(t, d.StartWriting(t.Context()))
	off := int64(len(first.Data)) + sent.Length
	must(t, d.Trim(t.Context(), 0, size))
	must(t, d.WriteAt(t.Context(), bytes.Repeat([]byte{2}, size-1<<20), 1<<20)) // elsewhere: the old clusters are pinned
	at := make([]byte, sent.Length)
	if _, err := sent.File.(connFile).ReadAt(t.Context(), at, sent.Offset); err != nil || !bytes.Equal(at, bytes.Repeat([]byte{1}, len(at))) {
		t.Error("what a piece names changes while it is being sent")
	}
	rest, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(rest, bytes.Repeat([]byte{2}, int(size-off))) {
		t.Errorf("after the upgrade: %v, %d bytes", err, len(rest))
	}
	if m.pinned() != 0 {
		t.Errorf("%d epochs are pinned", m.pinned())
	}
	must(t, s.Close())
	s, err = d.Stream(t.Context(), 0, size)
	must(t, err)
	defer s.Close()
	for {
		p, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if p.File != nil || m.pinned() != 0 {
			t.Fatal("a range of a file, or a pin, although the device is writable")
		}
	}
}

// Every mutation is announced before and after, with whether the map changes.
func TestChangesAreAnnounced(t *testing.T) {
	var told []bool
	var fail atomic.Bool
	m := newClusterMapper(clusterOptions{size: 64 << 10, cluster: 4096, sub: 4096, fail: func(op string) error {
		if op == "write" && fail.Load() {
			return io.ErrClosedPipe
		}
		return nil
	}})
	d, err := block.New([]storage.Mapper{m}, block.Options{Changing: func(mapping bool) { told = append(told, mapping) }})
	must(t, err)
	ctx := t.Context()
	must(t, d.StartWriting(ctx))
	var b storage.Blocks
	for _, step := range []struct {
		name string
		do   func() error
		want []bool
	}{
		{"nothing", func() error { return d.WriteAt(ctx, nil, 5) }, nil},
		{"allocating write", func() error { return d.WriteAt(ctx, []byte{1}, 0) }, []bool{true, true}},
		{"write in place", func() error { return d.WriteAt(ctx, []byte{1}, 0) }, []bool{false, false}},
		{"both", func() error { return d.WriteAt(ctx, make([]byte, 8192), 0) }, []bool{true, true}},
		{"zero of what is", func() error { return d.Zero(ctx, 8192, 8192, false) }, nil},
		{"zero", func() error { return d.Zero(ctx, 0, 4096, true) }, []bool{true, true}},
		{"trim", func() error { return d.Trim(ctx, 0, 64<<10) }, []bool{true, true}},
		{"trim of what is", func() error { return d.Trim(ctx, 0, 64<<10) }, nil},
		{"resize", func() error { return d.Resize(ctx, 128<<10, false) }, []bool{true, true}},
		{"resize to what is", func() error { return d.Resize(ctx, 128<<10, false) }, nil},
		{"reservation", func() (err error) { b, err = d.Alloc(ctx, 1, storage.AllocOptions{}); return err }, nil},
		{"update", func() error {
			return d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset})
		}, []bool{true, true}},
		{"flush", func() error { return d.Flush(ctx) }, nil},
		{"failed write", func() error {
			fail.Store(true)
			defer fail.Store(false)
			if err := d.WriteAt(ctx, []byte{1}, 0); !errors.Is(err, io.ErrClosedPipe) {
				return fmt.Errorf("it gave %w", err)
			}
			return nil
		}, []bool{false, false}},
		{"failed allocating write", func() error {
			fail.Store(true)
			defer fail.Store(false)
			if err := d.WriteAt(ctx, []byte{1}, 4096); !errors.Is(err, io.ErrClosedPipe) {
				return fmt.Errorf("it gave %w", err)
			}
			return nil
		}, []bool{true, true}},
	} {
		told = nil
		must(t, step.do())
		if diff := cmp.Diff(step.want, told); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}

// A map that looks through to the file changes with what is written in place.
func TestChangesOfMapsThatLookThrough(t *testing.T) {
	var told []bool
	m := newClusterMapper(clusterOptions{size: 64 << 10, cluster: 4096, sub: 4096})
	d, err := block.New([]storage.Mapper{looksPreallocated{m}}, block.Options{Changing: func(mapping bool) { told = append(told, mapping) }})
	must(t, err)
	ctx := t.Context()
	must(t, d.StartWriting(ctx))
	must(t, d.WriteAt(ctx, make([]byte, 8192), 0))
	m.file.Punch(0, 1<<20) // the clusters have no storage
	holes := func() (holes int64) {
		for mp, err := range d.Walk(ctx, 0, d.Size(), block.WalkOptions{}) {
			must(t, err)
			if mp.Status == storage.Local|storage.Zero|storage.OffsetValid {
				holes += mp.Length
			}
		}
		return holes
	}
	if n := holes(); n != 8192 {
		t.Errorf("%d bytes are over holes", n)
	}
	told = nil
	must(t, d.WriteAt(ctx, []byte{1}, 5000))
	if n := holes(); n != 4096 {
		t.Errorf("after a write %d bytes are over holes", n)
	}
	if diff := cmp.Diff([]bool{true, true}, told); diff != "" {
		t.Error(diff)
	}
	if m.pinned() != 0 {
		t.Error("a walk leaves a pin")
	}
}

type looksPreallocated struct{ *clusterMapper }

func (looksPreallocated) LooksPreallocated(context.Context) (bool, error) { return true, nil }
