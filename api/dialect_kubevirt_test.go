package api_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage"
)

const exportToken = "X-Kubevirt-Export-Token"

// An exportPage is a page of a map.
type exportPage struct {
	Extents     []exportExtent `json:"extents"`
	NextOffset  *int64         `json:"next_offset"`
	VirtualSize int64          `json:"virtual_size"`
}

type exportExtent struct {
	Offset      int64  `json:"offset"`
	Length      int64  `json:"length"`
	Type        int    `json:"type"`
	Description string `json:"description"`
}

// Real answers of every call and of every status keep to the contract.
func TestKubevirtKeepsItsContract(t *testing.T) {
	f := startDialects(t, api.Options{})
	c := &contract{t: t, f: f, doc: loadDialect(t, "kubevirt"), seen: map[string]bool{}}
	const pageOf, dataOf = "/exports/{disk}/map", "/exports/{disk}/data"
	all := []string{exportToken, tokenFor(auth.Map | auth.Read), "disk"}
	on := func(disk string, more ...string) []string { return append(append(all[:3:3], disk), more...) }
	for _, pattern := range []string{pageOf, dataOf} {
		c.check(200, "GET", pattern, "?offset=5&length=70000", on("disk.raw")...)
		for _, query := range []string{"?offset=-1", "?length=x", "?offset=1&offset=2", "?offset=%zz"} {
			c.check(400, "GET", pattern, query, on("disk.raw")...)
		}
		c.check(400, "GET", pattern, "", on("disk.raw@")...)
		c.check(400, "GET", pattern, "", on("no name")...)
		c.check(401, "GET", pattern, "", "disk", "disk.raw")
		c.check(403, "GET", pattern, "", "disk", "disk.raw", exportToken, tokenFor(auth.Write))
		c.check(404, "GET", pattern, "", on("other.raw")...)
		c.check(404, "GET", pattern, "", on("dnone.raw")...)
		c.check(416, "GET", pattern, "?offset=100000", on("disk.raw")...)
		c.check(422, "GET", pattern, "", on("dcorrupt.qcow2")...)
	}
	c.check(200, "GET", pageOf, "?page_size=1", on("disk.qcow2")...)
	c.check(200, "GET", pageOf, "", on("dirty.qcow2@first")...)
	c.check(400, "GET", pageOf, "?page_size=0", on("disk.raw")...)
	c.check(404, "GET", pageOf, "", on("dirty.qcow2@second")...)
	c.check(422, "GET", pageOf, "", on("disk.raw@first")...)
	c.check(409, "GET", pageOf, "", on("dcrash.qcow2@crashed")...)
	c.check(200, "GET", pageOf, "", on("dtwo.qcow2@"+oddBitmap)...)
	etag := c.check(206, "GET", dataOf, "?offset=5", on("disk.raw", "Range", "bytes=7-")...).header.Get("ETag")
	c.check(304, "GET", dataOf, "", on("disk.raw", "If-None-Match", etag)...)
	c.check(412, "GET", dataOf, "", on("disk.raw", "If-Match", `"stale"`)...)
	c.check(200, "HEAD", dataOf, "", on("disk.raw")...)
	c.check(401, "HEAD", dataOf, "", "disk", "disk.raw")
	c.check(200, "GET", "/kubevirt/openapi.yaml", "")
	c.complete(map[string]bool{"getMap default": true, "getData default": true, "headData default": true})
}

