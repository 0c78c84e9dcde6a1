package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/raw"
)

// qemuImg runs qemu-img, and fails the test where it fails.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Fatal("qemu-img is missing: apt-get install qemu-utils")
	}
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// A qcow is an image made by qemu-img, and what it must read as.
type qcow struct {
	path   string
	backed bool
	bytes  []byte
	d      *block.Device
	close  []func() error
}

func (q *qcow) node(t *testing.T, path string, write bool) *storage.Node {
	f, err := file.Open(t.Context(), path, file.Options{})
	must(t, err)
	if write {
		must(t, f.StartWriting(t.Context()))
	}
	q.close = append(q.close, f.Close)
	return storage.NewNode(filepath.Base(path), f, storage.NodeOptions{Check: true})
}

func (q *qcow) open(t *testing.T) {
	ctx := t.Context()
	image, err := qcow2.Open(ctx, q.node(t, q.path, true), qcow2.Options{OpenData: func(context.Context, string) (*storage.Node, error) {
		return q.node(t, q.path+".data", true), nil
	}})
	must(t, err)
	q.close = append(q.close, image.Close)
	layers := []storage.Mapper{image}
	if q.backed {
		below, err := raw.New(ctx, q.node(t, q.path+".back", false))
		must(t, err)
		layers = append(layers, below)
	}
	q.d, err = block.New(layers, block.Options{Check: true, UnpackedCache: 1 << 20})
	must(t, err)
	must(t, image.StartWriting(ctx))
	must(t, q.d.StartWriting(ctx))
}

func (q *qcow) shut(t *testing.T) {
	for i := len(q.close) - 1; i >= 0; i-- {
		must(t, q.close[i]())
	}
	q.close = nil
}

// verify shows the closed image to QEMU.
func (q *qcow) verify(t *testing.T) {
	t.Helper()
	qemuImg(t, "check", "-q", q.path)
	want := q.path + ".want"
	must(t, os.WriteFile(want, q.bytes, 0o600))
	qemuImg(t, "compare", "-q", "-f", "qcow2", "-F", "raw", q.path, want)
}

// makeQcow makes an image of 3 MiB, over a backing of 2 MiB if so.
func makeQcow(t *testing.T, options string, backed bool) *qcow {
	const size = 3 << 20
	q := &qcow{path: filepath.Join(t.TempDir(), "disk.qcow2"), backed: backed, bytes: make([]byte, size)}
	args := []string{"create", "-q", "-f", "qcow2", "-o", options}
	if options == "data_file" {
		args[5] = "data_file=" + q.path + ".data"
	}
	if backed {
		fillRandom(q.bytes[:2<<20], 1)
		must(t, os.WriteFile(q.path+".back", q.bytes[:2<<20], 0o600))
		args = append(args, "-b", q.path+".back", "-F", "raw")
	}
	qemuImg(t, append(args, q.path, fmt.Sprint(size))...)
	return q
}

var qcowKinds = map[string]struct {
	options string
	backed  bool
}{
	"default":          {"cluster_size=64k", false},
	"backed":           {"cluster_size=4k", true},
	"small clusters":   {"cluster_size=512", true},
	"subclusters":      {"cluster_size=16k,extended_l2=on", true},
	"version 2":        {"cluster_size=4k,compat=0.10", false},
	"version 2 backed": {"cluster_size=4k,compat=0.10", true},
	"lazy refcounts":   {"cluster_size=4k,lazy_refcounts=on", false},
	"data file":        {"data_file", false},
	"preallocated":     {"cluster_size=16k,preallocation=metadata", false},
}

// After random changes of every kind, through several openings, with snapshots
// by QEMU in between, QEMU finds the image clean and with the model's content.
func TestQCOW2AgreesWithModel(t *testing.T) {
	for name, kind := range qcowKinds {
		t.Run(name, func(t *testing.T) {
			q := makeQcow(t, kind.options, kind.backed)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			for round := range 4 {
				q.open(t)
				for range 60 {
					q.mutate(t, r)
				}
				got := make([]byte, len(q.bytes))
				must(t, q.d.ReadAt(t.Context(), got, 0))
				if !bytes.Equal(got, q.bytes) {
					t.Fatal("it does not read as the model")
				}
				q.shut(t)
				q.verify(t)
				if name != "data file" {
					qemuImg(t, "snapshot", "-c", fmt.Sprint(round), q.path)
				}
			}
		})
	}
}

