package block_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// A purse is a memory with so many bytes to spare, and room for one that takes.
type purse struct {
	spare  atomic.Int64
	turn   chan struct{}
	takers atomic.Int64 // that have taken and not given
	taken  atomic.Int64 // how often
}

func newPurse(spare int64) *purse {
	p := &purse{turn: make(chan struct{}, 1)}
	p.spare.Store(spare)
	return p
}

func (p *purse) Take(ctx context.Context, _ int64) error {
	select {
	case p.turn <- struct{}{}:
		p.takers.Add(1)
		p.taken.Add(1)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *purse) Give(int64) {
	p.takers.Add(-1)
	<-p.turn
}

func (p *purse) Spare(n int64) bool {
	if p.spare.Add(-n) < 0 {
		p.spare.Add(n)
		return false
	}
	return true
}

func (p *purse) Put(n int64) { p.spare.Add(n) }

// A stream says the same whatever memory it gets, and gives back what it got, also
// when it is closed before its end.
func TestStreamWithin(t *testing.T) {
	data := make([]byte, 700*unitSize)
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(data)
	layers := map[string][]storage.Mapper{
		"plain":       {uniform(data, 0)},
		"compressed":  {uniform(data, storage.Compressed)},
		"alternating": {alternating(data, 0), uniform(data, storage.Compressed)},
	}
	for name, layers := range layers {
		whole := make([]byte, len(data))
		if err := newDevice(t, layers).ReadAt(t.Context(), whole, 0); err != nil {
			t.Fatal(err)
		}
		for _, spare := range []int64{0, 200 << 10, 1 << 20, 3 << 20, 1 << 30} {
			d := newDevice(t, layers)
			p := newPurse(spare)
			for _, end := range []int64{d.Size(), d.Size() / 3} {
				s, err := d.StreamWithin(t.Context(), 3, d.Size()-3, p)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(io.LimitReader(s, end))
				if want := whole[3:min(3+end, d.Size())]; err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s with %d to spare: %d bytes of %d, %v", name, spare, len(got), len(want), err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if left := p.spare.Load(); left != spare {
					t.Errorf("%s with %d to spare: %d are left", name, spare, left)
				}
			}
		}
	}
}

// Units are unpacked by as many as there is memory for; what is kept is not.
func TestUnpackingWithin(t *testing.T) {
	data := bytes.Repeat([]byte{9}, 64*unitSize)
	p := newPurse(0)
	d, err := block.New([]storage.Mapper{uniform(data, storage.Compressed)}, block.Options{Unpacking: p, UnpackedCache: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for i := range int64(64) {
		readers.Go(func() {
			if err := d.ReadAt(t.Context(), make([]byte, 16), i*unitSize+1); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if n := p.taken.Load(); n != 64 || p.takers.Load() != 0 {
		t.Errorf("memory was taken %d times, and %d have it still", n, p.takers.Load())
	}
	if err := p.Take(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(t.Context(), make([]byte, 16), 1); err != nil { // it is in the cache
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.ReadAt(ctx, make([]byte, unitSize), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a whole unit, of which nothing is kept: %v", err)
	}
	p.Give(1)
}
