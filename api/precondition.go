package api

import (
	"net/http"
	"strings"
)

// precondition evaluates If-Match and If-None-Match in the order of RFC 9110,
// section 13.2.2, for a GET or HEAD of what has the ETag. It returns 412, 304,
// or 0 to go on. Dates are not looked at: no answer has a Last-Modified.
func precondition(h http.Header, etag string) int {
	if lines := h["If-Match"]; len(lines) > 0 && !anyMatches(lines, etag, strongMatch) {
		return http.StatusPreconditionFailed
	}
	if lines := h["If-None-Match"]; len(lines) > 0 && anyMatches(lines, etag, weakMatch) {
		return http.StatusNotModified
	}
	return 0
}

// writeCondition is what If-Match and If-None-Match want of a generation, for a
// request that changes what has it as its ETag; nil if they want nothing.
func writeCondition(h http.Header) func(generation string) bool {
	match, none := h["If-Match"], h["If-None-Match"]
	if len(match) == 0 && len(none) == 0 {
		return nil
	}
	return func(generation string) bool {
		etag := `"` + generation + `"`
		return (len(match) == 0 || anyMatches(match, etag, strongMatch)) && !anyMatches(none, etag, weakMatch)
	}
}

// rangeApplies evaluates If-Range (section 13.1.5): without it, or if it is the
// ETag now, Range counts. A date is no ETag.
func rangeApplies(h http.Header, etag string) bool {
	lines := h["If-Range"]
	return len(lines) == 0 || len(lines) == 1 && strongMatch(strings.Trim(lines[0], " \t"), etag)
}

// strongMatch is the strong comparison (section 8.8.3.2) with an ETag of ours,
// which is never weak.
func strongMatch(given, etag string) bool { return given == etag }

func weakMatch(given, etag string) bool { return strings.TrimPrefix(given, "W/") == etag }

// anyMatches reports whether one of the ETags in a list, which may stand in
// several lines, matches. What is malformed ends a line.
func anyMatches(lines []string, etag string, match func(given, etag string) bool) bool {
	for _, line := range lines {
		if strings.Trim(line, " \t") == "*" {
			return true
		}
		for {
			line = strings.TrimLeft(line, " \t,")
			tag, rest := cutETag(line)
			if tag == "" {
				break
			}
			if match(tag, etag) {
				return true
			}
			line = rest
		}
	}
	return false
}

// cutETag cuts the ETag off that a text begins with; "" if it begins with none.
func cutETag(text string) (tag, rest string) {
	start := 0
	if strings.HasPrefix(text, "W/") {
		start = 2
	}
	if len(text) <= start || text[start] != '"' {
		return "", text
	}
	for i := start + 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return text[:i+1], text[i+1:]
		case c == 0x21, c >= 0x23 && c <= 0x7e, c >= 0x80:
		default:
			return "", text
		}
	}
	return "", text
}
