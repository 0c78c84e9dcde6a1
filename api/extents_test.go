package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/storage"
)

const mib = 1 << 20

func (f *fixture) page(t testing.TB, path string, headers ...string) api.ExtentList {
	t.Helper()
	a := f.expect(t, http.StatusOK, path, headers...)
	var list api.ExtentList
	decode(t, a.body, &list)
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	if a.header.Get("Etag") != `"`+list.Generation+`"` || a.header.Get("Vary") != "Accept" {
		t.Errorf("header %v, generation %s", a.header, list.Generation)
	}
	return list
}

func (f *fixture) lines(t testing.TB, path string) []api.Extent {
	t.Helper()
	a := f.expect(t, http.StatusOK, path, "Accept", "application/x-ndjson")
	if got := a.header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("Content-Type %q", got)
	}
	return parseLines(t, a.body)
}

func parseLines(t testing.TB, body []byte) []api.Extent {
	t.Helper()
	var extents []api.Extent
	for line := range bytes.Lines(body) {
		var e api.Extent
		decode(t, line, &e)
		extents = append(extents, e)
	}
	return extents
}

// Pages of every size and lines say the same as the mapper.
func TestExtentsPagesAndLines(t *testing.T) {
	const unit, units = 4096, 3000
	m := striped(unit*units-100, unit)
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": m})
	path := "/v1/images/m.fake/extents"
	all := f.lines(t, path)
	if len(all) != units {
		t.Fatalf("%d extents, want %d", len(all), units)
	}
	for i, e := range all {
		want, _ := m.at(int64(i) * unit)
		ok := e.Offset == int64(i)*unit && e.Length == min(unit, m.size-e.Offset) && e.OffsetValid == (want.Node != nil)
		if ok && e.OffsetValid {
			ok = *e.NodeOffset == want.NodeOffset && *e.Node == "striped.bin"
		}
		if !ok {
			t.Fatalf("extent %d: %+v", i, e)
		}
	}
	for _, limit := range []int{0, 1, 7, 1000, 2999, 3000, 3001, 100_000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			var paged []api.Extent
			for query := "?"; ; {
				q := path + query
				if limit > 0 {
					q += fmt.Sprintf("&limit=%d", limit)
				}
				list := f.page(t, q)
				paged = append(paged, list.Extents...)
				if list.Size != m.size {
					t.Fatalf("size %d", list.Size)
				}
				if list.Next == nil {
					break
				}
				if most := max(limit, 1); limit > 0 && len(list.Extents) != most || limit == 0 && len(list.Extents) != 1000 {
					t.Fatalf("a page of %d, with more to come", len(list.Extents))
				}
				query = fmt.Sprintf("?offset=%d", *list.Next)
				if limit == 1 && len(paged) > 20 {
					paged = append(paged, all[len(paged):]...) // that will do
					break
				}
			}
			if diff := cmp.Diff(all, paged); diff != "" {
				t.Errorf("pages differ from lines:\n%s", diff)
			}
		})
	}
}

func TestExtentsRanges(t *testing.T) {
	const unit = 4096
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": striped(unit*1000, unit), "empty.fake": striped(0, unit)})
	path := "/v1/images/m.fake/extents"
	clipped := f.page(t, path+"?offset=100&length=8000")
	if n := len(clipped.Extents); n != 2 || clipped.Next != nil {
		t.Fatalf("%+v", clipped)
	}
	first, last := clipped.Extents[0], clipped.Extents[1]
	if first.Offset != 100 || first.Length != unit-100 || *first.NodeOffset != mib+100 || last.Offset+last.Length != 8100 {
		t.Errorf("%+v", clipped.Extents)
	}
	if e := f.page(t, path+"?offset=4095999").Extents; len(e) != 1 || e[0].Length != 1 {
		t.Errorf("the last byte: %+v", e)
	}
	one := f.page(t, path+"?offset=5000&one=true")
	if len(one.Extents) != 1 || one.Extents[0].Offset != 5000 || one.Next == nil || *one.Next != 8192 {
		t.Errorf("one: %+v", one)
	}
	if e := f.lines(t, path+"?offset=5000&one=true"); len(e) != 1 || e[0] != one.Extents[0] {
		t.Errorf("one line: %+v", e)
	}
	for _, query := range []string{"", "?offset=0", "?limit=5"} {
		if list := f.page(t, "/v1/images/empty.fake/extents"+query); list.Size != 0 || list.Extents == nil || len(list.Extents) != 0 || list.Next != nil {
			t.Errorf("an empty image: %+v", list)
		}
	}
	if e := f.lines(t, "/v1/images/empty.fake/extents"); len(e) != 0 {
		t.Errorf("lines of an empty image: %v", e)
	}
	for query, name := range map[string]string{
		"offset=4096000":                      "out-of-range",
		"offset=4096001":                      "out-of-range",
		"offset=1&length=4096000":             "out-of-range",
		"length=4096001":                      "out-of-range",
		"offset=9223372036854775807":          "out-of-range",
		"offset=1&length=9223372036854775807": "out-of-range",
		"length=0":                            "invalid-request",
	} {
		f.get(t, path+"?"+query).problem(t, 400, name)
		f.get(t, path+"?"+query, "Accept", "application/x-ndjson").problem(t, 400, name)
	}
	f.get(t, "/v1/images/empty.fake/extents?length=1").problem(t, 400, "out-of-range")
	p := f.get(t, path+"?limit=10", "Accept", "application/x-ndjson").problem(t, 400, "invalid-request")
	if want := (api.FieldError{Field: "limit", Rule: "conflict", Detail: (*p.Errors)[0].Detail}); (*p.Errors)[0] != want {
		t.Errorf("%+v", p.Errors)
	}
}

