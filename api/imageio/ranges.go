package imageio

import (
	"fmt"
	"math"
	"strings"

	"github.com/extentd/extentd/api"
)

// readRange reads a Range header for an image of that size. Unlike RFC 9110, and
// like the server whose dialect this is, it refuses what is malformed, in several
// ranges, or partly beyond the end: nobody shall take other bytes for those that it
// has asked for.
func readRange(header string, size int64) (api.Window, error) {
	set, bytes := strings.CutPrefix(header, "bytes=")
	first, last, found := strings.Cut(set, "-")
	if !bytes || !found || first == "" && last == "" {
		return api.Window{}, api.Outside(size, "the Range is malformed, or there are several")
	}
	from, to := size, int64(math.MaxInt64)
	ok := true
	if first != "" {
		from, ok = number(first)
	}
	if last != "" && ok {
		to, ok = number(last)
	}
	if !ok {
		return api.Window{}, api.Outside(size, "the Range is malformed, or there are several")
	}
	switch {
	case first == "": // the last bytes
		return suffix(to, size)
	case last == "":
		to = size - 1
	}
	if from > to || to >= size {
		return api.Window{}, api.Outside(size, fmt.Sprintf("the image has %d bytes, and the range does not lie in them", size))
	}
	return api.Window{Offset: from, Length: to - from + 1}, nil
}

func suffix(n, size int64) (api.Window, error) {
	if n == 0 || n > size {
		return api.Window{}, api.Outside(size, fmt.Sprintf("the image has %d bytes, and not %d", size, n))
	}
	return api.Window{Offset: size - n, Length: n}, nil
}

// writeOffset is where the body begins, by a Content-Range header. How long it is,
// Content-Length says alone.
func writeOffset(header string) (int64, error) {
	set, bytes := strings.CutPrefix(header, "bytes ")
	first, rest, found := strings.Cut(set, "-")
	last, size, sized := strings.Cut(rest, "/")
	from, ok := number(first)
	to, bounded := number(last)
	all, known := number(size)
	if !bytes || !found || !sized || !ok || !bounded && last != "*" || !known && size != "*" ||
		bounded && to < from || bounded && known && to >= all {
		return 0, api.Invalid("Content-Range", "must be bytes FIRST-LAST/*")
	}
	return from, nil
}

// number reads digits; what does not fit in 63 bits is beyond any end.
func number(digits string) (int64, bool) {
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	var v int64
	for _, c := range []byte(digits) {
		d := int64(c - '0')
		if v > (math.MaxInt64-d)/10 {
			return math.MaxInt64, true
		}
		v = v*10 + d
	}
	return v, true
}
