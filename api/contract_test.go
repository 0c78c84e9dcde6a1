package api_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func loadSpec(t testing.TB) (*openapi3.T, []byte) {
	t.Helper()
	text, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	return doc, text
}

// The contract is a valid document, and its examples keep to its schemas.
func TestContractIsValid(t *testing.T) {
	doc, _ := loadSpec(t)
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		t.Error(err)
	}
	ids := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s %s: operationId, summary or tag is missing or not unique", method, path)
			}
			ids[op.OperationID] = true
		}
	}
}

// Every route is in the contract, and back.
func TestRoutesAreThoseOfTheContract(t *testing.T) {
	doc, _ := loadSpec(t)
	contract := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			contract[method+" "+path] = true
		}
	}
	svc, err := service.New(service.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	routes := map[string]bool{}
	err = chi.Walk(api.New(svc, api.Options{}).(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routes[method+" "+route] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(contract, routes); diff != "" {
		t.Errorf("routes differ from the contract (-contract +routes):\n%s", diff)
	}
}

// contractImages makes images of every kind of answer.
func contractImages(t *testing.T, f *fixture) {
	f.random(t, "disk.raw", 100_000)
	f.write(t, "corrupt.qcow2", []byte("QFI\xfb and no more"))
	f.qemu(t, "qemu-img", "create", "-q", "-f", "raw", "base.raw", "1M")
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "vm.qcow2", "2M")
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -z 64k 64k", "vm.qcow2")
	f.qemu(t, "qemu-img", "snapshot", "-c", "first", "vm.qcow2")
	f.qemu(t, "qemu-img", "bitmap", "--add", "vm.qcow2", "backup")
	f.qemu(t, "qemu-img", "convert", "-c", "-O", "qcow2", "disk.raw", "packed.qcow2")
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "missing.raw", "-F", "raw", "orphan.qcow2", "1M")
}

// Real answers of every call and of every status keep to the contract.
func TestAnswersKeepTheContract(t *testing.T) {
	for _, media := range []string{"application/x-ndjson", "application/yaml", "multipart/byteranges"} {
		openapi3filter.RegisterBodyDecoder(media, openapi3filter.PlainBodyDecoder) // text to the contract
	}
	doc, text := loadSpec(t)
	var ready error
	aligned := striped(mib, 512)
	aligned.limits.Minimum = 512
	f := start(t, api.Options{Spec: text, Loopback: true, Ready: func() error { return ready }}, map[string]storage.Mapper{
		"busy.fake":    unopenable{err: fmt.Errorf("fake: %w", storage.ErrBusy)},
		"io.fake":      unopenable{err: fmt.Errorf("fake: %w", syscall.EIO)},
		"aligned.fake": aligned,
	})
	contractImages(t, f)
	c := &contract{t: t, f: f, doc: doc, seen: map[string]bool{}}

	c.check(200, "GET", "/v1/images", "")
	c.check(200, "GET", "/v1/images", "?limit=2")
	c.check(400, "GET", "/v1/images", "?limit=0")
	c.check(400, "GET", "/v1/images", "?cursor=!")
	for _, call := range []string{"", "/limits", "/extents", "/data"} {
		path := "/v1/images/{image}" + call
		for _, name := range []string{"vm.qcow2", "packed.qcow2", "disk.raw"} {
			c.check(200, "GET", path, "", "image", name)
		}
		for status, name := range map[int]string{400: "-", 404: "nothing.raw", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"} {
			c.check(status, "GET", path, "", "image", name)
		}
		c.check(422, "GET", path, "", "image", "orphan.qcow2")
		c.check(400, "GET", path, "?x=1", "image", "disk.raw")
	}
	extents := "/v1/images/{image}/extents"
	etag := c.check(200, "GET", extents, "?one=true&resolve=false&volunteer=true", "image", "vm.qcow2").header.Get("Etag")
	c.check(200, "GET", extents, "?limit=1", "image", "vm.qcow2")
	c.check(200, "GET", extents, "", "image", "vm.qcow2", "Accept", "application/x-ndjson")
	c.check(304, "GET", extents, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "GET", extents, "", "image", "vm.qcow2", "If-Match", `"other"`)
	c.check(400, "GET", extents, "?offset=99999999", "image", "vm.qcow2")
	data := "/v1/images/{image}/data"
	etag = c.check(206, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=0-4095").header.Get("Etag")
	c.check(206, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=0-4095,8192-")
	c.check(304, "GET", data, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "GET", data, "", "image", "vm.qcow2", "If-Match", `"other"`)
	c.check(416, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=99999999-")
	c.check(400, "GET", data, "", "image", "aligned.fake", "Range", "bytes=1-2")
	c.check(200, "HEAD", data, "", "image", "vm.qcow2")
	c.check(304, "HEAD", data, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "HEAD", data, "", "image", "vm.qcow2", "If-Match", `"other"`)
	for status, name := range map[int]string{400: "-", 404: "nothing.raw", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"} {
		c.check(status, "HEAD", data, "", "image", name)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml"} {
		c.check(200, "GET", path, "")
		c.check(400, "GET", path, "?x=1")
	}
	ready = errors.New("draining")
	c.check(503, "GET", "/readyz", "")
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			c.check(403, method, path, "", "image", "disk.raw", "Host", "attacker.example")
		}
	}
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	c.complete(map[string]bool{"listImages 500": true})
}

// A contract compares answers with what openapi.yaml says of them.
type contract struct {
	t    *testing.T
	f    *fixture
	doc  *openapi3.T
	seen map[string]bool // "operationId status"
}

// check calls an operation and validates its answer. The pairs are headers, but
// for image, which goes into the path.
func (c *contract) check(status int, method, pattern, query string, pairs ...string) answer {
	c.t.Helper()
	path := pattern
	var headers []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] == "image" {
			path = strings.Replace(path, "{image}", url.PathEscape(pairs[i+1]), 1)
			continue
		}
		headers = append(headers, pairs[i], pairs[i+1])
	}
	what := fmt.Sprintf("%s %s%s %v", method, path, query, headers)
	a := c.f.do(c.t, method, path+query, headers...)
	if a.status != status || a.err != nil {
		c.t.Errorf("%s: status %d, want %d: %v\n%.500s", what, a.status, status, a.err, a.body)
		return a
	}
	item := c.doc.Paths.Value(pattern)
	op := item.GetOperation(method)
	c.seen[fmt.Sprintf("%s %d", op.OperationID, status)] = true
	response := op.Responses.Status(status)
	if response == nil {
		c.t.Errorf("%s: status %d is not in the contract", what, status)
		return a
	}
	c.headers(what, a, response.Value)
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.f.url+path+query, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: req,
			Route:   &routers.Route{Spec: c.doc, Path: pattern, PathItem: item, Method: method, Operation: op},
		},
		Status:  a.status,
		Header:  a.header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	input.SetBodyBytes(a.body)
	if err := openapi3filter.ValidateResponse(c.t.Context(), input); err != nil {
		c.t.Errorf("%s: %v\n%.1000s", what, err, a.body)
	}
	return a
}

