package test

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	v1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// serveWith starts a server with variables in its environment.
func serveWith(t testing.TB, dir string, env []string, flags ...string) *server {
	t.Helper()
	cmd := exec.Command(program, serveArgs("127.0.0.1:0", dir, flags...)...)
	cmd.Env = append(os.Environ(), env...)
	return start(t, cmd)
}

// A collector takes what is pushed over OTLP/HTTP.
type collector struct {
	url string

	mu      sync.Mutex // protects all below
	spans   []*v1.Span
	names   map[string]bool // of metrics
	service string
	raw     strings.Builder // all that was sent
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{names: map[string]bool{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = c.take(r.URL.Path, body)
		}
		if err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *collector) take(path string, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(body)
	switch path {
	case "/v1/traces":
		var req coltrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			return err
		}
		for _, resource := range req.ResourceSpans {
			for _, a := range resource.Resource.Attributes {
				if a.Key == "service.name" {
					c.service = a.Value.GetStringValue()
				}
			}
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
	case "/v1/metrics":
		var req colmetrics.ExportMetricsServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			return err
		}
		for _, resource := range req.ResourceMetrics {
			for _, scope := range resource.ScopeMetrics {
				for _, m := range scope.Metrics {
					c.names[m.Name] = true
				}
			}
		}
	default:
		return fmt.Errorf("nobody expects that path")
	}
	return nil
}

// env makes a server push to the collector, soon.
func (c *collector) env(more ...string) []string {
	return append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_METRIC_EXPORT_INTERVAL=200"}, more...)
}

// tree is the spans of a trace, each as a line that begins with those above it.
// The names of nodes are in it, and the operations of one node that follow each
// other are one.
func (c *collector) tree(trace string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]*v1.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == trace {
			byID[string(s.SpanId)] = s
		}
	}
	var lines []string
	for _, s := range byID {
		line := ""
		for at := s; at != nil; at = byID[string(at.ParentSpanId)] {
			line = " > " + at.Name + line
			if node := attributeOf(at, "extentd.node"); node != "" {
				line += " " + node
			}
		}
		lines = append(lines, strings.TrimPrefix(line, " > "))
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func attributeOf(s *v1.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// await waits until a condition holds.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// traceparent is that of a trace with a number.
func traceparent(n int, sampled bool) (trace, header string) {
	trace = fmt.Sprintf("0af7651916cd43dd8448eb2100000%03x", n)
	flags := map[bool]string{false: "00", true: "01"}[sampled]
	return trace, "00-" + trace + "-b7ad6b7169203331-" + flags
}

// The collector gets trees of spans: the request, what the service did for it, and
// what was asked of each node.
func TestTraces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	base := m.create("-base.qcow2", 4*mib)
	m.io(base, "write 0 128k")
	top := m.overlay("-top.qcow2", base, 4*mib)
	m.io(top, "write 1M 64k")
	flat := m.raw(".raw", mib)
	c := newCollector(t)
	s := serveWith(t, dir, c.env(), overNBD()...)
	requests := 0
	want := func(lines []string, do func(headers ...string)) {
		t.Helper()
		requests++
		trace, header := traceparent(requests, true)
		do("Traceparent", header)
		contains := func() bool {
			have := c.tree(trace)
			return !slices.ContainsFunc(lines, func(line string) bool { return !slices.Contains(have, line) })
		}
		for deadline := time.Now().Add(20 * time.Second); !contains(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("want\n  %s\namong\n  %s", strings.Join(lines, "\n  "), strings.Join(c.tree(trace), "\n  "))
				return
			}
		}
	}
	const get, put = "GET /v1/images/{image}/data", "PUT /v1/images/{image}/data"
	want([]string{get, get + " > open", get + " > open > node read " + top, get + " > open > node read " + base, get + " > node read " + top},
		func(headers ...string) {
			s.expect(t, http.StatusPartialContent, imagePath(top, "/data"), append(headers, "Range", "bytes=1048576-1052671")...)
		})
	want([]string{get, get + " > node read " + base}, func(headers ...string) { // the backing supplies it
		s.expect(t, http.StatusPartialContent, imagePath(top, "/data"), append(headers, "Range", "bytes=0-4095")...)
	})
	want([]string{get, get + " > node send " + base}, func(headers ...string) { // long enough for the kernel to send it
		s.expect(t, http.StatusPartialContent, imagePath(top, "/data"), append(headers, "Range", "bytes=0-131071")...)
	})
	want([]string{put, put + " > start writing", put + " > node write " + top, put + " > node flush " + top}, func(headers ...string) {
		must(t, s.put(top, 0, make([]byte, 64*kib), true, headers...))
	})
	const extents = "GET /v1/images/{image}/extents"
	want([]string{extents, extents + " > node extents " + flat}, func(headers ...string) {
		s.expect(t, http.StatusOK, imagePath(flat, "/extents"), headers...)
	})
	n := s.openNBD(t, top, true)
	if _, err := n.do(wire.CmdRead, 0, 1*mib, 4096, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "a trace of an NBD read", func() bool { return c.has("nbd read", "node read") })
	await(t, "metrics", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.names["extentd.images.open"] && c.names["http.server.request.duration"]
	})
	if c.service != "extentd" {
		t.Errorf("the service is %q", c.service)
	}
}

