package api_test

import (
	"bytes"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
)

// What is on no route is a problem as well.
func TestNoRoute(t *testing.T) {
	f := start(t, api.Options{}, nil)
	for _, path := range []string{"/", "/v1", "/v1/images/", "/v1/images/a.raw/", "/v1/images/a.raw/nothing", "/v2/images", "//v1/images", "/v1/images/a%2Fb.raw/x"} {
		f.get(t, path).problem(t, 404, "not-found")
		f.do(t, "BREW", path).problem(t, 404, "not-found")
	}
	for path, allowed := range map[string]string{
		"/v1/images": "GET, POST", "/v1/images/a.raw": "GET, PATCH, DELETE", "/v1/images/a.raw/extents": "GET", "/v1/images/a%2Eraw/data": "GET, HEAD, PUT",
		"/v1/images/a.raw/zero": "POST", "/v1/images/a.raw/allocations": "GET, POST", "/v1/images/a.raw/allocations/x": "GET, DELETE",
		"/v1/images/a.raw/allocations/x/data": "PUT", "/v1/images/a.raw/mappings": "POST", "/healthz": "GET",
	} {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
			if strings.Contains(allowed, method) {
				continue
			}
			a := f.do(t, method, path)
			a.problem(t, 405, "method-not-allowed")
			if got := a.header.Get("Allow"); got != allowed {
				t.Errorf("%s %s: Allow %q, want %q", method, path, got, allowed)
			}
		}
	}
}

