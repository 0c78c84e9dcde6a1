package load_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kib = 1 << 10

func later(t *testing.T, err, want error) {
	t.Helper()
	var e *load.LaterError
	if !errors.As(err, &e) || !errors.Is(err, want) || e.RetryAfter() <= 0 {
		t.Fatalf("the error is %v, want one that wraps %v and says when to come again", err, want)
	}
}

// Who does not need much goes on when long transfers have to wait, and what is
// only faster goes to nobody while there is no plenty.
func TestMemoryParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var counts load.Counts
		m := load.NewMemory(1024*kib, &counts)
		spares := int64(0)
		for m.Spare(64 * kib) {
			spares++
		}
		longs := int64(0)
		var err error
		for err == nil {
			if err = m.Long(ctx, load.Least); err == nil {
				longs++
			}
		}
		later(t, err, load.ErrBusy)
		if spares != 4 || longs != 10 {
			t.Errorf("%d spare and %d long ones", spares, longs)
		}
		smalls := int64(0)
		for err = nil; err == nil; smalls++ {
			err = m.Small(ctx, 4*kib)
		}
		later(t, err, load.ErrBusy)
		if smalls != 33 {
			t.Errorf("%d small ones", smalls)
		}
		if m.Used() != m.Total() || counts.Busy.Load() != 2 {
			t.Errorf("%d of %d are used, %d were told", m.Used(), m.Total(), counts.Busy.Load())
		}
		m.Put(1024 * kib)
		if n, err := m.Bulk(ctx, 1<<30); n != 256*kib || err != nil {
			t.Errorf("bulk is %d: %v", n, err)
		}
		if n, err := m.Bulk(ctx, 1); n != 1 || !errors.Is(err, load.ErrBusy) {
			t.Errorf("then %d: %v", n, err)
		}
		if err := m.Small(ctx, 1<<30); !errors.Is(err, load.ErrBusy) {
			t.Errorf("more than there is: %v", err)
		}
	})
}

// Who waits gets what is put back; a context that ends ends the wait.
func TestMemoryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := load.NewMemory(1024*kib, new(load.Counts))
		if err := m.Small(t.Context(), 1024*kib); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { got <- m.Small(t.Context(), 512*kib) }()
		time.Sleep(time.Second)
		m.Put(100 * kib)
		synctest.Wait()
		if len(got) > 0 {
			t.Fatal("served from too little")
		}
		m.Put(924 * kib)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		m.Put(512 * kib)
		if err := m.Take(t.Context(), 1<<40); err != nil { // all there is
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := m.Take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a context that ends: %v", err)
		}
		m.Give(1 << 40)
		if m.Used() != 0 {
			t.Errorf("%d bytes are used", m.Used())
		}
	})
}

// One who waits for much is not overtaken for ever by those who want little.
func TestTakeIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := load.NewMemory(100, nil)
		if err := m.Take(t.Context(), 60); err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 2)
		go func() {
			if m.Take(t.Context(), 80) == nil {
				order <- "much"
				m.Give(80)
			}
		}()
		synctest.Wait()
		go func() {
			if m.Take(t.Context(), 30) == nil {
				order <- "little"
				m.Give(30)
			}
		}()
		synctest.Wait()
		if len(order) > 0 {
			t.Fatalf("%s was first", <-order)
		}
		m.Give(60)
		if first := <-order; first != "much" {
			t.Errorf("%s was first", first)
		}
		<-order
	})
}

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := load.New(load.Options{Connections: 2})
		q := l.Requests()
		for range 2 {
			if err := q.Enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		later(t, q.Enter(t.Context()), load.ErrBusy)
		if waited := time.Since(start); waited <= 0 || waited > 10*time.Second {
			t.Errorf("it waited %v", waited)
		}
		go func() {
			time.Sleep(time.Second)
			q.Leave()
		}()
		if err := q.Enter(t.Context()); err != nil {
			t.Errorf("with room: %v", err)
		}
		if q.UnderWay() != 2 || l.Counts().Busy.Load() != 1 {
			t.Errorf("%d under way, %d refused", q.UnderWay(), l.Counts().Busy.Load())
		}
	})
}

// The zero value bounds nothing.
func TestNoBounds(t *testing.T) {
	for name, l := range map[string]*load.Limits{"nil": nil, "zero": load.New(load.Options{})} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			m := l.Memory()
			if err := errors.Join(m.Small(ctx, 1<<50), m.Long(ctx, 1<<50), m.Take(ctx, 1<<50), l.Requests().Enter(ctx), l.Rates().Allow(load.Client{})); err != nil {
				t.Error(err)
			}
			if n, err := m.Bulk(ctx, 1<<50); n != 1<<50 || err != nil || !m.Spare(1<<50) {
				t.Errorf("bulk: %d, %v", n, err)
			}
			m.Put(1)
			m.Give(1)
			l.Requests().Leave()
			if l.Connections() != nil || l.Stall() != 0 || l.Counts().Busy.Load() != 0 || m.Used() != 0 || m.Total() != 0 || l.Requests().UnderWay() != 0 {
				t.Error("there is a bound")
			}
		})
	}
}