// has reports whether a span has a child, by their names.
func (c *collector) has(name, child string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Name != child {
			continue
		}
		for _, above := range c.spans {
			if above.Name == name && string(above.SpanId) == string(s.ParentSpanId) {
				return true
			}
		}
	}
	return false
}

// A failed operation of a node is told as its error, and no other is.
func TestTraceOfFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	c := newCollector(t)
	s := serveWith(t, dir, c.env())
	s.expect(t, http.StatusPartialContent, imagePath(file, "/data"), "Range", "bytes=0-511")
	trace, header := traceparent(1, true)
	s.expect(t, http.StatusNotFound, imagePath("none.raw", "/data"), "Traceparent", header)
	await(t, "the trace", func() bool { return len(c.tree(trace)) > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, span := range c.spans {
		wrong := span.Status != nil && span.Status.Code == v1.Status_STATUS_CODE_ERROR
		if wrong && span.Name != "open" {
			t.Errorf("%s is an error: %v", span.Name, span.Status)
		}
	}
}

// The sampler decides, and who calls decides before it.
func TestTraceSampling(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	for name, want := range map[string]struct {
		sampler               string
		alone, asked, refused bool // whether it is recorded: without a caller's trace, and with one that is, or is not
	}{
		"default":   {"", true, true, false},
		"by parent": {"parentbased_always_off", false, true, false},
		"off":       {"always_off", false, false, false},
		"on":        {"always_on", true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCollector(t)
			env := c.env()
			if want.sampler != "" {
				env = append(env, "OTEL_TRACES_SAMPLER="+want.sampler)
			}
			s := serveWith(t, dir, env)
			read := func(off int, headers ...string) {
				s.expect(t, http.StatusPartialContent, imagePath(file, "/data"), append(headers, "Range", fmt.Sprintf("bytes=%d-%d", off, off+511))...)
			}
			sampled, yes := traceparent(1, true)
			dropped, no := traceparent(2, false)
			read(0)
			read(512, "Traceparent", yes)
			read(1024, "Traceparent", no)
			s.stop() // pushes what is left
			if got := len(c.tree(sampled)) > 1; got != want.asked {
				t.Errorf("a trace that the caller records: %v", c.tree(sampled))
			}
			if got := len(c.tree(dropped)) > 1; got != want.refused {
				t.Errorf("a trace that the caller does not record: %v", c.tree(dropped))
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			alone := slices.ContainsFunc(c.spans, func(s *v1.Span) bool { return len(s.ParentSpanId) == 0 })
			if alone != want.alone {
				t.Errorf("a trace of its own is recorded: %v", alone)
			}
		})
	}
}

// What cannot be done is told at the start.
func TestTelemetryEnvironment(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(program, serveArgs("127.0.0.1:0", t.TempDir())...)
	cmd.Env = append(os.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `the protocol of OTLP is "grpc", must be http/protobuf`) {
		t.Errorf("%v: %s", err, out)
	}
}
