package api

import (
	"net/http"
	"testing"
)

func TestPrecondition(t *testing.T) {
	const etag = `"d-1"`
	for _, test := range []struct {
		name   string
		header http.Header
		want   int
	}{
		{"none", http.Header{}, 0},
		{"If-Match", http.Header{"If-Match": {`"d-1"`}}, 0},
		{"If-Match any", http.Header{"If-Match": {"*"}}, 0},
		{"If-Match another", http.Header{"If-Match": {`"d-2"`}}, 412},
		{"If-Match weak", http.Header{"If-Match": {`W/"d-1"`}}, 412},
		{"If-Match list", http.Header{"If-Match": {`"a", W/"b" ,"d-1"`}}, 0},
		{"If-Match lines", http.Header{"If-Match": {`"a"`, `"d-1"`}}, 0},
		{"If-Match empty", http.Header{"If-Match": {""}}, 412},
		{"If-Match without quotes", http.Header{"If-Match": {"d-1"}}, 412},
		{"If-Match unfinished", http.Header{"If-Match": {`"d-1`}}, 412},
		{"If-None-Match", http.Header{"If-None-Match": {`"d-1"`}}, 304},
		{"If-None-Match any", http.Header{"If-None-Match": {" * "}}, 304},
		{"If-None-Match weak", http.Header{"If-None-Match": {`W/"d-1"`}}, 304},
		{"If-None-Match another", http.Header{"If-None-Match": {`"d-2"`}}, 0},
		{"If-None-Match comma inside", http.Header{"If-None-Match": {`"a,\"d-1"`}}, 0},
		{"If-None-Match list", http.Header{"If-None-Match": {`"a,b",, "d-1"`}}, 304},
		{"If-None-Match lines", http.Header{"If-None-Match": {`"a"`, `W/"d-1"`}}, 304},
		{"If-None-Match malformed, then good line", http.Header{"If-None-Match": {`a`, `"d-1"`}}, 304},
		{"If-None-Match empty", http.Header{"If-None-Match": {""}}, 0},
		{"If-Match before If-None-Match", http.Header{"If-Match": {`"x"`}, "If-None-Match": {`"d-1"`}}, 412},
		{"both hold", http.Header{"If-Match": {`"d-1"`}, "If-None-Match": {`"d-1"`}}, 304},
		{"dates are ignored", http.Header{"If-Unmodified-Since": {"Thu, 01 Jan 1970 00:00:00 GMT"}, "If-Modified-Since": {"Fri, 31 Dec 9999 23:59:59 GMT"}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := precondition(test.header, etag); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestRangeApplies(t *testing.T) {
	for given, want := range map[string]bool{
		`"d-1"`: true, ` "d-1" `: true, `W/"d-1"`: false, `"d-2"`: false, `*`: false, ``: false, `"d-1", "d-1"`: false,
		"Thu, 01 Jan 1970 00:00:00 GMT": false, "Fri, 31 Dec 9999 23:59:59 GMT": false,
	} {
		if got := rangeApplies(http.Header{"If-Range": {given}}, `"d-1"`); got != want {
			t.Errorf("If-Range: %s applies: %v, want %v", given, got, want)
		}
	}
	if !rangeApplies(http.Header{}, `"d-1"`) {
		t.Error("without If-Range it does not apply")
	}
}

func TestWantsLines(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                       false,
		"*/*":                                    false,
		"application/json":                       false,
		"application/x-ndjson":                   true,
		"Application/X-NDJSON; charset=utf-8":    true,
		"application/x-ndjson, application/json": true,
		"application/json, application/x-ndjson;q=0.5":          false,
		"application/json;q=0.1, application/x-ndjson":          true,
		"application/x-ndjson;q=0":                              false,
		"application/x-ndjson;q=x":                              false,
		"text/html, application/x-ndjson;q=0.2, */*;q=0.9":      true,
		"application/problem+json, application/x-ndjson":        true,
		"application/x-ndjson-not":                              false,
		"application/x-ndjson ; q=0.7 , application/json;q=0.7": true,
	} {
		if got := wantsLines(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("Accept: %s: %v, want %v", accept, got, want)
		}
	}
}
