package service

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestSpans compares spans with a set of bytes.
func TestSpans(t *testing.T) {
	const length = 24
	aSpan := rapid.Custom(func(t *rapid.T) span {
		off := rapid.Int64Range(0, length-1).Draw(t, "offset")
		return span{off, rapid.Int64Range(1, length-off).Draw(t, "length")}
	})
	rapid.Check(t, func(t *rapid.T) {
		var s spans
		var want [length]bool
		fill := func(n span, in bool) {
			for i := n.Offset; i < n.end(); i++ {
				want[i] = in
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			n := aSpan.Draw(t, "span")
			met := slices.Contains(want[n.Offset:n.end()], true)
			if got := s.meet(n); got != met {
				t.Fatalf("%v meets %v: %v", s, n, got)
			}
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				s.add(n)
				fill(n, true)
			case 1:
				s.cut(n)
				fill(n, false)
			case 2:
				s = s.union(spans{n})
				fill(n, true)
			}
			var got [length]bool
			end := int64(-1)
			for _, o := range s {
				if o.Offset <= end || o.Length <= 0 {
					t.Fatalf("%v is not sorted and apart", s)
				}
				end = o.end()
				for i := o.Offset; i < o.end(); i++ {
					got[i] = true
				}
			}
			if got != want {
				t.Fatalf("%v, want %v", s, want)
			}
			for _, o := range s.rest(length) {
				fill(o, true)
			}
			if slices.Contains(want[:], false) {
				t.Fatalf("the rest of %v is %v", s, s.rest(length))
			}
			want = got
		}
	})
}