// Callers present a token, a ticket, or what they present elsewhere.
func TestKubevirtTokens(t *testing.T) {
	f := startDialects(t, api.Options{})
	token, ticket := tokenFor(auth.Map), f.ticket(t, "disk.raw", auth.Map)
	const path = "/exports/disk.raw/map"
	for _, c := range []struct {
		query  string
		header []string
		want   int
	}{
		{"", []string{exportToken, token}, 200},
		{"", []string{exportToken, ticket}, 200},
		{"?x-kubevirt-export-token=" + token, nil, 200},
		{"?x-kubevirt-export-token=" + ticket + "&offset=0", nil, 200},
		{"?x-kubevirt-export-token=" + token, []string{exportToken, token}, 200},
		{"?x-kubevirt-export-token=", []string{exportToken, token}, 200},
		{"", []string{"Authorization", "Bearer " + token}, 200},
		{"?ticket=" + ticket, nil, 200},
		{"", nil, 401},
		{"", []string{exportToken, ""}, 401},
		{"", []string{exportToken, "wrong"}, 401},
		{"", []string{exportToken, "wrong", "Authorization", "Bearer " + token}, 401},
		{"?x-kubevirt-export-token=wrong", []string{exportToken, token}, 401},
		{"?X-Kubevirt-Export-Token=" + token, nil, 401},
		{"?x-kubevirt-export-token=" + token + "&x-kubevirt-export-token=" + token, nil, 400},
		{"", []string{exportToken, token, exportToken, token}, 400},
	} {
		if a := f.get(t, path+c.query, c.header...); a.status != c.want {
			t.Errorf("%s %v: %d, want %d: %s", c.query, c.header, a.status, c.want, a.body)
		}
	}
	for v := auth.Verbs(1); v <= auth.All; v++ {
		for path, may := range map[string]bool{path: v.Has(auth.Map) || v.Has(auth.Read), "/exports/disk.raw/data": v.Has(auth.Read)} {
			want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[may]
			if a := f.get(t, path, exportToken, tokenFor(v)); a.status != want {
				t.Errorf("%s with %v: %d, want %d", path, v, a.status, want)
			}
		}
	}
	if a := f.get(t, "/exports/other.raw/map", exportToken, ticket); a.status != 404 {
		t.Errorf("a ticket for another image: %d", a.status)
	}
	open := start(t, api.Options{Dialects: allDialects()}, nil)
	open.random(t, "disk.raw", 512)
	if a := open.get(t, path, exportToken, "anything"); a.status != 200 {
		t.Errorf("without authentication: %d %s", a.status, a.body)
	}
}

// pages follows the pages of a map.
func (f *fixture) pages(t testing.TB, url string, page int) (all []exportExtent) {
	t.Helper()
	for offset := int64(0); ; {
		var p exportPage
		decode(t, f.expect(t, 200, fmt.Sprintf("%s?offset=%d&page_size=%d", url, offset, page)).body, &p)
		if len(p.Extents) > page {
			t.Fatalf("a page of %d extents has %d", page, len(p.Extents))
		}
		all = append(all, p.Extents...)
		if p.NextOffset == nil {
			return all
		}
		last := p.Extents[len(p.Extents)-1]
		if *p.NextOffset != last.Offset+last.Length || len(p.Extents) != page {
			t.Fatalf("next_offset %d after %d extents, the last of them %+v", *p.NextOffset, len(p.Extents), last)
		}
		offset = *p.NextOffset
	}
}

// Pages of any size are the same map, without gaps, neighbours of one type joined,
// and so is a map of which each extent takes many pieces to send.
func TestKubevirtPages(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const unit, count = 512, 6000
	node := storage.NewNode("random.bin", nil, storage.NodeOptions{})
	kinds := []storage.Mapping{
		{Status: storage.Local | storage.Alloc | storage.OffsetValid, Node: node},
		{Status: storage.Local | storage.Zero},
		{Status: storage.Local | storage.Zero | storage.Alloc},
	}
	var mappings [count]storage.Mapping
	for i := range mappings {
		mappings[i] = kinds[r.IntN(len(kinds))]
		mappings[i].NodeOffset = int64(r.IntN(1000)) * unit * 2 // no two are one
	}
	m := &fakeMapper{size: unit * count, unit: unit, at: func(off int64) (storage.Mapping, error) { return mappings[off/unit], nil }}
	f := start(t, api.Options{Dialects: allDialects()}, map[string]storage.Mapper{"random.fake": m})
	var want []exportExtent
	for i := range mappings {
		kind, text := 0, "data"
		switch mappings[i].Status {
		case kinds[1].Status:
			kind, text = 3, "hole,zero"
		case kinds[2].Status:
			kind, text = 2, "zero"
		}
		if n := len(want); n > 0 && want[n-1].Type == kind {
			want[n-1].Length += unit
			continue
		}
		want = append(want, exportExtent{int64(i) * unit, unit, kind, text})
	}
	for _, page := range []int{1 + r.IntN(5), 512, len(want) - 1, len(want), len(want) + 1, 1 << 40} {
		if page < 10 {
			continue // one request for each few extents: with a part of the map, below
		}
		if diff := cmp.Diff(want, f.pages(t, "/exports/random.fake/map", page)); diff != "" {
			t.Fatalf("pages of %d (-want +got):\n%.2000s", page, diff)
		}
	}
	var p exportPage
	for range 50 {
		first := r.IntN(len(want))
		e := want[first]
		offset, page := e.Offset+r.Int64N(e.Length), 1+r.IntN(3)
		decode(t, f.expect(t, 200, fmt.Sprintf("/exports/random.fake/map?offset=%d&page_size=%d&length=%d", offset, page, 1+r.IntN(5000))).body, &p)
		if p.Extents[0].Offset != offset || p.Extents[0].Type != e.Type || len(p.Extents) > page || p.VirtualSize != unit*count {
			t.Fatalf("at %d, %d extents: %+v, want %+v", offset, page, p, e)
		}
	}
}

