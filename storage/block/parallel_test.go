package block_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// sector is what the parallel tests stamp.
const sector = 256

// stamp fills p, whole sectors from off on, with where they belong and a value.
func stamp(p []byte, off int64, value uint64) {
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64((off+int64(i))/sector)+1)
		binary.LittleEndian.PutUint64(p[i+8:], value)
	}
}

// checkStamps reports a sector that is neither zeros nor wholly one that was
// written there.
func checkStamps(p []byte, off int64) error {
	for ; len(p) > 0; p, off = p[sector:], off+sector {
		first := p[:16]
		if !bytes.Equal(p[:sector], bytes.Repeat(first, sector/16)) {
			return fmt.Errorf("sector at %d is torn", off)
		}
		if at := binary.LittleEndian.Uint64(first); at != 0 && at != uint64(off/sector)+1 {
			return fmt.Errorf("sector at %d reads as that at %d (%#x)", off, int64(at-1)*sector, at)
		}
		if first[0]|first[1] == 0 && binary.LittleEndian.Uint64(first[8:]) != 0 {
			return fmt.Errorf("sector at %d is half zeros", off)
		}
	}
	return nil
}

func parallelDevice(t *testing.T, opt clusterOptions, below ...storage.Mapper) (*block.Device, *clusterMapper) {
	opt.seed = rand.Uint64()
	t.Logf("seed %d", opt.seed)
	m := newClusterMapper(opt)
	d, err := block.New(append([]storage.Mapper{m}, below...), block.Options{Check: true, UnpackedCache: 8 * opt.cluster})
	must(t, err)
	must(t, d.StartWriting(t.Context()))
	return d, m
}

// Sectors of one cluster are written by as many goroutines, each its own: none
// of them is lost, whatever is allocated at the same time.
func TestOverlappingAllocatingWrites(t *testing.T) {
	for _, opt := range []clusterOptions{
		{cluster: 2048, sub: 2048, short: true},
		{cluster: 2048, sub: 512, pack: true},
		{cluster: 8192, sub: sector, noZero: true},
	} {
		t.Run(fmt.Sprintf("%d of %d", opt.sub, opt.cluster), func(t *testing.T) {
			const goroutines = 8
			opt.size = 16 << 10
			d, m := parallelDevice(t, opt, randomStamps(opt.size))
			var wg sync.WaitGroup
			for g := range int64(goroutines) {
				wg.Go(func() { ownSectors(t, d, g, goroutines) })
			}
			wg.Wait()
			if m.leaks() > 0 || m.pinned() > 0 {
				t.Errorf("%d clusters reserved, %d epochs pinned", m.leaks(), m.pinned())
			}
		})
	}
}

// randomStamps is a layer of sectors with stamps.
func randomStamps(size int64) *tableMapper {
	data := make([]byte, size)
	stamp(data, 0, 1)
	return uniform(data, 0)
}

// ownSectors writes every so many'th sector, and always reads there what it wrote.
func ownSectors(t *testing.T, d *block.Device, mine, of int64) {
	ctx := t.Context()
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	want := map[int64][]byte{}
	got := make([]byte, sector)
	verify := func(off int64) {
		if err := d.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, want[off]) {
			t.Errorf("sector at %d: %v, and holds %x, not %x", off, err, got[:16], want[off][:16])
		}
	}
	for i := range uint64(1500) {
		off := (r.Int64N(d.Size()/sector/of)*of + mine) * sector
		p := make([]byte, sector)
		var err error
		switch r.IntN(4) {
		case 0:
			err = d.Zero(ctx, off, sector, r.IntN(2) == 0)
		default:
			stamp(p, off, i+2)
			err = d.WriteAt(ctx, p, off)
		}
		if err != nil {
			t.Error(err)
			return
		}
		want[off] = p
		verify(off)
		if t.Failed() {
			return
		}
	}
	for off := range want {
		verify(off)
	}
}

