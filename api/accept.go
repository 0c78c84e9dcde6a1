package api

import (
	"net/http"
	"strconv"
	"strings"
)

// wantsLines reports whether the Accept header (RFC 9110, section 12.5.1) asks
// for NDJSON: it names it, and does not prefer application/json.
func wantsLines(h http.Header) bool {
	lines, page := -1.0, -1.0
	for _, line := range h["Accept"] {
		for part := range strings.SplitSeq(line, ",") {
			switch media, quality := acceptPart(part); media {
			case ndjson:
				lines = max(lines, quality)
			case "application/json":
				page = max(page, quality)
			}
		}
	}
	return lines > 0 && lines >= page
}

// accepts reports whether the Accept header allows for a media type: the most
// specific of its elements that match decides. Without the header all are.
func accepts(h http.Header, media string) bool {
	kind, _, _ := strings.Cut(media, "/")
	allowed, best := len(h["Accept"]) == 0, 0
	for _, line := range h["Accept"] {
		for part := range strings.SplitSeq(line, ",") {
			given, quality := acceptPart(part)
			rank := 0
			switch given {
			case media:
				rank = 3
			case kind + "/*":
				rank = 2
			case "*/*":
				rank = 1
			}
			switch {
			case rank > best:
				best, allowed = rank, quality > 0
			case rank == best && rank > 0 && quality > 0:
				allowed = true
			}
		}
	}
	return allowed
}

// acceptPart splits one element of an Accept header; its quality is 1 if it
// does not say, and 0 if that is malformed.
func acceptPart(part string) (media string, quality float64) {
	media, params, _ := strings.Cut(part, ";")
	quality = 1
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(name, "q") {
			quality, _ = strconv.ParseFloat(value, 64)
		}
	}
	return strings.ToLower(strings.TrimSpace(media)), quality
}
