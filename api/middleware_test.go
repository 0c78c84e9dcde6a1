package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/telemetry"
)

// A readerFrom is a ResponseWriter that notes how it is written to.
type readerFrom struct {
	*httptest.ResponseRecorder
	src     io.Reader
	flushed bool
}

func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	r.src = src
	return io.Copy(r.ResponseRecorder, src)
}

func (r *readerFrom) Flush() { r.flushed = true }

// A source cannot be mistaken for another reader.
type source struct{ io.Reader }

func TestResponseForwards(t *testing.T) {
	s := newServer(Options{})
	below := &readerFrom{ResponseRecorder: httptest.NewRecorder()}
	src := &source{strings.NewReader("0123456789")}
	var kept *response
	h := s.observe("GET", "/x", func(w http.ResponseWriter, _ *http.Request) {
		kept = w.(*response)
		if n, err := w.(io.ReaderFrom).ReadFrom(src); n != 10 || err != nil {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		if _, err := io.WriteString(w, "more"); err != nil {
			t.Error(err)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	})
	h.ServeHTTP(below, httptest.NewRequest("GET", "/x", nil))
	if below.src != io.Reader(src) {
		t.Errorf("the writer below was given %T", below.src)
	}
	if !below.flushed || kept.Unwrap() != http.ResponseWriter(below) {
		t.Error("Flush or Unwrap does not reach the writer below")
	}
	if kept.status != 200 || kept.sent != 14 || below.Body.String() != "0123456789more" {
		t.Errorf("status %d, %d bytes, %q", kept.status, kept.sent, below.Body)
	}
}

// A writer that cannot read from a source is written to.
func TestResponseWithoutReaderFrom(t *testing.T) {
	below := httptest.NewRecorder()
	r := &response{ResponseWriter: below}
	if n, err := r.ReadFrom(&source{strings.NewReader("0123456789")}); n != 10 || err != nil || below.Body.Len() != 10 || r.sent != 10 {
		t.Errorf("%d, %v, %q", n, err, below.Body)
	}
}

func TestPanics(t *testing.T) {
	var log bytes.Buffer
	s := newServer(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	serve := func(next http.HandlerFunc) (w *httptest.ResponseRecorder, p error) {
		w = httptest.NewRecorder()
		defer func() { p, _ = recover().(error) }()
		s.observe("GET", "/x", next).ServeHTTP(w, httptest.NewRequest("GET", "/x", nil))
		return w, nil
	}
	w, p := serve(func(http.ResponseWriter, *http.Request) { panic("a bug at /srv/secret") })
	if p != nil || w.Code != 500 || w.Header().Get("Content-Type") != "application/problem+json" || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("before the header: %v, %d, %s", p, w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "a bug at /srv/secret") || !strings.Contains(log.String(), "TestPanics") {
		t.Errorf("the log has no message or no stack: %s", &log)
	}
	if _, p := serve(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		panic("a bug")
	}); !errors.Is(p, http.ErrAbortHandler) {
		t.Errorf("after the header: %v", p)
	}
	log.Reset()
	if _, p := serve(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }); !errors.Is(p, http.ErrAbortHandler) || log.Len() > 0 {
		t.Errorf("an abort: %v, %s", p, &log)
	}
}

func TestRequestIDs(t *testing.T) {
	s := newServer(Options{})
	serve := func(given ...string) string {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Header["X-Request-Id"] = given
		w := httptest.NewRecorder()
		s.observe("GET", "/x", func(http.ResponseWriter, *http.Request) {}).ServeHTTP(w, r)
		return w.Header().Get("X-Request-Id")
	}
	if got := serve("my-id_1.2"); got != "my-id_1.2" {
		t.Errorf("got %q", got)
	}
	seen := map[string]bool{}
	for _, given := range [][]string{nil, nil, {""}, {"two", "of them"}, {"new\nline"}, {"ä"}, {strings.Repeat("a", 65)}, {`"`}} {
		got := serve(given...)
		if !validRequestID(got) || seen[got] || len(given) == 1 && got == given[0] {
			t.Errorf("%q: got %q", given, got)
		}
		seen[got] = true
	}
	if a, b := newRequestIDs(), newRequestIDs(); a.prefix == b.prefix {
		t.Error("two servers make the same ids")
	}
}

// The parameters and bodies of every route are those of the contract.
func TestParametersAreThoseOfTheContract(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(Options{})
	for _, route := range append(s.imageRoutes(), s.serverRoutes()...) {
		want := query{}
		for _, p := range doc.Paths.Value(route.pattern).GetOperation(route.method).Parameters {
			if p.Value.In != "query" {
				continue
			}
			for kind, name := range map[paramKind]string{integer: "integer", boolean: "boolean", text: "string"} {
				if p.Value.Schema.Value.Type.Is(name) {
					want[p.Value.Name] = kind
				}
			}
		}
		if len(want) == 0 {
			want = nil
		}
		var media []string
		if body := doc.Paths.Value(route.pattern).GetOperation(route.method).RequestBody; body != nil && body.Value.Content.Get(octets) == nil {
			media = slices.Sorted(maps.Keys(body.Value.Content))
		}
		var got []string
		if route.body != nil {
			got = slices.Sorted(slices.Values(route.body.media))
		}
		if !slices.Equal(got, media) {
			t.Errorf("%s %s: bodies of %q, want %q", route.method, route.pattern, got, media)
		}
		if diff := cmp.Diff(want, route.query); diff != "" {
			t.Errorf("%s %s (-contract +route):\n%s", route.method, route.pattern, diff)
		}
	}
}

func TestMetrics(t *testing.T) {
	measure, err := telemetry.New(t.Context(), telemetry.Options{Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := measure.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	s := newServer(Options{Telemetry: measure})
	h := s.router(s.adminRoutes(public()))
	serve := func(method, path string) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Body.String()
	}
	serve("GET", "/healthz")
	serve("GET", "/healthz")
	serve("GET", "/healthz?x=1")
	s.observe("PUT", "/upload", func(w http.ResponseWriter, r *http.Request) {
		countReceived(w, 1000)
		countReceived(w, 234)
		w.WriteHeader(204)
	}).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/upload", nil))
	serve("GET", "/nowhere/"+strings.Repeat("x", 100))
	serve("BREW", "/healthz")
	func() {
		defer func() { _ = recover() }()
		s.observe("GET", "/aborted", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(206)
			panic(http.ErrAbortHandler)
		}).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/aborted", nil))
	}()
	text := serve("GET", "/metrics")
	for _, want := range []string{
		`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",http_route="/healthz",`,
		`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="400",http_route="/healthz",`,
		`http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="404",http_route="",`,
		`http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="405",http_route="",`,
		`http_server_request_duration_seconds_count{error_type="aborted",http_request_method="GET",http_response_status_code="206",http_route="/aborted",`,
		`http_server_response_body_sent_bytes_total{http_request_method="GET",http_response_status_code="200",http_route="/healthz",`,
		`http_server_request_body_received_bytes_total{http_request_method="PUT",http_response_status_code="204",http_route="/upload",`,
		`otel_scope_version=""} 1234`,
		`service_version="1.2.3"`,
		`go_goroutine_count`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%.6000s", want, text)
		}
	}
	if !strings.Contains(text, `http_route="/healthz",otel_scope_name="github.com/extentd/extentd/api",otel_scope_schema_url="",otel_scope_version=""} 2`) {
		t.Errorf("two requests are not counted as two:\n%.6000s", text)
	}
	if strings.Contains(text, "nowhere") {
		t.Error("a path that is no route is a label")
	}
}

