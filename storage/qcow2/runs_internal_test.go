package qcow2

import (
	"testing"

	"pgregory.net/rapid"
)

// TestRuns compares a set of runs with a set of numbers.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s runs
		model := map[int64]bool{}
		number := rapid.Int64Range(0, 40)
		draw := func(t *rapid.T) run {
			return run{number.Draw(t, "start"), rapid.Int64Range(1, 8).Draw(t, "count")}
		}
		count := func(r run) (n int64) {
			for at := r.start; at < r.end(); at++ {
				if model[at] {
					n++
				}
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				r := draw(t)
				if count(r) > 0 {
					return
				}
				s.add(r)
				for at := r.start; at < r.end(); at++ {
					model[at] = true
				}
			},
			"remove": func(t *rapid.T) {
				r := draw(t)
				s.remove(r)
				for at := r.start; at < r.end(); at++ {
					delete(model, at)
				}
			},
			"": func(t *rapid.T) {
				r := draw(t)
				if n := count(r); s.contains(r) != (n == r.count) || s.overlaps(r) != (n > 0) {
					t.Fatalf("%+v of %+v", r, s.list)
				}
				for k := 1; k < len(s.list); k++ {
					if s.list[k-1].end() >= s.list[k].start {
						t.Fatalf("%+v", s.list)
					}
				}
			},
		})
	})
}

// TestRefcountWidths sets and reads refcounts of every width beside others.
func TestRefcountWidths(t *testing.T) {
	for order := range uint32(maxRefcountOrder + 1) {
		table := refcountTable{order: order}
		b := make([]byte, 64)
		n := len(b) << 3 >> order
		for k := range n {
			setRefcount(b, order, k, table.most())
		}
		for k := range n {
			setRefcount(b, order, k, uint64(k)&1)
			if got := refcount(b, order, k); got != uint64(k)&1 {
				t.Errorf("order %d: %d is %d", order, k, got)
			}
			if k+1 < n && refcount(b, order, k+1) != table.most() {
				t.Errorf("order %d: setting %d changes the next", order, k)
			}
		}
		for k := range n {
			if got := nextRefcount(b, order, k, n, true); got != (k+1)&^1 && got != n {
				t.Errorf("order %d: the next 0 from %d is %d", order, k, got)
			}
		}
	}
}
