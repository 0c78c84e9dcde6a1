package load_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/load"
)

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := load.New(load.Options{Rate: 2, Burst: 3})
		r := l.Rates()
		one, other := load.ClientAt("192.0.2.1:4000"), load.Client{Name: "token:other"}
		for range 3 {
			if err := r.Allow(one); err != nil {
				t.Fatal(err)
			}
		}
		err := r.Allow(one)
		later(t, err, load.ErrTooMany)
		if err := r.Allow(other); err != nil {
			t.Errorf("the other one: %v", err)
		}
		var e *load.LaterError
		if !errors.As(err, &e) || e.After > 500*time.Millisecond {
			t.Fatalf("it is told to wait %v", e.After)
		}
		time.Sleep(e.After)
		if err := r.Allow(one); err != nil {
			t.Errorf("after the wait: %v", err)
		}
		if n := l.Counts().Limited.Load(); n != 1 {
			t.Errorf("%d were counted", n)
		}
	})
}

// A burst that is not given is twice the rate, and at least one request.
func TestBurst(t *testing.T) {
	for rate, want := range map[float64]int{10: 20, 0.1: 1} {
		synctest.Test(t, func(t *testing.T) {
			r := load.New(load.Options{Rate: rate}).Rates()
			n := 0
			for r.Allow(load.Client{}) == nil {
				n++
			}
			if n != want {
				t.Errorf("at %v a second, %d at once", rate, n)
			}
		})
	}
}

// However many clients come, memory is bounded, and one that keeps coming is not
// forgotten.
func TestManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := load.New(load.Options{Rate: 1e-6, Burst: 1}).Rates()
		busy := load.Client{Name: "busy"}
		if err := r.Allow(busy); err != nil {
			t.Fatal(err)
		}
		for i := range 50_000 {
			if err := r.Allow(load.Client{Name: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			if i%1000 == 0 && r.Allow(busy) == nil {
				t.Fatalf("forgotten after %d clients", i)
			}
		}
		if n := r.Clients(); n > 10_000 {
			t.Errorf("%d are remembered", n)
		}
	})
}

func TestClientAt(t *testing.T) {
	same := [][2]string{
		{"192.0.2.1:1", "192.0.2.1:65535"},
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:2"},
		{"[2001:db8::1]:1", "[2001:db8::ffff:1]:2"},
		{"[fe80::1%eth0]:1", "[fe80::2]:2"},
		{"@", ""},
	}
	for _, pair := range same {
		if a, b := load.ClientAt(pair[0]), load.ClientAt(pair[1]); a != b {
			t.Errorf("%q is %v, %q is %v", pair[0], a, pair[1], b)
		}
	}
	for _, pair := range [][2]string{{"192.0.2.1:1", "192.0.2.2:1"}, {"[2001:db8::1]:1", "[2001:db8:0:1::1]:1"}, {"@", "192.0.2.1:1"}} {
		if a := load.ClientAt(pair[0]); a == load.ClientAt(pair[1]) {
			t.Errorf("%q and %q are both %v", pair[0], pair[1], a)
		}
	}
}