// What is volunteered is the table around the range, and paging gets on.
func TestExtentsVolunteer(t *testing.T) {
	const unit = 4096
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": striped(unit*table*4, unit)})
	path := fmt.Sprintf("/v1/images/m.fake/extents?volunteer=true&offset=%d&length=%d", unit*(table+100), unit)
	list := f.page(t, path)
	if n := len(list.Extents); n != table || list.Extents[0].Offset != unit*table || list.Next != nil {
		t.Errorf("%d extents from %d, next %v", n, list.Extents[0].Offset, list.Next)
	}
	if lines := f.lines(t, path); !slices.EqualFunc(lines, list.Extents, func(a, b api.Extent) bool { return cmp.Equal(a, b) }) {
		t.Errorf("%d lines, not what the page says", len(lines))
	}
	for _, limit := range []int{1, 2, 3, 10, 99, 100, 300} {
		short := f.page(t, fmt.Sprintf("%s&limit=%d", path, limit))
		before := 0
		covers := false
		for _, e := range short.Extents {
			if e.Offset < unit*(table+100) {
				before++
			}
			covers = covers || e.Offset == unit*(table+100)
		}
		if len(short.Extents) > limit || before > limit/2 || !covers {
			t.Errorf("limit %d: %d extents, %d of them before the range", limit, len(short.Extents), before)
		}
		for i := 1; i < len(short.Extents); i++ {
			if short.Extents[i-1].Offset+short.Extents[i-1].Length != short.Extents[i].Offset {
				t.Fatalf("limit %d: a gap", limit)
			}
		}
	}
	whole := f.page(t, fmt.Sprintf("/v1/images/m.fake/extents?volunteer=true&limit=100&offset=%d", unit*table))
	if whole.Next == nil || *whole.Next <= unit*table {
		t.Errorf("next %v", whole.Next)
	}
	if one := f.page(t, path+"&one=true"); len(one.Extents) != 1 || one.Extents[0].Offset != unit*(table+100) {
		t.Errorf("one: %+v", one.Extents)
	}
}

// A map whose table is bad is refused before anything is sent, or cut off.
func TestExtentsOfABadTable(t *testing.T) {
	const unit = 4096
	bad := func(from int64) *fakeMapper {
		m := striped(unit*1_000_000, unit)
		good := m.at
		m.at = func(off int64) (storage.Mapping, error) {
			if off >= from {
				return storage.Mapping{}, fmt.Errorf("%w: reserved bits", storage.ErrCorrupt)
			}
			return good(off)
		}
		return m
	}
	f := start(t, api.Options{}, map[string]storage.Mapper{"first.fake": bad(0), "early.fake": bad(unit * 600), "late.fake": bad(unit * 100_000)})
	for _, accept := range []string{"application/json", "application/x-ndjson"} {
		query := ""
		if accept == "application/json" {
			query = "?limit=100000"
		}
		for _, name := range []string{"first.fake", "early.fake"} {
			p := f.get(t, "/v1/images/"+name+"/extents"+query, "Accept", accept).problem(t, 422, "corrupt-image")
			if !strings.Contains(p.Detail, "reserved bits") {
				t.Errorf("detail %q", p.Detail)
			}
		}
		a := f.get(t, "/v1/images/late.fake/extents?length="+strconv.Itoa(unit*200_000)+strings.Replace(query, "?", "&", 1), "Accept", accept)
		if accept == "application/json" {
			// 100,000 extents are all good; one more would not be.
			a = f.get(t, "/v1/images/late.fake/extents?offset="+strconv.Itoa(unit*50_000)+"&limit=100000")
		}
		if a.status != 200 || a.err == nil {
			t.Errorf("%s: status %d and a body that ends cleanly after %d bytes", accept, a.status, len(a.body))
		}
	}
	if log := f.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "reserved bits") {
		t.Errorf("the log does not tell of the bodies that were cut off:\n%.2000s", log)
	}
}