func (q *qcow) mutate(t *testing.T, r *rand.Rand) {
	t.Helper()
	ctx := t.Context()
	size := int64(len(q.bytes))
	off := r.Int64N(size)
	n := 1 + r.Int64N(min(size-off, []int64{100, 5000, 300 << 10}[r.IntN(3)]))
	switch r.IntN(10) {
	default:
		fillRandom(q.bytes[off:off+n], r.Uint64())
		must(t, q.d.WriteAt(ctx, q.bytes[off:off+n], off))
	case 0, 1:
		clear(q.bytes[off : off+n])
		must(t, q.d.Zero(ctx, off, n, r.IntN(2) == 0))
	case 2, 3:
		block := q.d.Units().Alloc
		lo, hi := (off+block-1)/block*block, (off+n)/block*block
		if off+n == size {
			hi = size
		}
		err := q.d.Trim(ctx, off, n)
		if errors.Is(err, storage.ErrUnsupported) && q.backed {
			return
		}
		must(t, err)
		if lo < hi {
			clear(q.bytes[lo:hi])
		}
	case 4:
		must(t, q.d.Flush(ctx))
	case 5:
		q.byHand(t, r, off, n)
	case 6:
		q.resize(t, (1+r.Int64N(8<<10))*512)
	}
}

func (q *qcow) resize(t *testing.T, size int64) {
	t.Helper()
	err := q.d.Resize(t.Context(), size, true)
	if errors.Is(err, storage.ErrUnsupported) { // version 2 with snapshots
		return
	}
	must(t, err)
	q.bytes = append(q.bytes, make([]byte, max(size-int64(len(q.bytes)), 0))...)[:size]
}

// byHand maps reserved blocks over whole ones, or publishes anchored ones.
func (q *qcow) byHand(t *testing.T, r *rand.Rand, off, n int64) {
	t.Helper()
	ctx := t.Context()
	unit := q.d.Units()
	off, n = off/unit.Alloc*unit.Alloc, (n+unit.Alloc-1)/unit.Alloc*unit.Alloc
	if unit.Fixed || off+n > int64(len(q.bytes)) {
		return
	}
	p := q.bytes[off : off+n]
	if r.IntN(2) == 0 {
		b, err := q.d.Alloc(ctx, n, storage.AllocOptions{Contiguous: true})
		must(t, err)
		fillRandom(p, r.Uint64())
		must(t, q.d.FillBlocks(ctx, b, p, 0))
		must(t, q.d.Update(ctx, off, n, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
		return
	}
	must(t, q.d.WriteAt(ctx, p, off))
	must(t, q.d.Zero(ctx, off, n, true))
	clear(p)
	c, err := q.d.Claim(ctx, off, n)
	if errors.Is(err, storage.ErrConflict) { // version 2 cannot anchor, nor can what a snapshot shares
		return
	}
	must(t, err)
	defer c.Release()
	fillRandom(p, r.Uint64())
	for _, b := range c.Blocks() {
		must(t, q.d.FillBlocks(ctx, b.Blocks, q.bytes[b.Offset:b.Offset+b.Length], 0))
	}
	must(t, c.Publish(ctx, off, n))
}

// Goroutines with sectors of their own, in clusters that they share, lose nothing.
func TestParallelQCOW2(t *testing.T) {
	for name, kind := range qcowKinds {
		t.Run(name, func(t *testing.T) {
			q := makeQcow(t, kind.options, kind.backed)
			q.open(t)
			var wg sync.WaitGroup
			for g := range int64(4) {
				wg.Go(func() { ownSectorsOf(t, q, g) })
			}
			wg.Wait()
			q.shut(t)
			q.verify(t)
		})
	}
}

// ownSectorsOf writes every fourth sector of the first 256 KiB; the model's
// bytes are each goroutine's own there.
func ownSectorsOf(t *testing.T, q *qcow, mine int64) {
	ctx := t.Context()
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	got := make([]byte, sector)
	for i := range 300 {
		off := (r.Int64N(256)*4 + mine) * sector
		p := q.bytes[off : off+sector]
		var err error
		switch i % 5 {
		case 0:
			clear(p)
			err = q.d.Zero(ctx, off, sector, i%2 == 0)
		case 4:
			err = q.d.Flush(ctx)
		default:
			fillRandom(p, r.Uint64())
			err = q.d.WriteAt(ctx, p, off)
		}
		if err == nil {
			err = q.d.ReadAt(ctx, got, off)
		}
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("sector at %d: %v, wrong bytes: %v", off, err, !bytes.Equal(got, p))
			return
		}
	}
}
