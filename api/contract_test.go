package api_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
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
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "work.qcow2", "4M")
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
		"full.fake":    newFullMapper(),
	})
	contractImages(t, f)
	c := &contract{t: t, f: f, doc: doc, seen: map[string]bool{}}

	contractReads(c)
	contractSparse(c)
	contractWrites(c)
	contractAllocations(c)
	contractBitmaps(c)
	contractSnapshots(c)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml"} {
		c.check(200, "GET", path, "")
		c.check(400, "GET", path, "?x=1")
	}
	ready = errors.New("draining")
	c.check(503, "GET", "/readyz", "")
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			c.check(403, method, path, "", "image", "disk.raw", "allocation", "x", "snapshot", "x", "id", "x", "Host", "attacker.example")
		}
	}
	contractTickets(c)
	contractKeys(c)
	contractRefusals(c)
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	c.complete(map[string]bool{"listImages 500": true})
}

// A contract compares answers with what openapi.yaml says of them.
type contract struct {
	t   *testing.T
	f   *fixture
	doc *openapi3.T

	mu   sync.Mutex      // protects seen
	seen map[string]bool // "operationId status"
}

func (c *contract) saw(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[key] = true
}

// with calls fn while it asks another server.
func (c *contract) with(f *fixture, fn func()) {
	before := c.f
	c.f = f
	fn()
	c.f = before
}

// check calls an operation and validates its answer. The pairs are headers, but
// for image and allocation, which go into the path, and body.
func (c *contract) check(status int, method, pattern, query string, pairs ...string) answer {
	c.t.Helper()
	path := pattern
	var headers []string
	var body []byte
	for i := 0; i < len(pairs); i += 2 {
		switch pairs[i] {
		case "image", "allocation", "snapshot", "id", "ticket", "disk", "bitmap":
			path = strings.Replace(path, "{"+pairs[i]+"}", url.PathEscape(pairs[i+1]), 1)
		case "body":
			body = []byte(pairs[i+1])
		default:
			headers = append(headers, pairs[i], pairs[i+1])
		}
	}
	what := fmt.Sprintf("%s %s%s %v %.100s", method, path, query, headers, body)
	a := c.f.send(c.t, method, path+query, body, headers...)
	if a.status != status || a.err != nil {
		c.t.Errorf("%s: status %d, want %d: %v\n%.500s", what, a.status, status, a.err, a.body)
		return a
	}
	item := c.doc.Paths.Value(pattern)
	op := item.GetOperation(method)
	c.saw(fmt.Sprintf("%s %d", op.OperationID, status))
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