// Readers, of every kind, see in each sector something that was written there,
// while it is overwritten, trimmed, claimed, cut off and packed.
func TestReadersDuringChanges(t *testing.T) {
	for name, opt := range map[string]clusterOptions{
		"clusters":    {cluster: 1024, sub: 1024, short: true},
		"packed":      {cluster: 1024, sub: 1024, pack: true},
		"subclusters": {cluster: 2048, sub: 512, pack: true},
	} {
		t.Run(name, func(t *testing.T) {
			opt.size = 512 << 10
			d, m := parallelDevice(t, opt, randomStamps(200<<10))
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			var wg sync.WaitGroup
			var value atomic.Uint64
			run := func(n int, f func(context.Context, *block.Device, *rand.Rand, *atomic.Uint64) error) {
				for range n {
					wg.Go(func() {
						r := rand.New(rand.NewPCG(rand.Uint64(), 0))
						for ctx.Err() == nil {
							err := f(ctx, d, r, &value)
							if err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrOutOfRange) && !errors.Is(err, storage.ErrConflict) {
								t.Error(err)
								return
							}
						}
					})
				}
			}
			run(3, stampSome)
			run(1, clearSome)
			run(1, claimSome)
			run(1, resizeSome)
			run(2, readSome)
			run(2, streamSome)
			run(1, walkSome)
			wg.Wait()
			if m.leaks() > 0 || m.pinned() > 0 {
				t.Errorf("%d clusters reserved, %d epochs pinned", m.leaks(), m.pinned())
			}
			t.Logf("%d writes", value.Load())
		})
	}
}

// someRange is whole sectors.
func someRange(d *block.Device, r *rand.Rand, most int64) (off, n int64) {
	sectors := max(d.Size()/sector, 1)
	off = r.Int64N(sectors)
	n = 1 + r.Int64N(min(sectors-off, most/sector))
	return off * sector, n * sector
}

func stampSome(ctx context.Context, d *block.Device, r *rand.Rand, value *atomic.Uint64) error {
	off, n := someRange(d, r, 16<<10)
	p := make([]byte, n)
	stamp(p, off, value.Add(1)+1)
	return d.WriteAt(ctx, p, off)
}

func clearSome(ctx context.Context, d *block.Device, r *rand.Rand, _ *atomic.Uint64) error {
	off, n := someRange(d, r, 64<<10)
	if r.IntN(2) == 0 {
		return d.Trim(ctx, off, n)
	}
	return d.Zero(ctx, off, n, r.IntN(2) == 0)
}

func claimSome(ctx context.Context, d *block.Device, r *rand.Rand, value *atomic.Uint64) error {
	unit := d.Units().Alloc
	off, n := someRange(d, r, 16<<10)
	off, n = off-off%unit, (n+unit-1)/unit*unit
	if off+n > d.Size() {
		return nil
	}
	p := make([]byte, n)
	stamp(p, off, value.Add(1)+1)
	if err := d.WriteAt(ctx, p, off); err != nil {
		return err
	}
	if err := d.Zero(ctx, off, n, true); err != nil {
		return err
	}
	c, err := d.Claim(ctx, off, n)
	if err != nil {
		return err
	}
	defer c.Release()
	for _, b := range c.Blocks() {
		p = make([]byte, b.Length)
		stamp(p, b.Offset, value.Add(1)+1)
		if err := d.FillBlocks(ctx, b.Blocks, p, 0); err != nil {
			return err
		}
	}
	return c.Publish(ctx, off, n)
}

func resizeSome(ctx context.Context, d *block.Device, r *rand.Rand, _ *atomic.Uint64) error {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
	}
	return d.Resize(ctx, (100<<10)+r.Int64N(1600)*sector, true)
}

func readSome(ctx context.Context, d *block.Device, r *rand.Rand, _ *atomic.Uint64) error {
	off, n := someRange(d, r, 8<<10)
	p := make([]byte, n)
	if err := d.ReadAt(ctx, p, off); err != nil {
		return err
	}
	return checkStamps(p, off)
}

func streamSome(ctx context.Context, d *block.Device, _ *rand.Rand, _ *atomic.Uint64) error {
	s, err := d.Stream(ctx, 0, d.Size()/sector*sector)
	if err != nil {
		return err
	}
	defer s.Close()
	p, err := io.ReadAll(s)
	if len(p)%sector != 0 {
		return fmt.Errorf("a stream of %d bytes ends with %w", len(p), err)
	}
	return errors.Join(checkStamps(p, 0), err)
}

func walkSome(ctx context.Context, d *block.Device, _ *rand.Rand, _ *atomic.Uint64) error {
	for _, err := range d.Walk(ctx, 0, d.Size(), block.WalkOptions{}) {
		if err != nil {
			return err
		}
	}
	return nil
}
