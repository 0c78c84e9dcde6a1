package api

import (
	"math"
	"strings"
)

// A byteRange is a part of an image: n bytes at off, n being positive.
type byteRange struct{ off, n int64 }

// A rangeVerdict is what a Range header comes to.
type rangeVerdict int

const (
	rangeNone    rangeVerdict = iota // there is none, or it must be ignored
	rangePartial                     // these parts
	rangeOutside                     // no part of it lies in the image
	rangeTooMany                     // more than is sent in one answer
)

// maxRanges is how many ranges one request may ask for. Together they are at
// most twice as long as the image: RFC 9110, section 14.2, allows for rejecting
// "more than two overlapping ranges".
const maxRanges = 64

// parseRanges reads a Range header (RFC 9110, section 14.1.2) for an image of
// the given size, and appends the satisfiable ranges to into. A header that is
// malformed, or in another unit than bytes, is ignored as section 14.2 asks
// for. No number overflows: what does not fit in 63 bits lies past the end.
func parseRanges(header string, size int64, into []byteRange) ([]byteRange, rangeVerdict) {
	unit, set, found := strings.Cut(header, "=")
	if !found || !strings.EqualFold(unit, "bytes") {
		return into, rangeNone
	}
	var specs int
	var total int64
	var many, empty bool
	for more := true; more; {
		var spec string
		spec, set, more = strings.Cut(set, ",")
		spec = strings.Trim(spec, " \t")
		if spec == "" { // an empty element of a list
			continue
		}
		r, satisfiable, ok := parseRange(spec, size)
		switch specs++; {
		case !ok:
			return into, rangeNone
		case !satisfiable:
		case r.n == 0: // all of an empty image, which no Content-Range can say
			empty = true
		case specs > maxRanges, r.n > 2*size-total:
			many = true // what follows may still be malformed
		default:
			total += r.n
			into = append(into, r)
		}
	}
	switch {
	case specs == 0, empty:
		return into, rangeNone
	case many, specs > maxRanges:
		return into, rangeTooMany
	case len(into) == 0:
		return into, rangeOutside
	}
	return into, rangePartial
}

// parseRange reads first-last, first- or -suffix, and cuts it at the size. It
// is satisfiable if a part of it lies inside.
func parseRange(spec string, size int64) (r byteRange, satisfiable, ok bool) {
	first, last, found := strings.Cut(spec, "-")
	if !found {
		return r, false, false
	}
	if first == "" {
		suffix, ok := parsePosition(last)
		n := min(suffix, size)
		return byteRange{size - n, n}, suffix > 0, ok
	}
	off, ok := parsePosition(first)
	end := int64(math.MaxInt64)
	if ok && last != "" {
		end, ok = parsePosition(last)
	}
	switch {
	case !ok || end < off:
		return r, false, false
	case off >= size:
		return r, false, true
	}
	return byteRange{off, min(end, size-1) - off + 1}, true, true
}

// parsePosition reads digits; a larger number than an int64 holds is the
// largest.
func parsePosition(digits string) (int64, bool) {
	if digits == "" {
		return 0, false
	}
	var v int64
	for i := range len(digits) {
		c := digits[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		d := int64(c - '0')
		if v > (math.MaxInt64-d)/10 {
			v = math.MaxInt64
			continue
		}
		v = v*10 + d
	}
	return v, true
}
