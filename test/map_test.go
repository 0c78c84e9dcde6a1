package test

import (
	"fmt"
	"net/http"
	"testing"
)

// TestMap compares the map of every kind of image, asked for in every way,
// with `qemu-img map`.
func TestMap(t *testing.T) {
	s := serve(t, served, "--debug") // every layer's answer is checked as well
	eachKind(t, func(t *testing.T, k *kind) {
		want := k.spans(t)
		if k.windows != nil {
			for _, w := range k.windows {
				p := s.page(t, k.file, "offset", w.offset, "length", w.length)
				sameMap(t, "a window", spansOfExtents(p.Extents), clip(want, w.offset, w.offset+w.length))
				sameMap(t, "a window's NDJSON", spansOfExtents(s.stream(t, k.file, "offset", w.offset, "length", w.length)),
					clip(want, w.offset, w.offset+w.length))
			}
			wholeHuge(t, s, k)
			return
		}
		all := onePage(t, s, k)
		sameMap(t, "one page", spansOfExtents(all), want)
		checkDetails(t, k, all)
		checkNodes(t, s, k, all)
		sameMap(t, "NDJSON", spansOfExtents(s.stream(t, k.file)), want)
		sameMap(t, "pages of 7", spansOfExtents(pagesOf(t, s, k, 7)), want)
		sameMap(t, "one by one", oneByOne(t, s, k), want)
		partOfMap(t, s, k, want)
		volunteered(t, s, k, want)
		topLayer(t, s, k, want)
	})
}

func sameMap(t *testing.T, what string, got, want []span) {
	t.Helper()
	if diff := difference(merge(got), merge(want)); diff != "" {
		t.Fatalf("%s differs from qemu-img map: %s", what, diff)
	}
}

// difference tells where two maps, or other lists, begin to differ; "" if they
// do not.
func difference[T comparable](got, want []T) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%d lines, want %d, the next being %+v", len(got), len(want), want[i])
		case i >= len(want):
			return fmt.Sprintf("%d lines, want %d, the next being %+v", len(got), len(want), got[i])
		case got[i] != want[i]:
			return fmt.Sprintf("line %d of %d is %+v, want %+v", i, len(want), got[i], want[i])
		}
	}
	return ""
}

func onePage(t *testing.T, s *server, k *kind) []extent {
	t.Helper()
	p := s.page(t, k.file, "limit", 100_000)
	if *p.Size != k.size || p.Next != nil {
		t.Fatalf("size %d and next %v, want %d and none", *p.Size, p.Next, k.size)
	}
	return p.Extents
}

// pagesOf follows next to the end.
func pagesOf(t *testing.T, s *server, k *kind, limit int) []extent {
	t.Helper()
	var all []extent
	for next := int64(0); ; {
		p := s.page(t, k.file, "limit", limit, "offset", next)
		all = append(all, p.Extents...)
		if p.Next == nil {
			return all
		}
		if len(p.Extents) != limit {
			t.Fatalf("a page of %d extents at %d, and more to come: want %d", len(p.Extents), next, limit)
		}
		if at := p.Extents[limit-1].end(); *p.Next != at || at <= next {
			t.Fatalf("next is %d after extents from %d to %d", *p.Next, next, at)
		}
		next = *p.Next
	}
}

func oneByOne(t *testing.T, s *server, k *kind) []span {
	t.Helper()
	var all []extent
	for at := int64(0); at < k.size; {
		p := s.page(t, k.file, "one", true, "offset", at)
		if len(p.Extents) != 1 || *p.Extents[0].Offset != at {
			t.Fatalf("one=true at %d: %v", at, p.Extents)
		}
		all = append(all, p.Extents[0])
		at = p.Extents[0].end()
	}
	return spansOfExtents(all)
}

// partOfMap asks for random ranges: they are clipped to what was asked.
func partOfMap(t *testing.T, s *server, k *kind, want []span) {
	t.Helper()
	random := source(k.name + " parts")
	for range 10 {
		if k.size == 0 {
			return
		}
		off := random.Int64N(k.size)
		length := 1 + random.Int64N(k.size-off)
		p := s.page(t, k.file, "offset", off, "length", length, "limit", 100_000)
		sameMap(t, fmt.Sprintf("the part of %d at %d", length, off), spansOfExtents(p.Extents), clip(want, off, off+length))
	}
}

// volunteered may say more than was asked for, and only what is true.
func volunteered(t *testing.T, s *server, k *kind, want []span) {
	t.Helper()
	if k.size == 0 {
		return
	}
	off := k.size / 3
	length := min(512, k.size-off)
	extents := s.page(t, k.file, "offset", off, "length", length, "volunteer", true, "limit", 100_000).Extents
	first, last := *extents[0].Offset, extents[len(extents)-1].end()
	if first > off || last < off+length {
		t.Errorf("volunteered %d to %d, which does not cover %d bytes at %d", first, last, length, off)
	}
	sameMap(t, "what was volunteered", spansOfExtents(extents), clip(want, first, last))
}

// topLayer compares resolve=false with what QEMU finds at depth 0.
func topLayer(t *testing.T, s *server, k *kind, want []span) {
	t.Helper()
	extents := s.page(t, k.file, "resolve", false, "limit", 100_000).Extents
	got := spansOfExtents(extents)
	for i := range extents {
		if *extents[i].Depth != 0 {
			t.Fatalf("resolve=false and depth %d: %v", *extents[i].Depth, extents[i])
		}
	}
	for _, w := range want {
		for _, g := range clip(got, w.Start, w.end()) {
			switch {
			case w.Depth == 0 && w.Present:
				if merged := clip([]span{w}, g.Start, g.end()); g != merged[0] {
					t.Fatalf("resolve=false says %+v, want %+v", g, merged[0])
				}
			case g.Present:
				t.Fatalf("resolve=false says %+v is local, but qemu-img %+v", g, w)
			}
		}
	}
}