func TestParameters(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 10_000)
	extents := "/v1/images/disk.raw/extents?"
	for request, want := range map[string][]string{ // field and rule in turn
		extents + "len=5":                                {"len", "unknown"},
		extents + "Offset=5":                             {"Offset", "unknown"},
		extents + "zz=1&offset=x&aa=2":                   {"aa", "unknown", "offset", "syntax", "zz", "unknown"},
		extents + "offset=1&offset=2":                    {"offset", "repeated"},
		extents + "offset=":                              {"offset", "syntax"},
		extents + "offset":                               {"offset", "syntax"},
		extents + "offset=%2B5":                          {"offset", "syntax"},
		extents + "offset=+5":                            {"offset", "syntax"},
		extents + "offset=5.0":                           {"offset", "syntax"},
		extents + "offset=1e3":                           {"offset", "syntax"},
		extents + "offset=0x10":                          {"offset", "syntax"},
		extents + "offset=1_000":                         {"offset", "syntax"},
		extents + "offset=-":                             {"offset", "syntax"},
		extents + "offset=%D9%A1":                        {"offset", "syntax"},
		extents + "offset=-1":                            {"offset", "min"},
		extents + "offset=9223372036854775808":           {"offset", "max"},
		extents + "offset=-9223372036854775809":          {"offset", "max"},
		extents + "length=0":                             {"length", "min"},
		extents + "limit=0":                              {"limit", "min"},
		extents + "limit=100001":                         {"limit", "max"},
		extents + "length=-1&limit=100001":               {"length", "min", "limit", "max"},
		extents + "one=1":                                {"one", "syntax"},
		extents + "one=True":                             {"one", "syntax"},
		extents + "one=":                                 {"one", "syntax"},
		extents + "volunteer=yes":                        {"volunteer", "syntax"},
		extents + "resolve=0":                            {"resolve", "syntax"},
		extents + "a=%zz":                                {"query", "syntax"},
		extents + "offset=1;length=2":                    {"query", "syntax"},
		"/v1/images?limit=0":                             {"limit", "min"},
		"/v1/images?limit=1001":                          {"limit", "max"},
		"/v1/images?cursor=%00":                          {"cursor", "syntax"},
		"/v1/images?cursor=" + strings.Repeat("a", 1025): {"cursor", "max"},
		"/v1/images/disk.raw?x":                          {"x", "unknown"},
		"/v1/images/disk.raw/limits?x=1":                 {"x", "unknown"},
		"/v1/images/disk.raw/data?offset=1":              {"only", "required"},
		"/healthz?verbose=1":                             {"verbose", "unknown"},
	} {
		p := f.get(t, request).problem(t, 400, "invalid-request")
		var got []string
		if p.Errors != nil {
			for _, e := range *p.Errors {
				got = append(got, e.Field, e.Rule)
				if e.Detail == "" || !strings.Contains(p.Detail, e.Detail) {
					t.Errorf("%s: %+v", request, p)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
	many := make(url.Values)
	for i := range 1000 {
		many.Set(strings.Repeat("x", 200)+strconv.Itoa(i), "1")
	}
	a := f.get(t, extents+many.Encode()[:40_000])
	if p := a.problem(t, 400, "invalid-request"); len(*p.Errors) != 16 || len(a.body) > 10_000 {
		t.Errorf("%d errors, %d bytes", len(*p.Errors), len(a.body))
	}
}

func TestHosts(t *testing.T) {
	f := start(t, api.Options{Loopback: true, Hosts: []string{"disks.internal"}}, nil)
	for host, want := range map[string]int{
		"localhost": 200, "localhost:7080": 200, "LocalHost.:80": 200, "127.0.0.1:1": 200, "127.9.9.9": 200, "[::1]:7080": 200, "[::1]": 200,
		"disks.internal": 200, "Disks.Internal:7080": 200,
		"attacker.example": 403, "attacker.example:7080": 403, "localhost.attacker.example": 403, "10.0.0.1": 403, "0.0.0.0:7080": 403, "[::ffff:10.0.0.1]": 403,
	} {
		a := f.get(t, "/v1/images", "Host", host)
		if a.status != want {
			t.Errorf("Host %s: %d, want %d", host, a.status, want)
		}
		if want == 403 {
			a.problem(t, 403, "forbidden")
			f.get(t, "/nowhere", "Host", host).problem(t, 403, "forbidden")
		}
	}
	open := start(t, api.Options{}, nil)
	open.expect(t, 200, "/v1/images", "Host", "any.example")
}

func TestImages(t *testing.T) {
	f := start(t, api.Options{}, nil)
	contractImages(t, f)
	var img api.Image
	decode(t, f.expect(t, 200, "/v1/images/vm.qcow2").body, &img)
	if img.Name != "vm.qcow2" || img.Format != "qcow2" || img.Size != 2*mib || len(img.Layers) != 2 || *img.Layers[0].BackingFile != "base.raw" ||
		img.Layers[1].Size != mib || img.Layers[1].ClusterSize != nil || img.Qcow2 == nil || *img.Layers[0].ClusterSize != 65536 {
		t.Errorf("%+v", img)
	}
	if q := img.Qcow2; len(q.Snapshots) != 1 || q.Snapshots[0].Name != "first" || q.Snapshots[0].VmClock != "0s" || len(q.Bitmaps) != 1 || q.Bitmaps[0].Granularity != 65536 {
		t.Errorf("%+v", q)
	}
	raw := f.expect(t, 200, "/v1/images/disk.raw").body
	if bytes.Contains(raw, []byte("qcow2")) || bytes.Contains(raw, []byte("cluster_size")) || bytes.Contains(raw, []byte("backing")) {
		t.Errorf("%s", raw)
	}
	var limits api.Limits
	decode(t, f.expect(t, 200, "/v1/images/vm.qcow2/limits").body, &limits)
	if limits != img.Limits || limits.Minimum != 1 {
		t.Errorf("%+v, %+v", limits, img.Limits)
	}
	found := map[string]bool{}
	for cursor := ""; ; {
		var list api.ImageList
		decode(t, f.expect(t, 200, "/v1/images?limit=2"+cursor).body, &list)
		for _, e := range list.Images {
			found[e.Name] = e.Problem == nil
			if (e.Problem == nil) != (e.Size != nil) || e.Format == "" {
				t.Errorf("%+v", e)
			}
			if e.Problem != nil && (e.Problem.Status != 422 || e.Problem.Instance != "/v1/images/"+e.Name) {
				t.Errorf("%+v", *e.Problem)
			}
			if e.Name == "vm.qcow2" && (*e.Size != img.Size || *e.Generation != img.Generation || !cmp.Equal(*e.Layers, img.Layers)) {
				t.Errorf("%+v, but alone %+v", e, img)
			}
		}
		if list.Next == nil {
			break
		}
		cursor = "&cursor=" + *list.Next
	}
	want := map[string]bool{"base.raw": true, "corrupt.qcow2": false, "disk.raw": true, "orphan.qcow2": false, "packed.qcow2": true, "vm.qcow2": true, "work.qcow2": true}
	if !maps.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}