// Spans bear the name of the route, and continue the trace of the caller.
func TestSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	measure, err := telemetry.New(t.Context(), telemetry.Options{Spans: recorder})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = measure.Shutdown(context.Background()) }()
	s := newServer(Options{Telemetry: measure})
	r := httptest.NewRequest("GET", "/v1/images/x.raw", nil)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	var inside trace.SpanContext
	s.observe("GET", "/v1/images/{image}", func(w http.ResponseWriter, r *http.Request) {
		inside = trace.SpanContextFromContext(r.Context())
		s.fail(w, r, errors.New("broken"))
	}).ServeHTTP(httptest.NewRecorder(), r)
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Name() != "GET /v1/images/{image}" || spans[0].SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" ||
		spans[0].SpanContext().SpanID() != inside.SpanID() || spans[0].Status().Code.String() != "Error" {
		t.Errorf("%+v", spans)
	}
	attributes := map[string]any{}
	for _, a := range spans[0].Attributes() {
		attributes[string(a.Key)] = a.Value.AsInterface()
	}
	if attributes["http.route"] != "/v1/images/{image}" || attributes["http.response.status_code"] != int64(500) || attributes["http.request.method"] != "GET" {
		t.Errorf("%v", attributes)
	}
}

// The middleware adds little to what a handler allocates.
func TestObserveAllocations(t *testing.T) {
	s := newServer(Options{})
	h := s.observe("GET", "/x", func(http.ResponseWriter, *http.Request) {})
	r := httptest.NewRequest("GET", "/x", nil)
	w := httptest.NewRecorder()
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }); n > 3 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	measure, err := telemetry.New(b.Context(), telemetry.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = measure.Shutdown(context.Background()) }()
	s := newServer(Options{Telemetry: measure})
	h := s.observe("GET", "/x", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	r := httptest.NewRequest("GET", "/x", nil)
	w := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
