package rangelock

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// waiting is a request of the model: the lock's own view is in hold.
type waiting struct {
	hold *Hold
	held bool
}

// A request is held exactly when no earlier one that is still there conflicts
// with it.
func TestAgreesWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Lock
		var all []*waiting
		check := func() {
			for i, w := range all {
				want := true
				for _, e := range all[:i] {
					want = want && !e.hold.conflicts(w.hold)
				}
				select {
				case <-w.hold.granted: // nil blocks: who need not wait is held from the start
					w.held = true
				default:
				}
				if w.held != want {
					t.Fatalf("request %d of [%d, %d), exclusive %v: held %v, not %v", i, w.hold.lo, w.hold.hi, w.hold.exclusive, w.held, want)
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(all) == 0 || rapid.Bool().Draw(t, "lock") {
				lo := rapid.Int64Range(0, 20).Draw(t, "lo")
				h := l.queue(lo, lo+rapid.Int64Range(0, 8).Draw(t, "n"), rapid.Bool().Draw(t, "exclusive"))
				all = append(all, &waiting{hold: h, held: h.granted == nil})
			} else {
				i := rapid.IntRange(0, len(all)-1).Draw(t, "which") // held, or giving up
				l.Release(all[i].hold)
				all = append(all[:i:i], all[i+1:]...)
			}
			check()
		}
		for _, w := range all {
			l.Release(w.hold)
		}
		if l.first != nil || l.last != nil || l.spares > spareHolds {
			t.Fatal("something is left in the lock")
		}
	})
}

// What is protected by a range is changed by one at a time, and read by many.
func TestExcludes(t *testing.T) {
	const cells = 16
	var l Lock
	var writers, readers [cells]atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			for range 2000 {
				lo := r.Int64N(cells)
				hi := lo + 1 + r.Int64N(cells-lo)
				exclusive := r.IntN(3) == 0
				h, err := l.lock(t.Context(), lo, hi, exclusive)
				if err != nil {
					t.Error(err)
					return
				}
				for i := lo; i < hi; i++ {
					if exclusive {
						if writers[i].Add(1) != 1 || readers[i].Load() != 0 {
							t.Errorf("cell %d is shared by a writer", i)
						}
					} else if readers[i].Add(1); writers[i].Load() != 0 {
						t.Errorf("cell %d is read while it is written", i)
					}
				}
				for i := lo; i < hi; i++ {
					if exclusive {
						writers[i].Add(-1)
					} else {
						readers[i].Add(-1)
					}
				}
				l.Release(h)
			}
		})
	}
	wg.Wait()
}

// A writer gets its turn although readers keep coming, and one that gives up
// lets those behind it pass.
func TestIsFair(t *testing.T) {
	var l Lock
	first, err := l.Share(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	exclusive, late := l.queue(5, 6, true), l.queue(0, 10, false)
	beside := l.queue(20, 30, true)
	if exclusive.granted == nil || late.granted == nil || beside.granted != nil {
		t.Fatal("a request overtakes one that came before it, or waits for one elsewhere")
	}
	l.Release(first)
	if len(exclusive.granted) != 1 || len(late.granted) != 0 {
		t.Fatal("the first in the queue is not the next")
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := l.Exclude(ctx, 0, 6)
		gaveUp <- err
	}()
	for done := false; !done; { // until it is in the queue
		l.mu.Lock()
		done = l.last.exclusive && l.last.lo == 0
		l.mu.Unlock()
	}
	after := l.queue(2, 3, false)
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait ends with %v", err)
	}
	l.Release(exclusive)
	l.Release(late)
	if after.granted != nil && len(after.granted) != 1 {
		t.Error("who waited for one that gave up still waits")
	}
}

func BenchmarkRangeLock(b *testing.B) {
	var l Lock
	var next atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		at := next.Add(1) << 30
		for pb.Next() {
			h, err := l.Share(b.Context(), at, at+4096)
			if err != nil {
				b.Fatal(err)
			}
			l.Release(h)
			at += 4096
		}
	})
}