// headers checks what openapi3filter does not: answers to HEAD, 304, and that
// nothing is sent where the contract says nothing of a body.
func (c *contract) headers(what string, a answer, response *openapi3.Response) {
	for name, header := range response.Headers {
		value := a.header.Get(name)
		if header.Value.Required && value == "" {
			c.t.Errorf("%s: status %d without %s", what, a.status, name)
		}
		if value != "" && header.Value.Schema.Value.Type.Is("integer") {
			if _, err := strconv.ParseInt(value, 10, 64); err != nil {
				c.t.Errorf("%s: %s: %v", what, name, err)
			}
		}
	}
	if len(response.Content) == 0 && len(a.body) > 0 {
		c.t.Errorf("%s: status %d with a body of %d bytes", what, a.status, len(a.body))
	}
	if a.header.Get("X-Request-Id") == "" {
		c.t.Errorf("%s: no X-Request-Id", what)
	}
}

// complete fails for statuses of the contract that no answer had.
func (c *contract) complete(except map[string]bool) {
	for _, item := range c.doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				if key := op.OperationID + " " + status; !c.seen[key] && !except[key] {
					c.t.Errorf("no answer had the status of %s", key)
				}
			}
		}
	}
}

// What is on no route is a problem as well.
func TestNoRoute(t *testing.T) {
	f := start(t, api.Options{}, nil)
	for _, path := range []string{"/", "/v1", "/v1/images/", "/v1/images/a.raw/", "/v1/images/a.raw/nothing", "/v2/images", "//v1/images", "/v1/images/a%2Fb.raw/x"} {
		f.get(t, path).problem(t, 404, "not-found")
		f.do(t, "BREW", path).problem(t, 404, "not-found")
	}
	for path, allowed := range map[string]string{
		"/v1/images": "GET", "/v1/images/a.raw": "GET", "/v1/images/a.raw/extents": "GET", "/v1/images/a%2Eraw/data": "GET, HEAD", "/healthz": "GET",
	} {
		for _, method := range []string{"PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
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
		"/v1/images/disk.raw/data?offset=1":              {"offset", "unknown"},
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
	want := map[string]bool{"base.raw": true, "corrupt.qcow2": false, "disk.raw": true, "orphan.qcow2": false, "packed.qcow2": true, "vm.qcow2": true}
	if !maps.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}
