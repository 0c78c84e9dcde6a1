package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/telemetry"
)

// scope is what instruments and spans are recorded under.
const scope = "github.com/extentd/extentd/api"

// instruments are what requests are measured and traced with.
type instruments struct {
	tracing  bool
	tracer   trace.Tracer
	duration metric.Float64Histogram
	sent     metric.Int64Counter
	received metric.Int64Counter
}

func newInstruments(t *telemetry.Telemetry) *instruments {
	meter := t.Meter(scope)
	m := &instruments{tracing: t.Tracing(), tracer: t.Tracer(scope)}
	// An instrument that cannot be had is one that does nothing, and these can: the
	// names are valid, and each is made once.
	m.duration, _ = meter.Float64Histogram("http.server.request.duration",
		metric.WithUnit("s"), metric.WithDescription("How long requests take, until the last byte is sent."),
		metric.WithExplicitBucketBoundaries(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600))
	m.sent, _ = meter.Int64Counter("http.server.response.body.sent",
		metric.WithUnit("By"), metric.WithDescription("Bytes of bodies that were sent."))
	m.received, _ = meter.Int64Counter("http.server.request.body.received",
		metric.WithUnit("By"), metric.WithDescription("Bytes of bodies that were received."))
	return m
}

// routeMetrics records requests of one route. The attributes of each status are
// made once: making a set for every request would cost more than the rest.
type routeMetrics struct {
	t       *instruments
	method  string // "" for what is on no route
	pattern string
	known   *[2 * maxStatus]atomic.Pointer[measured]
}

// maxStatus bounds the table of known statuses.
const maxStatus = 600

// measured are the options for one status of a route, as the two instruments
// want them.
type measured struct {
	record []metric.RecordOption
	add    []metric.AddOption
}

func (t *instruments) route(method, pattern string) routeMetrics {
	return routeMetrics{t: t, method: method, pattern: pattern, known: new([2 * maxStatus]atomic.Pointer[measured])}
}

// record takes down a request. The status of an aborted one is what its header
// said, 0 if none was sent.
func (m routeMetrics) record(ctx context.Context, resp *response, took time.Duration, aborted bool) {
	slot := 2 * min(max(resp.status, 0), maxStatus-1)
	if aborted {
		slot++
	}
	options := m.known[slot].Load()
	if options == nil {
		options = m.options(resp.status, aborted)
		m.known[slot].Store(options)
	}
	m.t.duration.Record(ctx, took.Seconds(), options.record...)
	if resp.sent > 0 {
		m.t.sent.Add(ctx, resp.sent, options.add...)
	}
	if resp.read > 0 {
		m.t.received.Add(ctx, resp.read, options.add...)
	}
}

func (m routeMetrics) options(status int, aborted bool) *measured {
	method := m.method
	if method == "" {
		method = "_OTHER" // the method of a request is the client's to invent
	}
	attributes := []attribute.KeyValue{
		attribute.String("http.request.method", method),
		attribute.String("http.route", m.pattern),
		attribute.Int("http.response.status_code", status),
	}
	if aborted {
		attributes = append(attributes, attribute.String("error.type", "aborted"))
	}
	set := metric.WithAttributeSet(attribute.NewSet(attributes...))
	return &measured{record: []metric.RecordOption{set}, add: []metric.AddOption{set}}
}

// A traced request is one with a span. The zero value has none.
type traced struct {
	span  trace.Span
	nodes *telemetry.Nodes // what is asked of nodes; nil: the span is not recorded
}

// begin starts the span of a request, as a child of the caller's if it sent one.
// What the request asks of nodes is recorded if the span is.
func (t *instruments) begin(r *http.Request, name string) (*http.Request, traced) {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	of := traced{span: span}
	if span.IsRecording() {
		ctx, of.nodes = telemetry.WithNodes(ctx)
	}
	return r.WithContext(ctx), of
}

// end ends the span, if there is one. It has the path of the request, and not the
// query, which may hold a ticket.
func (t traced) end(r *http.Request, pattern string, resp *response, aborted bool) {
	if t.span == nil {
		return
	}
	if t.span.IsRecording() {
		t.span.SetAttributes(
			attribute.String("http.request.method", plain(r.Method)),
			attribute.String("http.route", pattern),
			attribute.String("url.path", auth.Mask(r.URL.Path)),
			attribute.Int("http.response.status_code", resp.status),
			attribute.Int64("http.response.body.size", resp.sent),
			attribute.Int64("http.request.body.size", resp.read),
			attribute.String("extentd.request.id", resp.id[0]),
			attribute.Int64("extentd.node.operations", t.nodes.Asked()),
		)
		if aborted || resp.status >= http.StatusInternalServerError {
			t.span.SetStatus(codes.Error, resp.problem)
		}
	}
	t.span.End()
}