// What the parameters select is what there is, and Range asks for a part of that.
func TestKubevirtData(t *testing.T) {
	f := startDialects(t, api.Options{})
	content, err := os.ReadFile(filepath.Join(f.dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		query, ranges string
		from, to      int
		contentRange  string
	}{
		{"", "", 0, 100_000, ""},
		{"?offset=", "", 0, 100_000, ""},
		{"?offset=99999", "", 99_999, 100_000, ""},
		{"?offset=10&length=20", "", 10, 30, ""},
		{"?offset=10&length=0", "", 10, 100_000, ""},
		{"?offset=10&length=18446744073709551615", "", 10, 100_000, ""},
		{"?length=200000", "", 0, 100_000, ""},
		{"?offset=10&length=20", "bytes=5-6", 15, 17, "bytes 5-6/20"},
		{"?offset=10&length=20", "bytes=5-", 15, 30, "bytes 5-19/20"},
		{"?offset=10&length=20", "bytes=-3", 27, 30, "bytes 17-19/20"},
		{"?offset=10&length=20", "bytes=0-1000", 10, 30, "bytes 0-19/20"},
		{"?offset=10&length=20", "bytes=1-2,5-6", 10, 30, ""},
		{"?offset=10&length=20", "nonsense", 10, 30, ""},
	} {
		header := []string{exportToken, tokenFor(auth.Read)}
		status := 200
		if c.ranges != "" {
			header = append(header, "Range", c.ranges)
		}
		if c.contentRange != "" {
			status = 206
		}
		a := f.expect(t, status, "/exports/disk.raw/data"+c.query, header...)
		if !bytes.Equal(a.body, content[c.from:c.to]) || a.header.Get("Content-Range") != c.contentRange || a.header.Get("Content-Length") != fmt.Sprint(c.to-c.from) {
			t.Errorf("%s %s: %d bytes, want %d: %v", c.query, c.ranges, len(a.body), c.to-c.from, a.header)
		}
		if a := f.do(t, "HEAD", "/exports/disk.raw/data"+c.query, exportToken, tokenFor(auth.Read)); c.ranges == "" && a.header.Get("Content-Length") != fmt.Sprint(c.to-c.from) {
			t.Errorf("HEAD %s: %v", c.query, a.header)
		}
	}
	a := f.get(t, "/exports/disk.raw/data?offset=10&length=20", exportToken, tokenFor(auth.Read), "Range", "bytes=20-")
	a.refusal(t, "outside", 416)
	if a.header.Get("Content-Range") != "bytes */20" {
		t.Errorf("%v", a.header)
	}
	for _, path := range []string{"/exports/disk.raw", "/exports/disk.raw/map/x", "/exports/"} {
		f.get(t, path, exportToken, tokenFor(auth.Read)).refusal(t, path, 404)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		a := f.do(t, method, "/exports/disk.raw/map", exportToken, tokenFor(auth.All))
		a.refusal(t, method, 405)
		if a.header.Get("Allow") != "GET" {
			t.Errorf("%s: %v", method, a.header)
		}
	}
}

// An image without bytes has an empty map, and ends at once.
func TestDialectsOfAnEmptyImage(t *testing.T) {
	f := startDialects(t, api.Options{})
	f.write(t, "dempty.raw", nil)
	url := "/images/" + f.ticket(t, "dempty.raw", auth.All)
	for path, want := range map[string]string{url: "", url + "/extents": "[]\n", "/exports/dempty.raw/data": "", "/exports/dempty.raw/map": `{"extents":[],"next_offset":null,"virtual_size":0}` + "\n"} {
		if got := string(f.expect(t, 200, path, exportToken, tokenFor(auth.Map|auth.Read)).body); got != want {
			t.Errorf("%.10s: %q, want %q", path, got, want)
		}
	}
	if a := f.send(t, "PUT", url, []byte("x")); a.status != 416 || !strings.Contains(a.header.Get("Content-Range"), "*/0") {
		t.Errorf("%d %v", a.status, a.header)
	}
}
