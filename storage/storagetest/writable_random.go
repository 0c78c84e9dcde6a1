package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
)

// random makes random changes, and compares with the model.
func (s *writableSuite) random(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("changes of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var held []heldBlocks
	for step := range 300 {
		s.step(t, random, &held)
		if step%20 == 19 {
			s.check(t)
		}
	}
	s.check(t)
	s.reopen(t)
	s.check(t)
}

// heldBlocks are reserved and filled, to be mapped some time.
type heldBlocks struct {
	storage.Blocks
	b byte
}

func (s *writableSuite) step(t *testing.T, random *rand.Rand, held *[]heldBlocks) {
	blocks := s.m.size() / s.block
	at := random.Int64N(blocks)
	n := 1 + random.Int64N(min(8, blocks-at))
	off := at * s.block
	switch random.IntN(12) {
	case 0, 1, 2: // any bytes
		off = random.Int64N(s.m.size())
		n = min(s.m.size()-off, 1+random.Int64N(3*s.block))
		s.fill(t, off, n, byte(1+random.IntN(255)))
	case 3:
		s.fill(t, off, n*s.block, byte(1+random.IntN(255)))
	case 4:
		s.update(t, off, n*s.block, storage.ToUnmapped)
	case 5:
		s.update(t, off, n*s.block, storage.ToZero)
	case 6:
		s.update(t, off, n*s.block, storage.ToAnchored)
	case 7:
		if err := s.image.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	case 8:
		b := heldBlocks{s.reserve(t, off, n), byte(1 + random.IntN(255))}
		if s.granule.Fixed {
			return // whoever writes there in the meantime would be overwritten
		}
		s.put(t, b.Blocks, 0, bytes.Repeat([]byte{b.b}, int(b.Length)))
		*held = append(*held, b)
	case 9:
		s.useHeld(t, random, held, at)
	case 10:
		s.randomResize(t, random)
	case 11:
		if random.IntN(4) == 0 {
			*held = nil // they leak
			s.reopen(t)
			s.startWriting(t)
		}
	}
}

// useHeld maps held blocks, or gives them back.
func (s *writableSuite) useHeld(t *testing.T, random *rand.Rand, held *[]heldBlocks, at int64) {
	if len(*held) == 0 {
		return
	}
	b := (*held)[0]
	*held = (*held)[1:]
	n := min(b.Length/s.block, s.m.size()/s.block-at) * s.block
	if random.IntN(3) == 0 {
		n = 0
	}
	if n > 0 {
		if err := s.image.Update(t.Context(), at*s.block, n, data(b.Blocks, 0)); err != nil {
			t.Fatal(err)
		}
		s.m.write(bytes.Repeat([]byte{b.b}, int(n)), at*s.block)
	}
	if n < b.Length {
		s.give(t, b.Blocks, n, b.Length-n, nil)
	}
}

func (s *writableSuite) randomResize(t *testing.T, random *rand.Rand) {
	r, ok := s.image.(storage.Resizer)
	if !ok {
		return
	}
	size := (8 + random.Int64N(2*writableSize/s.block)) * s.block
	if random.IntN(2) == 0 {
		size += 512 * random.Int64N(s.block/512)
	}
	old := s.m.size()
	if err := r.Resize(t.Context(), size, storage.ResizeOptions{Shrink: true}); err != nil {
		t.Fatal(err)
	}
	s.m.resize(size)
	if rest := s.block - old%s.block; size > old && rest < s.block { // it is the caller's to clear
		if err := Write(t.Context(), s.image, make([]byte, min(rest, size-old)), old); err != nil {
			t.Fatal(err)
		}
	}
}

// concurrent: each has blocks of its own, and all share the tables.
func (s *writableSuite) concurrent(t *testing.T) {
	const workers = 4
	stripe := s.m.size() / s.block / workers
	var wg sync.WaitGroup
	for k := range int64(workers) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(k), 1))
			for range 60 {
				if err := s.concurrentStep(t, random, k, stripe); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.check(t)
	s.reopen(t)
	s.check(t)
}

func (s *writableSuite) concurrentStep(t *testing.T, random *rand.Rand, worker, stripe int64) error {
	ctx := t.Context()
	at := random.Int64N(stripe)
	n := 1 + random.Int64N(min(4, stripe-at))
	off := (worker*stripe + at) * s.block
	p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, int(n*s.block))
	var err error
	switch op := random.IntN(7); op {
	case 0, 1, 2:
		err = s.image.Update(ctx, off, n*s.block, storage.Target{Kind: storage.ToUnmapped + storage.TargetKind(op)})
		if op == 2 && errors.Is(err, storage.ErrUnsupported) { // the format has no anchored blocks
			return nil
		}
		clear(p)
	case 3:
		err = s.image.Flush(ctx)
		copy(p, s.m.content[off:])
	case 4:
		var b storage.Blocks
		if b, err = s.image.Alloc(ctx, n*s.block, storage.AllocOptions{Guest: off}); err == nil {
			err = s.image.Free(ctx, b)
		}
		copy(p, s.m.content[off:])
	default:
		err = Write(ctx, s.image, p, off)
	}
	if err != nil {
		return err
	}
	copy(s.m.content[off:], p)
	got := make([]byte, len(p))
	if err := ReadPinned(ctx, s.image, got, off); err != nil {
		return err
	}
	return s.m.equal(got, off)
}

// concurrentReaders: they see each block wholly old or wholly new, or zeros,
// while it is mapped anew and its old blocks become others.
func (s *writableSuite) concurrentReaders(t *testing.T) {
	if s.granule.Fixed {
		return // there are no new blocks to publish
	}
	const blocks = 8
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			p := make([]byte, s.block)
			for k := int64(0); ; k = (k + 1) % blocks {
				select {
				case <-done:
					return
				default:
				}
				if err := ReadPinned(t.Context(), s.image, p, k*s.block); err != nil {
					t.Error(err)
					return
				}
				if p[0] != 0 && p[0]%blocks != byte(k) || !bytes.Equal(p[1:], p[:len(p)-1]) {
					t.Errorf("block %d is torn, or another's: it begins with %d", k, p[0])
					return
				}
			}
		})
	}
	for i := range int64(200) {
		k := i * 3 % blocks
		if err := s.replace(t, k, byte(blocks+k+i%8*blocks)); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	wg.Wait()
	s.check(t)
}

// replace gives a block new content, in a new place, and now and then makes what
// it gave up available.
func (s *writableSuite) replace(t *testing.T, k int64, b byte) error {
	p := bytes.Repeat([]byte{b}, int(s.block))
	if err := writeNew(t.Context(), s.image, p, k*s.block); err != nil {
		return fmt.Errorf("block %d: %w", k, err)
	}
	s.m.write(p, k*s.block)
	switch b % 3 {
	case 0:
		return s.image.Flush(t.Context())
	case 1:
		s.update(t, k*s.block, s.block, storage.ToZero)
	}
	return nil
}
