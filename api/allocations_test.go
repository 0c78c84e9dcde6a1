package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/api"
)

// allocate reserves n bytes.
func (f *fixture) allocate(t testing.TB, image, body string) api.Allocation {
	t.Helper()
	a := f.json(t, "POST", "/v1/images/"+image+"/allocations", body)
	if a.status != http.StatusCreated {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	var got api.Allocation
	decode(t, a.body, &got)
	if at := "/v1/images/" + image + "/allocations/" + got.Id; a.header.Get("Location") != at {
		t.Errorf("Location %q, want %q", a.header.Get("Location"), at)
	}
	return got
}

// update changes the map and returns the new generation.
func (f *fixture) update(t testing.TB, image, updates string, headers ...string) string {
	t.Helper()
	a := f.json(t, "POST", "/v1/images/"+image+"/mappings", `{"updates":[`+updates+`]}`, headers...)
	var got api.MappingResult
	if a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	decode(t, a.body, &got)
	if a.header.Get("Etag") != `"`+got.Generation+`"` {
		t.Errorf("%s, ETag %s", a.body, a.header.Get("Etag"))
	}
	return got.Generation
}

const cluster = 65536

// An upload: reserve, fill in parallel, publish at once.
func TestUploadThroughAnAllocation(t *testing.T) {
	f := start(t, api.Options{}, nil)
	names, content := f.disks(t)
	const image, n, at = "over.qcow2", 40 * cluster, 16 * cluster
	_ = names
	path := "/v1/images/" + image
	a := f.allocate(t, image, fmt.Sprintf(`{"length":%d,"contiguous":true}`, n-1000)) // rounded up
	if a.Length != n || !a.Contiguous || len(a.Extents) != 1 || a.Extents[0].Node != image || a.Extents[0].Length != n || len(a.Mapped) != 0 || time.Until(a.Expires) <= 0 {
		t.Errorf("%+v", a)
	}
	before := f.state(t, image)
	body := pattern(3, n)
	var wg sync.WaitGroup
	const piece = 300_000
	fill := path + "/allocations/" + a.Id + "/data"
	for off := 0; off < n; off += piece {
		wg.Go(func() {
			k := min(piece, n-off)
			f.send(t, "PUT", fill, body[off:off+k], "Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+k-1, n)).noContent(t)
		})
	}
	wg.Wait()
	if f.state(t, image) != before {
		t.Error("what is not mapped is seen")
	}
	f.update(t, image, fmt.Sprintf(`{"offset":%d,"length":%d,"target":{"kind":"data","allocation":"%s","allocation_offset":0}}`, at, n/2, a.Id))
	copy(content[at:], body[:n/2])
	if !bytes.Equal(f.content(t, image), content) {
		t.Error("after the first half")
	}
	var shown api.Allocation
	decode(t, f.expect(t, 200, path+"/allocations/"+a.Id).body, &shown)
	if len(shown.Mapped) != 1 || shown.Mapped[0] != (api.AllocationRange{AllocationOffset: 0, Length: n / 2}) {
		t.Errorf("%+v", shown)
	}
	f.send(t, "PUT", fill, body).problem(t, 409, "conflict")
	f.json(t, "POST", path+"/mappings", fmt.Sprintf(`{"updates":[{"offset":0,"length":%d,"target":{"kind":"data","allocation":"%s","allocation_offset":0}}]}`, cluster, a.Id)).problem(t, 409, "conflict")
	f.update(t, image, fmt.Sprintf(`{"offset":%d,"length":%d,"target":{"kind":"data","allocation":"%s","allocation_offset":%d}}`, at+n/2, n/4, a.Id, n/2))
	copy(content[at+n/2:], body[n/2:3*n/4])
	if !bytes.Equal(f.content(t, image), content) {
		t.Error("after the next quarter")
	}
	f.do(t, "DELETE", path+"/allocations/"+a.Id).noContent(t)
	f.do(t, "DELETE", path+"/allocations/"+a.Id).problem(t, 404, "not-found")
	f.get(t, path+"/allocations/"+a.Id).problem(t, 404, "not-found")
	f.send(t, "PUT", fill, body).problem(t, 404, "not-found")
	if !bytes.Equal(f.content(t, image), content) {
		t.Error("after giving back")
	}
	f.stop(t)
	f.qemu(t, "qemu-img", "check", "-q", image)
}

func TestAllocationList(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "16M")
	path := "/v1/images/disk.qcow2/allocations"
	if a := f.expect(t, 200, path); strings.TrimSpace(string(a.body)) != `{"allocations":[]}` {
		t.Errorf("%s", a.body)
	}
	ids := map[string]bool{}
	for i := range 5 {
		ids[f.allocate(t, "disk.qcow2", fmt.Sprintf(`{"length":%d}`, i+1)).Id] = true
	}
	var list api.AllocationList
	decode(t, f.expect(t, 200, path).body, &list)
	for _, a := range list.Allocations {
		if !ids[a.Id] {
			t.Errorf("%+v", a)
		}
		f.do(t, "DELETE", path+"/"+a.Id).noContent(t)
	}
	if len(list.Allocations) != 5 {
		t.Errorf("%d allocations", len(list.Allocations))
	}
}

// Claimed blocks are others' to stay away from, until they show or are let go.
func TestAnchoredClaim(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "disk.qcow2", "4M")
	const image = "disk.qcow2"
	f.json(t, "POST", "/v1/images/disk.qcow2/zero", fmt.Sprintf(`{"offset":%d,"length":%d,"anchor":true}`, cluster, 2*cluster)).noContent(t)
	a := f.allocate(t, image, fmt.Sprintf(`{"anchored":{"offset":%d,"length":%d}}`, cluster, 2*cluster))
	if a.Length != 2*cluster {
		t.Errorf("%+v", a)
	}
	f.put(t, image, cluster+5, []byte("mine")).problem(t, 409, "conflict")
	f.json(t, "POST", "/v1/images/disk.qcow2/zero", fmt.Sprintf(`{"offset":%d,"length":1}`, cluster)).problem(t, 409, "conflict")
	f.put(t, image, 0, []byte("elsewhere")).noContent(t)
	body := pattern(5, 2*cluster)
	f.send(t, "PUT", "/v1/images/disk.qcow2/allocations/"+a.Id+"/data", body).noContent(t)
	f.update(t, image, fmt.Sprintf(`{"offset":%d,"length":%d,"target":{"kind":"data","allocation":"%s","allocation_offset":0}}`, cluster, 2*cluster, a.Id))
	if got := f.content(t, image); !bytes.Equal(got[cluster:3*cluster], body) || string(got[:9]) != "elsewhere" {
		t.Error("the content differs")
	}
	f.put(t, image, cluster+5, []byte("mine")).noContent(t)
}

