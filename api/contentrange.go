package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/extentd/extentd/storage"
)

// bodyRange is the range that the body of a request is written to: what
// Content-Range says (RFC 9110, section 14.4), or all of what has the size.
// Whether it is aligned is left to others.
func bodyRange(h http.Header, size int64) (byteRange, error) {
	given := h["Content-Range"]
	switch len(given) {
	case 0:
		return byteRange{0, size}, nil
	case 1:
	default:
		return byteRange{}, invalid("Content-Range", ruleRepeated, "is given more than once")
	}
	r, total, ok := parseContentRange(given[0])
	switch {
	case !ok:
		return r, invalid("Content-Range", ruleSyntax, "must be bytes FIRST-LAST/* or bytes FIRST-LAST/SIZE")
	case r.n < 0:
		return byteRange{}, invalid("Content-Range", ruleSyntax, "has a last position before the first")
	case total >= 0 && total != size:
		return r, invalid("Content-Range", ruleConflict, fmt.Sprintf("says that the size is %d, which is %d", total, size))
	}
	return r, storage.CheckRange(r.off, r.n, size)
}

// parseContentRange reads "bytes first-last/size"; the size is -1 where a star
// stands for it. A last that lies before the first gives a negative length. No
// number overflows: what does not fit in 63 bits is beyond any end.
func parseContentRange(header string) (r byteRange, size int64, ok bool) {
	unit, rest, found := strings.Cut(header, " ")
	if !found || !strings.EqualFold(unit, "bytes") {
		return r, 0, false
	}
	first, rest, found := strings.Cut(rest, "-")
	if !found {
		return r, 0, false
	}
	last, total, found := strings.Cut(rest, "/")
	if !found {
		return r, 0, false
	}
	off, firstOK := parsePosition(first)
	end, lastOK := parsePosition(last)
	size, sizeOK := int64(-1), true
	if total != "*" {
		size, sizeOK = parsePosition(total)
	}
	n := end - off // both are positive: no overflow
	if n < 0 {
		n = -1
	} else if n++; n < 0 {
		n = end
	}
	return byteRange{off, n}, size, firstOK && lastOK && sizeOK
}

// checkLength compares the length that a request announces, if it does, with
// that of the range.
func checkLength(r *http.Request, n int64) error {
	if r.ContentLength < 0 || r.ContentLength == n {
		return nil
	}
	return invalid("Content-Length", ruleConflict,
		"is "+strconv.FormatInt(r.ContentLength, 10)+", but the range has "+strconv.FormatInt(n, 10)+" bytes")
}
