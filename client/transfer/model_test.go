package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/client/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// errBroken is a fault that ends a copy.
var errBroken = errors.New("broken")

// chance decides on faults. Safe for concurrent use.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newChance(seed uint64) *chance { return &chance{r: rand.New(rand.NewPCG(seed, 1))} }

// one reports true once in n times; never for 0.
func (c *chance) one(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return n > 0 && c.r.IntN(n) == 0
}

// content is bytes with zeros in places, and extents that say so of some of them.
func content(r *rand.Rand, size int) ([]byte, []transfer.Extent) {
	data := make([]byte, size)
	var extents []transfer.Extent
	for at := 0; at < size; {
		n := min(1+r.IntN(1<<(1+r.IntN(22))), size-at)
		zero := r.IntN(2) == 0
		if !zero && r.IntN(4) > 0 { // else zeros that nobody knows of
			for i := range data[at : at+n] {
				data[at+i] = byte(r.Uint32() >> 8)
			}
		}
		extents = append(extents, transfer.Extent{Offset: int64(at), Length: int64(n), Zero: zero})
		at += n
	}
	return data, extents
}

// A source is bytes.
type source struct {
	data    []byte
	extents []transfer.Extent
	limits  transfer.Limits
	chance  *chance
	faults  int // one read in how many fails; 0: none
	changed error

	mu    sync.Mutex
	reads map[int64]int // bytes read by block
}

func (s *source) Size() int64             { return int64(len(s.data)) }
func (s *source) Limits() transfer.Limits { return s.limits }

func (s *source) Extents(_ context.Context, off, n int64) iter.Seq2[transfer.Extent, error] {
	return func(yield func(transfer.Extent, error) bool) {
		for _, e := range s.extents {
			lo, hi := max(e.Offset, off), min(e.Offset+e.Length, off+n)
			if lo >= hi {
				continue
			}
			if s.chance.one(50 * s.faults) {
				yield(transfer.Extent{}, errBroken)
				return
			}
			if !yield(transfer.Extent{Offset: lo, Length: hi - lo, Zero: e.Zero}, nil) {
				return
			}
		}
	}
}

func (s *source) ReadAt(_ context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if m := s.limits.Minimum; m > 1 && (off%m != 0 || end%m != 0 && end != s.Size()) {
		return fmt.Errorf("misaligned: %d bytes at %d", len(p), off)
	}
	if end > s.Size() {
		return fmt.Errorf("beyond the end: %d bytes at %d", len(p), off)
	}
	if s.chance.one(s.faults) {
		return errBroken
	}
	copy(p, s.data[off:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads == nil {
		s.reads = make(map[int64]int)
	}
	s.reads[off/mib] += len(p)
	return nil
}

func (s *source) Unchanged(context.Context) error { return s.changed }

// A target is bytes, of which those that were not flushed may get lost.
type target struct {
	limits transfer.Limits
	chance *chance
	faults int   // one change in how many fails
	losses int   // before one flush in how many what was written is lost
	inside int64 // where garbage may be found after a loss

	mu      sync.Mutex
	now     []byte
	durable []byte
	lost    bool
	written map[int64]bool // blocks, since the last flush
	zeroed  int64
	flushes int
	misused error
}

func newTarget(size int, fill byte, c *chance) *target {
	t := &target{chance: c, now: bytes.Repeat([]byte{fill}, size), written: make(map[int64]bool)}
	t.durable = bytes.Clone(t.now)
	return t
}

func (t *target) Size() int64             { return int64(len(t.now)) }
func (t *target) Limits() transfer.Limits { return t.limits }

func (t *target) ReadAt(_ context.Context, p []byte, off int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(p, t.now[off:])
	return nil
}

func (t *target) WriteAt(_ context.Context, p []byte, off int64) error {
	return t.change(off, int64(len(p)), func(dst []byte) { copy(dst, p) })
}

func (t *target) Zero(_ context.Context, off, n int64) error {
	return t.change(off, n, func(dst []byte) {
		t.zeroed += n
		clear(dst)
	})
}

func (t *target) change(off, n int64, do func(dst []byte)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	end := off + n
	if m := t.limits.Minimum; n <= 0 || end > t.Size() || m > 1 && (off%m != 0 || end%m != 0 && end != t.Size()) {
		t.misused = fmt.Errorf("a change of %d bytes at %d", n, off)
		return t.misused
	}
	if t.chance.one(t.faults) {
		if t.chance.one(2) {
			return errBroken
		}
		t.lose()
		return fmt.Errorf("change: %w", transfer.ErrLost)
	}
	do(t.now[off:end])
	for b := off / mib; b*mib < end; b++ {
		t.written[b] = true
	}
	return nil
}

// lose takes back some of what was not flushed. The mutex is held.
func (t *target) lose() {
	t.lost = t.lost || len(t.written) > 0
	for b := range t.written {
		lo, hi := b*mib, min(b*mib+mib, t.Size())
		if t.chance.one(2) {
			copy(t.now[lo:hi], t.durable[lo:hi])
		} else if t.chance.one(2) && lo+5000 <= t.inside { // or anything
			copy(t.now[lo:hi], bytes.Repeat([]byte{0xdd}, 5000))
		}
	}
}

func (t *target) Flush(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flushes++
	if t.chance.one(t.losses) {
		t.lose()
	}
	lost := t.lost
	t.lost = false
	clear(t.written)
	copy(t.durable, t.now)
	if lost {
		return fmt.Errorf("flush: %w", transfer.ErrLost)
	}
	return nil
}

// crash is the end of everything that was not flushed.
func (t *target) crash() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lose()
	t.lost = false
	clear(t.written)
	copy(t.durable, t.now)
}

// sum computes the checksum as it is documented.
func sum(data []byte) string {
	all := sha256.New()
	for len(data) > 0 {
		n := min(mib, len(data))
		d := sha256.Sum256(data[:n])
		all.Write(d[:])
		data = data[n:]
	}
	return fmt.Sprintf("sha256-1MiB:%x", all.Sum(nil))
}
