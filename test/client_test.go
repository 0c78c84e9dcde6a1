package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
)

// get asks for a path and returns the response, whose body the caller closes.
func (s *server) get(t testing.TB, path string, headers ...string) *http.Response {
	t.Helper()
	return s.do(t, http.MethodGet, path, headers...)
}

func (s *server) do(t testing.TB, method, path string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", method, path, err, s.stderr)
	}
	return resp
}

// expect asks for a path, wants a status, and returns header and body.
func (s *server) expect(t testing.TB, status int, path string, headers ...string) (http.Header, []byte) {
	t.Helper()
	resp := s.get(t, path, headers...)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	if resp.StatusCode != status {
		t.Fatalf("GET %s %v: %s, want %d\n%.1000s", path, headers, resp.Status, status, body)
	}
	return resp.Header, body
}

// getJSON decodes the answer of a path; a member that v does not have is an
// error.
func (s *server) getJSON(t testing.TB, v any, path string, headers ...string) http.Header {
	t.Helper()
	header, body := s.expect(t, http.StatusOK, path, headers...)
	if got := header.Get("Content-Type"); got != "application/json" {
		t.Errorf("GET %s: Content-Type %q", path, got)
	}
	if err := decodeStrictly(body, v); err != nil {
		t.Fatalf("GET %s: %v\n%.1000s", path, err, body)
	}
	return header
}

func decodeStrictly(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more after the first value")
	}
	return nil
}

// A problem is the body of an error.
type problem struct {
	Type      string           `json:"type"`
	Title     string           `json:"title"`
	Status    int              `json:"status"`
	Detail    string           `json:"detail"`
	Instance  string           `json:"instance"`
	RequestID string           `json:"request_id"`
	Errors    []map[string]any `json:"errors"`
}

// expectProblem asks for a path and wants an error of a type.
func (s *server) expectProblem(t testing.TB, status int, name, path string, headers ...string) problem {
	t.Helper()
	header, body := s.expect(t, status, path, headers...)
	return checkProblem(t, header, body, status, name)
}

func checkProblem(t testing.TB, header http.Header, body []byte, status int, name string) problem {
	t.Helper()
	var p problem
	if got := header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q of a problem", got)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	if p.Status != status || p.Type != "/problems/"+name || p.Title == "" || p.Detail == "" || p.Instance == "" {
		t.Errorf("problem %s, want %d %s with title, detail and instance", body, status, name)
	}
	return p
}

// An extent is one element of a map on the wire. The pointers tell members that
// are absent from zeros.
type extent struct {
	Offset      *int64  `json:"offset"`
	Length      *int64  `json:"length"`
	Local       *bool   `json:"local"`
	Zero        *bool   `json:"zero"`
	Alloc       *bool   `json:"alloc"`
	OffsetValid *bool   `json:"offset_valid"`
	Node        *string `json:"node"`
	NodeOffset  *int64  `json:"node_offset"`
	Depth       *int    `json:"depth"`
	Compressed  *bool   `json:"compressed"`
	Encrypted   *bool   `json:"encrypted"`
}

// check verifies what the contract says of every extent alone.
func (e extent) check() error {
	if e.Offset == nil || e.Length == nil || e.Local == nil || e.Zero == nil || e.Alloc == nil || e.OffsetValid == nil || e.Depth == nil {
		return fmt.Errorf("a member is missing")
	}
	if located := *e.OffsetValid; located != (e.Node != nil) || located != (e.NodeOffset != nil) {
		return fmt.Errorf("node and node_offset stand there exactly with offset_valid")
	}
	if e.Node != nil && *e.Node == "" || e.NodeOffset != nil && *e.NodeOffset < 0 || *e.Length <= 0 {
		return fmt.Errorf("node, node_offset or length has no meaning")
	}
	if e.Compressed != nil && !*e.Compressed || e.Encrypted != nil && !*e.Encrypted {
		return fmt.Errorf("compressed and encrypted stand there only when true")
	}
	return nil
}

func (e extent) end() int64 { return *e.Offset + *e.Length }

func (e extent) span() span {
	s := span{Start: *e.Offset, Length: *e.Length, Depth: *e.Depth, Present: *e.Local, Zero: *e.Zero, Offset: -1}
	if e.NodeOffset != nil {
		s.Offset = *e.NodeOffset
	}
	return s
}

func (e extent) String() string {
	text, _ := json.Marshal(e)
	return string(text)
}

// A page is one answer of extents.
type page struct {
	Size       *int64   `json:"size"`
	Generation string   `json:"generation"`
	Extents    []extent `json:"extents"`
	Next       *int64   `json:"next"`
}

func extentsPath(image string, query ...any) string {
	values := url.Values{}
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i].(string), fmt.Sprint(query[i+1]))
	}
	path := "/v1/images/" + image + "/extents"
	if len(values) > 0 {
		path += "?" + values.Encode()
	}
	return path
}

// page gets one page of extents and verifies what holds for every one.
func (s *server) page(t testing.TB, image string, query ...any) page {
	t.Helper()
	var p page
	path := extentsPath(image, query...)
	header := s.getJSON(t, &p, path)
	if p.Size == nil || p.Generation == "" || p.Extents == nil {
		t.Fatalf("GET %s: a member is missing", path)
	}
	if etag := header.Get("ETag"); etag != `"`+p.Generation+`"` {
		t.Errorf("GET %s: ETag %s and generation %s", path, etag, p.Generation)
	}
	checkExtents(t, path, p.Extents)
	return p
}

// checkExtents verifies that extents are whole, adjacent and merged.
func checkExtents(t testing.TB, what string, extents []extent) {
	t.Helper()
	for i, e := range extents {
		if err := e.check(); err != nil {
			t.Fatalf("%s: extent %d: %v: %v", what, i, err, e)
		}
		if i == 0 {
			continue
		}
		before := extents[i-1]
		if *e.Offset != before.end() {
			t.Fatalf("%s: extent %d does not follow the one before: %v %v", what, i, before, e)
		}
		same := e.span().follows(before.span()) && *e.Alloc == *before.Alloc &&
			(e.Compressed == nil) == (before.Compressed == nil) && (e.Encrypted == nil) == (before.Encrypted == nil)
		if same && (e.Node == nil || *e.Node == *before.Node) {
			t.Fatalf("%s: extents %d and %d agree and are not merged: %v %v", what, i-1, i, before, e)
		}
	}
}

// stream gets extents as NDJSON.
func (s *server) stream(t testing.TB, image string, query ...any) []extent {
	t.Helper()
	path := extentsPath(image, query...)
	resp := s.get(t, path, "Accept", "application/x-ndjson")
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" || resp.Header.Get("ETag") == "" {
		t.Fatalf("GET %s: %s, %v", path, resp.Status, resp.Header)
	}
	var extents []extent
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var e extent
		if err := decodeStrictly(lines.Bytes(), &e); err != nil {
			t.Fatalf("GET %s: %v\n%s", path, err, lines.Text())
		}
		extents = append(extents, e)
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	checkExtents(t, path, extents)
	return extents
}

func spansOfExtents(extents []extent) []span {
	spans := make([]span, len(extents))
	for i, e := range extents {
		spans[i] = e.span()
	}
	return merge(spans)
}
