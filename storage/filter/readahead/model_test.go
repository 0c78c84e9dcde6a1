package readahead_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/readahead"
	"github.com/extentd/extentd/storage/storagetest"
)

var errFault = errors.New("fault")

func counters(f *readahead.Filter) map[string]int64 {
	all := map[string]int64{}
	for _, c := range f.Counters() {
		all[c.Name] = c.Value
	}
	return all
}

// A model reads a filter in several places and changes it at random.
type model struct {
	random  *rand.Rand
	f       *readahead.Filter
	next    *storagetest.MemFile
	unit    int64
	cursors [20]int64 // more than the filter tells apart
}

// TestModel reads on in many places, and changes what lies there, over a node
// that fails now and then: what is read is what the node has.
func TestModel(t *testing.T) {
	for _, unit := range []int64{1, 512} {
		seed := rand.Uint64()
		t.Logf("changes of seed %d", seed)
		m := &model{random: rand.New(rand.NewPCG(seed, 0)), unit: unit}
		var failing atomic.Bool
		m.next = storagetest.NewMemFileWith(storagetest.MemOptions{
			Size: 500<<10 + 100, Limits: storage.Limits{Minimum: unit, MaxData: 96 << 10},
			Hook: func(_ context.Context, op *storagetest.Op) error {
				if op.Kind == storagetest.OpSize || op.Kind == storagetest.OpLimit || !failing.Load() || rand.IntN(4) > 0 {
					return nil
				}
				if op.Kind == storagetest.OpRead || op.Kind == storagetest.OpWrite {
					op.Length /= 2
				}
				return errFault
			},
		})
		m.f = over(t, m.next, 128<<10)
		for range 800 {
			failing.Store(m.random.IntN(8) == 0)
			if m.random.IntN(10) == 0 {
				if err := m.change(t.Context()); err != nil && !errors.Is(err, errFault) {
					t.Fatal(err)
				}
			}
			m.read(t, failing.Load())
		}
		c := counters(m.f)
		if c["used"] == 0 || c["wasted"] == 0 || c["prefetched"] < c["used"] {
			t.Errorf("%v", c)
		}
	}
}

func (m *model) change(ctx context.Context) error {
	at := m.cursors[m.random.IntN(len(m.cursors))] + m.random.Int64N(128<<10) - 32<<10
	off := max(0, at) / m.unit * m.unit
	n := m.random.Int64N(20<<10) / m.unit * m.unit
	switch m.random.IntN(6) {
	case 0, 1, 2:
		_, err := m.f.WriteAt(ctx, bytes.Repeat([]byte{byte(m.random.IntN(256))}, int(n)), off)
		return err
	case 3:
		return m.f.Zero(ctx, off, n, m.random.IntN(2) == 0)
	case 4:
		return m.f.Trim(ctx, off, n)
	default:
		return m.f.Truncate(ctx, 400<<10+m.random.Int64N(200<<10)/m.unit*m.unit)
	}
}

// read reads on at a cursor.
func (m *model) read(t *testing.T, mayFail bool) {
	t.Helper()
	want := m.next.Bytes()
	at := &m.cursors[m.random.IntN(m.random.IntN(len(m.cursors))+1)]
	size := int64(len(want))
	if m.random.IntN(20) == 0 || *at >= size {
		*at = m.random.Int64N(size) / m.unit * m.unit
	}
	off, p := *at, make([]byte, m.unit+m.random.Int64N(60<<10)/m.unit*m.unit)
	n, err := m.f.ReadAt(t.Context(), p, off)
	if !bytes.Equal(p[:n], want[off:off+int64(n)]) {
		t.Fatalf("%d bytes at %d are wrong", len(p), off)
	}
	*at += int64(len(p))
	if mayFail && errors.Is(err, errFault) {
		return
	}
	left := min(int64(len(p)), size-off)
	if int64(n) != left || err != nil && !ended(err) || n < len(p) && !ended(err) {
		t.Fatalf("ReadAt(%d bytes, %d) of %d = %d, %v", len(p), off, size, n, err)
	}
}

// jitter gives others a turn.
func jitter() storagetest.Hook {
	return func(context.Context, *storagetest.Op) error {
		time.Sleep(time.Duration(rand.Int64N(200)) * time.Microsecond)
		return nil
	}
}

// TestConcurrentModel has writers, each with a stripe, and sequential readers of
// all: who reads after a write has returned sees it.
func TestConcurrentModel(t *testing.T) {
	const workers, stripe, steps, piece = 4, 16 << 10, 150, 4 << 10
	next := storagetest.NewMemFileWith(storagetest.MemOptions{Size: workers * stripe, Hook: jitter()})
	f := over(t, next, 64<<10)
	var done, begun [workers]atomic.Int64
	var finished atomic.Int64
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			defer finished.Add(1)
			for v := range int64(steps) {
				begun[k].Store(v)
				p := bytes.Repeat([]byte{byte(v)}, stripe)
				if _, err := f.WriteAt(t.Context(), p, int64(k*stripe)); err != nil {
					t.Error(err)
				}
				done[k].Store(v)
				time.Sleep(time.Duration(rand.Int64N(3000)) * time.Microsecond) // what is stale would be seen
			}
		})
		wg.Go(func() {
			p := make([]byte, piece)
			for i := 0; finished.Load() < workers; i = (i + 1) % (workers * stripe / piece) {
				k := i * piece / stripe
				least := done[k].Load()
				_, err := f.ReadAt(t.Context(), p, int64(i*piece))
				most := begun[k].Load()
				for at, b := range p { // the node may show a part of a write
					if age := int64(byte(most) - b); err != nil && !ended(err) || age > most-least {
						t.Errorf("byte %d of piece %d is of %d versions ago, at most %d; %v", at, i, age, most-least, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if c := counters(f); c["used"] == 0 {
		t.Errorf("%v", c)
	}
}