// A driver that panics fails its request and nothing else.
func TestExtentsPanic(t *testing.T) {
	m := striped(mib, 4096)
	m.at = func(int64) (storage.Mapping, error) { panic("a bug") }
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": m})
	f.get(t, "/v1/images/m.fake/extents").problem(t, 500, "internal")
	f.expect(t, 200, "/healthz")
	if !strings.Contains(f.log.String(), "a bug") {
		t.Error("the log does not tell of it")
	}
}

// A client that goes away ends the walk, and one that reads slowly holds it up.
func TestExtentsSlowClient(t *testing.T) {
	const unit, units = 4096, 4_000_000
	var reached atomic.Int64
	m := striped(unit*units, unit)
	m.fetched = func(off, _ int64) { reached.Store(off / unit) }
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": m})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/v1/images/m.fake/extents", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
		t.Fatal(err)
	}
	settled := reached.Load()
	for deadline := time.Now().Add(10 * time.Second); ; {
		time.Sleep(200 * time.Millisecond)
		now := reached.Load()
		if now == settled {
			break
		}
		if settled = now; time.Now().After(deadline) {
			t.Fatal("the walk does not wait for its client")
		}
	}
	if settled > units/4 { // sockets hold some megabytes
		t.Errorf("the walk is at %d of %d, and the client at the beginning", settled, units)
	}
	cancel()
	// goleak finds the walk if it does not end.
}

// A map that is slow to walk is sent as it comes.
func TestExtentsSlowMap(t *testing.T) {
	const unit = 4096
	m := striped(unit*table*1000, unit)
	release := make(chan struct{})
	m.fetched = func(off, _ int64) {
		if off >= unit*table*2 {
			<-release
		} else {
			time.Sleep(300 * time.Millisecond)
		}
	}
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": m})
	defer close(release)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/v1/images/m.fake/extents?length="+strconv.Itoa(unit*table*4), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e api.Extent
	if line, err := bufio.NewReader(resp.Body).ReadBytes('\n'); err != nil || json.Unmarshal(line, &e) != nil || e.Length != unit {
		t.Errorf("%s, %v", line, err)
	}
}

// The memory of a stream does not grow with the map.
func TestExtentsMemory(t *testing.T) {
	const unit, units = 4096, 1_000_000
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": striped(unit*units, unit)})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/v1/images/m.fake/extents", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/x-ndjson")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := 0
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		lines += bytes.Count(buf[:n], []byte("\n"))
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if lines != units {
		t.Errorf("%d lines, want %d", lines, units)
	}
	if grown := int64(after.TotalAlloc) - int64(before.TotalAlloc); grown > 16*mib {
		t.Errorf("allocated %d MiB for a map of %d extents", grown/mib, units)
	}
}

func TestExtentsConditions(t *testing.T) {
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": striped(mib, 4096)})
	path := "/v1/images/m.fake/extents"
	etag := f.expect(t, 200, path).header.Get("Etag")
	for _, accept := range []string{"application/json", "application/x-ndjson"} {
		for _, test := range []struct {
			status  int
			headers []string
		}{
			{304, []string{"If-None-Match", etag}},
			{304, []string{"If-None-Match", `"a", W/` + etag}},
			{304, []string{"If-None-Match", `"a"`, "If-None-Match", etag}},
			{304, []string{"If-None-Match", "*"}},
			{200, []string{"If-None-Match", `"a"`}},
			{200, []string{"If-None-Match", ""}},
			{200, []string{"If-Match", `"a", ` + etag}},
			{200, []string{"If-Match", `"a"`, "If-Match", etag}},
			{412, []string{"If-Match", `"a"`}},
			{412, []string{"If-Match", "W/" + etag}},
		} {
			a := f.expect(t, test.status, path, append(test.headers, "Accept", accept)...)
			switch test.status {
			case 304:
				if len(a.body) != 0 || a.header.Get("Etag") != etag || a.header.Get("Vary") != "Accept" {
					t.Errorf("%v: %v", test.headers, a)
				}
			case 412:
				a.problem(t, 412, "precondition-failed")
			}
		}
	}
}