// Of clients that update with the same ETag of the map, one succeeds.
func TestMappingsRace(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
	path := "/v1/images/disk.qcow2"
	for range 10 {
		etag := f.expect(t, 200, path+"/extents").header.Get("Etag")
		var won, lost atomic.Int32
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				body := fmt.Sprintf(`{"updates":[{"offset":%d,"length":65536,"target":{"kind":"zero","anchored":true}}]}`, i*cluster)
				a, err := f.trySend(t.Context(), "POST", path+"/mappings", []byte(body), "Content-Type", "application/json", "If-Match", etag)
				switch {
				case err == nil && a.status == 200:
					won.Add(1)
				case err == nil && a.status == 412:
					lost.Add(1)
				default:
					t.Errorf("%v, %d: %s", err, a.status, a.body)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != 3 {
			t.Fatalf("%d won, %d lost", won.Load(), lost.Load())
		}
	}
}

// What is wrong with updates and allocations is told, and nothing is changed.
func TestMappingsRefused(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	for _, image := range []string{"sub.qcow2", "disk.raw"} {
		path := "/v1/images/" + image
		before := f.state(t, image)
		const zero = `"target":{"kind":"zero"}`
		for updates, want := range map[string]string{
			``:   "updates min",
			`{}`: "updates[0].length required, updates[0].offset required, updates[0].target required",
			`{"offset":0,"length":131072,"target":{}}`:                                                         "updates[0].target.kind required",
			`{"offset":0,"length":131072,"target":{"kind":"anchored"}}`:                                        "updates[0].target.kind oneof",
			`{"offset":0,"length":131072,"target":{"kind":"zero","node":"x"}}`:                                 "updates[0].target.node unknown",
			`{"offset":0,"length":131072,"target":{"kind":"data"}}`:                                            "updates[0].target.allocation required, updates[0].target.allocation_offset required",
			`{"offset":0,"length":131072,"target":{"kind":"data","allocation":"x"}}`:                           "updates[0].target.allocation_offset required",
			`{"offset":0,"length":131072,"target":{"kind":"data","allocation":"x","allocation_offset":-1}}`:    "updates[0].target.allocation_offset min",
			`{"offset":0,"length":131072,"target":{"kind":"zero","allocation":"x"}}`:                           "updates[0].target.allocation conflict",
			`{"offset":0,"length":131072,"target":{"kind":"unmapped","anchored":true}}`:                        "updates[0].target.anchored conflict",
			`{"offset":0,"length":131072,` + zero + `},{"offset":0,"length":0,` + zero + `}`:                   "updates[1].length min",
			`{"offset":0,"length":131072,` + zero + `},{"offset":-131072,"length":131072,` + zero + `}`:        "updates[1].offset min",
			`{"offset":0,"length":131072,` + zero + `},{"offset":99999744,"length":131072,` + zero + `}`:       "/problems/out-of-range",
			`{"offset":0,"length":131072,` + zero + `},{"offset":0,"length":9223372036854644736,` + zero + `}`: "/problems/out-of-range",
		} {
			a := f.json(t, "POST", path+"/mappings", `{"updates":[`+updates+`]}`)
			var p api.Problem
			if decode(t, a.body, &p); a.status != 400 || faults(p) != want && p.Type != want {
				t.Errorf("%s: %s: %d %s, want %s", image, updates, a.status, a.body, want)
			}
		}
		if image != "disk.raw" {
			for _, updates := range []string{`{"offset":1,"length":131072,` + zero + `}`, `{"offset":0,"length":512,` + zero + `}`, `{"offset":0,"length":131072,` + zero + `},{"offset":512,"length":131072,` + zero + `}`} {
				if p := f.json(t, "POST", path+"/mappings", `{"updates":[`+updates+`]}`).problem(t, 400, "misaligned"); *p.Minimum < 65536 {
					t.Errorf("%s: %+v", image, p)
				}
			}
			f.json(t, "POST", path+"/mappings", `{"updates":[{"offset":0,"length":131072,"target":{"kind":"data","allocation":"a-none","allocation_offset":0}}]}`).problem(t, 404, "not-found")
		} else {
			f.json(t, "POST", path+"/mappings", `{"updates":[{"offset":0,"length":131072,"target":{"kind":"data","allocation":"a-none","allocation_offset":0}}]}`).problem(t, 422, "unsupported-feature")
			f.json(t, "POST", path+"/allocations", `{"length":65536}`).problem(t, 422, "unsupported-feature")
		}
		f.json(t, "POST", path+"/mappings", `{"updates":[{"offset":0,"length":131072,`+zero+`}]}`, "If-Match", `"other"`).problem(t, 412, "precondition-failed")
		many := `{"updates":[` + strings.Repeat(`{"offset":0,"length":131072,`+zero+`},`, 10_000)
		p := f.json(t, "POST", path+"/mappings", many+`{"offset":0,"length":131072,`+zero+`}]}`).problem(t, 413, "too-large")
		if *p.Limit != 10_000 {
			t.Errorf("%+v", p)
		}
		if p := f.json(t, "POST", path+"/mappings", many+strings.Repeat(" ", 4<<20)).problem(t, 413, "too-large"); *p.Limit != 4<<20 {
			t.Errorf("%+v", p)
		}
		for body, want := range map[string]string{
			`{}`:                  "length required",
			`{"contiguous":true}`: "length required",
			`{"length":0}`:        "length min",
			`{"length":1,"anchored":{"offset":0,"length":65536}}`:        "length conflict",
			`{"contiguous":true,"anchored":{"offset":0,"length":65536}}`: "contiguous conflict",
			`{"anchored":{"offset":-1,"length":0}}`:                      "anchored.length min, anchored.offset min",
			`{"anchored":{"offset":0}}`:                                  "anchored.length required",
		} {
			if got := faults(f.json(t, "POST", path+"/allocations", body).problem(t, 400, "invalid-request")); got != want {
				t.Errorf("%s: %s, want %s", body, got, want)
			}
		}
		if f.state(t, image) != before {
			t.Errorf("%s has changed", image)
		}
	}
}
