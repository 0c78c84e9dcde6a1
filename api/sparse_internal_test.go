package api

import (
	"math/rand/v2"
	"net/http"
	"testing"
)

// Whatever the extents and the minimum: parts are in order, disjoint and joined, begin
// and end at multiples, and say of each byte what was said of it. What was not said to
// matter is in a part only where its block has something else.
func TestPartJoiner(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const nothing, data, zero = 0, 1, 2
	for range 3000 {
		minimum := int64(1) << random.IntN(6)
		size := random.Int64N(400)
		said := make([]int, size)
		var parts []part
		j := &partJoiner{minimum: minimum, size: size, visit: func(p part) error {
			parts = append(parts, p)
			return nil
		}}
		for off := int64(0); off < size; {
			n := min(1+random.Int64N(60), size-off)
			what := random.IntN(3)
			for i := range n {
				said[off+i] = what
			}
			if what != nothing {
				if err := j.add(off, off+n, what == zero); err != nil {
					t.Fatal(err)
				}
			}
			off += n
		}
		if err := j.flush(); err != nil {
			t.Fatal(err)
		}
		got := make([]int, size)
		end, last := int64(-1), nothing
		for _, p := range parts {
			what := data
			if p.zero {
				what = zero
			}
			if p.n <= 0 || p.off < end || p.off == end && what == last || p.off%minimum != 0 || (p.off+p.n)%minimum != 0 && p.off+p.n != size {
				t.Fatalf("minimum %d, size %d: parts %v", minimum, size, parts)
			}
			end, last = p.off+p.n, what
			for i := range p.n {
				got[p.off+i] = what
			}
		}
		for i := range said {
			first := int64(i) &^ (minimum - 1)
			mixed := false
			for _, other := range said[first:min(first+minimum, size)] {
				mixed = mixed || other != said[first]
			}
			if got[i] != said[i] && (!mixed || got[i] != data) {
				t.Fatalf("minimum %d, size %d: byte %d is %d and was said to be %d: %v", minimum, size, i, got[i], said[i], parts)
			}
		}
	}
}

// A part of data is never longer than 64 MiB, and ends at a multiple; one of zeros is
// as long as it is.
func TestLongParts(t *testing.T) {
	var parts []part
	j := &partJoiner{minimum: 512, size: 1 << 40, visit: func(p part) error {
		parts = append(parts, p)
		return nil
	}}
	for _, add := range []part{{1 << 20, 200 << 20, false}, {201 << 20, 1 << 30, true}} {
		if err := j.add(add.off, add.off+add.n, add.zero); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.flush(); err != nil {
		t.Fatal(err)
	}
	want := []part{{1 << 20, 63 << 20, false}, {64 << 20, 64 << 20, false}, {128 << 20, 64 << 20, false}, {192 << 20, 9 << 20, false}, {201 << 20, 1 << 30, true}}
	if len(parts) != len(want) {
		t.Fatalf("%v, want %v", parts, want)
	}
	for i := range want {
		if parts[i] != want[i] {
			t.Errorf("%v, want %v", parts[i], want[i])
		}
	}
}

func TestAccepts(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                true,
		"*/*":                             true,
		"multipart/*":                     true,
		"multipart/byteranges":            true,
		"Multipart/ByteRanges;q=0.1":      true,
		"text/html, */*;q=0.8":            true,
		"text/html":                       false,
		"application/octet-stream":        false,
		"multipart/byteranges;q=0, */*":   false,
		"multipart/*;q=0, */*":            false,
		"multipart/byteranges, */*;q=0":   true,
		"nonsense":                        false,
		"multipart/byteranges;q=nonsense": false,
	} {
		h := http.Header{}
		if accept != "" {
			h.Set("Accept", accept)
		}
		if got := accepts(h, byteRanges); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

func TestFieldDictionary(t *testing.T) {
	for line, want := range map[string]int{
		"sha-256=:AAAA:":                       1,
		"sha-256=:AAAA:, sha-512=:AAA=:":       2,
		" sha-256=:AAAA:;p=\"x\" ,\tunix=1":    2,
		"sha-256=:AAAA:, sha-256=:BBBB:":       1,
		"":                                     0,
		"sha-256":                              0,
		"sha-256=":                             0,
		"SHA-256=:AAAA:":                       0,
		"sha-256=:AAAA:,":                      0,
		"=:AAAA:":                              0,
		"sha-256=:AAAA:, :, other=:AAAA:":      0,
		"a=1, b=2, c=3, sha-256=10, sha-512=5": 5,
	} {
		members, ok := fieldDictionary([]string{line})
		if len(members) != want || ok != (want > 0) {
			t.Errorf("%q: %v, %v", line, members, ok)
		}
	}
	for text, want := range map[string]int{":AAAA:": 3, "::": 0, ":": -1, "AAAA": -1, ":A:": -1, ":AA==:": 1} {
		got, ok := byteSequence(text)
		if ok != (want >= 0) || ok && len(got) != want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
}