// checkDetails verifies what `qemu-img map` tells only indirectly: data
// without an offset is compressed or encrypted, and where storage is.
func checkDetails(t *testing.T, k *kind, extents []extent) {
	t.Helper()
	i := 0
	for _, line := range k.lines(t) {
		for i < len(extents) && extents[i].end() <= line.Start {
			i++
		}
		for j := i; j < len(extents) && *extents[j].Offset < line.Start+line.Length; j++ {
			e := extents[j]
			opaque := line.Data && line.Offset == nil
			if k.unreadable != "" {
				// What is encrypted has a place in the file, but no bytes there for a reader.
				if line.Data != (e.Encrypted != nil) || e.Compressed != nil {
					t.Fatalf("%v: encrypted, where qemu-img says %+v", e, line)
				}
			} else if opaque != (e.Compressed != nil) || e.Encrypted != nil {
				t.Fatalf("%v: compressed, where qemu-img says %+v", e, line)
			}
			switch {
			case !line.Zero && !*e.Alloc:
				t.Fatalf("%v is data without storage", e)
			case line.Zero && line.Offset == nil && *e.Alloc:
				t.Fatalf("%v: storage where qemu-img says %+v", e, line)
			}
		}
	}
}

// checkNodes verifies that the nodes are those of the image's layers.
func checkNodes(t *testing.T, s *server, k *kind, extents []extent) {
	t.Helper()
	var img image
	s.getJSON(t, &img, "/v1/images/"+k.file)
	names := map[int]string{}
	for _, e := range extents {
		if *e.Depth >= len(img.Layers) {
			t.Fatalf("%v: the image has %d layers", e, len(img.Layers))
		}
		if e.Node == nil {
			continue
		}
		layer := img.Layers[*e.Depth]
		if name := names[*e.Depth]; name != "" && name != *e.Node {
			t.Fatalf("%v: other extents of its layer are in %s", e, name)
		}
		names[*e.Depth] = *e.Node
		if external := img.QCOW2 != nil && img.QCOW2.DataFile != "" && *e.Depth == 0; !external && *e.Node != layer.Node && k.name != "over-data-file" {
			t.Fatalf("%v: its layer's node is %s", e, layer.Node)
		}
	}
}

// wholeHuge walks a map that QEMU needs hours for: it is whole, and short.
func wholeHuge(t *testing.T, s *server, k *kind) {
	t.Helper()
	extents := s.stream(t, k.file)
	if len(extents) == 0 || *extents[0].Offset != 0 || extents[len(extents)-1].end() != k.size || len(extents) > 1000 {
		t.Errorf("%d extents do not cover %d bytes", len(extents), k.size)
	}
	paged := pagesOf(t, s, k, 7)
	sameMap(t, "pages of 7", spansOfExtents(paged), spansOfExtents(extents))
}

// TestMapConditions asks with generations.
func TestMapConditions(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	path := extentsPath(k.file)
	header, _ := s.expect(t, http.StatusOK, path)
	etag := header.Get("ETag")
	for _, accept := range []string{"application/json", "application/x-ndjson"} {
		header, body := s.expect(t, http.StatusNotModified, path, "Accept", accept, "If-None-Match", `"other", `+etag)
		if len(body) != 0 || header.Get("ETag") != etag {
			t.Errorf("304 with a body of %d bytes and ETag %s", len(body), header.Get("ETag"))
		}
		s.expect(t, http.StatusOK, path, "Accept", accept, "If-None-Match", `"other"`)
		s.expect(t, http.StatusOK, path, "Accept", accept, "If-Match", etag)
		s.expectProblem(t, http.StatusPreconditionFailed, "precondition-failed", path, "Accept", accept, "If-Match", `"other"`)
	}
}

// TestMapParameters asks for what cannot be.
func TestMapParameters(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	for _, test := range []struct {
		query, problem string
	}{
		{"limit=0", "invalid-request"},
		{"limit=100001", "invalid-request"},
		{"limit=-1", "invalid-request"},
		{"limit=x", "invalid-request"},
		{"size=512", "invalid-request"},
		{"one=maybe", "invalid-request"},
		{"offset=-1", "invalid-request"},
		{"offset=9223372036854775808", "invalid-request"},
		{"length=-1", "invalid-request"},
		{"length=0", "invalid-request"},
		{"limit=5&limit=6", "invalid-request"},
		{fmt.Sprint("offset=", k.size), "out-of-range"},
		{fmt.Sprint("offset=512&length=", k.size), "out-of-range"},
		{"offset=9223372036854775807&length=9223372036854775807", "out-of-range"},
	} {
		t.Run(test.query, func(t *testing.T) {
			s.expectProblem(t, http.StatusBadRequest, test.problem, "/v1/images/"+k.file+"/extents?"+test.query)
		})
	}
}

func kindNamed(t *testing.T, name string) *kind {
	t.Helper()
	for _, k := range kinds {
		if k.name == name {
			k.ready(t)
			return k
		}
	}
	t.Fatalf("no kind %q", name)
	return nil
}
