package service

import (
	"cmp"
	"slices"
)

// A span is a range of an allocation, bytes.
type span struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (s span) end() int64 { return s.Offset + s.Length }

// spans are sorted, and none meets or touches another.
type spans []span

// from is the index of the first span that ends after off.
func (s spans) from(off int64) int {
	i, _ := slices.BinarySearchFunc(s, off, func(at span, off int64) int {
		if at.end() <= off {
			return -1
		}
		return 1
	})
	return i
}

// meet reports whether any of the spans has a byte in common with n.
func (s spans) meet(n span) bool {
	i := s.from(n.Offset)
	return i < len(s) && s[i].Offset < n.end()
}

// add makes n part of the spans, in place.
func (s *spans) add(n span) {
	lo := (*s).from(n.Offset - 1) // also what n goes on from
	hi := lo
	for ; hi < len(*s) && (*s)[hi].Offset <= n.end(); hi++ {
		o := (*s)[hi]
		start := min(o.Offset, n.Offset)
		n = span{start, max(o.end(), n.end()) - start}
	}
	*s = slices.Replace(*s, lo, hi, n)
}

// cut takes n out of the spans, in place.
func (s *spans) cut(n span) {
	lo := (*s).from(n.Offset)
	hi := lo
	var left [2]span
	k := 0
	for ; hi < len(*s) && (*s)[hi].Offset < n.end(); hi++ {
		o := (*s)[hi]
		if o.Offset < n.Offset {
			left[k] = span{o.Offset, n.Offset - o.Offset}
			k++
		}
		if n.end() < o.end() {
			left[k] = span{n.end(), o.end() - n.end()}
			k++
		}
	}
	*s = slices.Replace(*s, lo, hi, left[:k]...)
}

// union is both together, in a slice of its own.
func (s spans) union(o spans) spans {
	all := slices.Concat(s, o)
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.Offset, b.Offset) })
	out := make(spans, 0, len(all))
	for _, n := range all {
		if k := len(out) - 1; k >= 0 && n.Offset <= out[k].end() {
			out[k].Length = max(out[k].end(), n.end()) - out[k].Offset
			continue
		}
		out = append(out, n)
	}
	return out
}

// rest are the parts of [0, length) that are in none of the spans.
func (s spans) rest(length int64) spans {
	var out spans
	at := int64(0)
	for _, o := range s {
		if at < o.Offset {
			out = append(out, span{at, o.Offset - at})
		}
		at = o.end()
	}
	if at < length {
		out = append(out, span{at, length - at})
	}
	return out
}
