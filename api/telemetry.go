package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// scope is what instruments and spans are recorded under.
const scope = "github.com/extentd/extentd/api"

// Telemetry measures requests and traces them. Metrics are read from /metrics;
// spans are exported where OpenTelemetry's environment variables say, and not
// recorded without them.
type Telemetry struct {
	tracing  bool
	tracer   trace.Tracer
	duration metric.Float64Histogram
	sent     metric.Int64Counter
	received metric.Int64Counter
	metrics  http.Handler
	shutdown []func(context.Context) error
}

// NewTelemetry starts it; the caller shuts it down. Spans are exported over
// OTLP/HTTP if OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
// is set, as often as OTEL_TRACES_SAMPLER says.
func NewTelemetry(ctx context.Context, version string) (*Telemetry, error) {
	about := resource.NewSchemaless(
		attribute.String("service.name", "extentd"),
		attribute.String("service.version", version),
	)
	registry := prometheus.NewRegistry()
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader), sdkmetric.WithResource(about))
	t := &Telemetry{
		metrics:  promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true}),
		shutdown: []func(context.Context) error{meters.Shutdown},
	}
	if err := runtime.Start(runtime.WithMeterProvider(meters)); err != nil {
		return nil, errors.Join(fmt.Errorf("telemetry: %w", err), t.Shutdown(ctx))
	}
	var traces trace.TracerProvider = tracenoop.NewTracerProvider()
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("telemetry: %w", err), t.Shutdown(ctx))
		}
		provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
		traces = provider
		t.tracing = true
		t.shutdown = append(t.shutdown, provider.Shutdown)
	}
	if err := t.instrument(traces, meters); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	return t, nil
}

// noTelemetry measures nothing.
func noTelemetry() *Telemetry {
	t := &Telemetry{metrics: promhttp.HandlerFor(prometheus.NewRegistry(), promhttp.HandlerOpts{})}
	_ = t.instrument(tracenoop.NewTracerProvider(), metricnoop.NewMeterProvider()) // these do not fail
	return t
}

func (t *Telemetry) instrument(traces trace.TracerProvider, meters metric.MeterProvider) error {
	t.tracer = traces.Tracer(scope)
	meter := meters.Meter(scope)
	var err, sentErr, receivedErr error
	t.duration, err = meter.Float64Histogram("http.server.request.duration",
		metric.WithUnit("s"), metric.WithDescription("How long requests take, until the last byte is sent."),
		metric.WithExplicitBucketBoundaries(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600))
	t.sent, sentErr = meter.Int64Counter("http.server.response.body.sent",
		metric.WithUnit("By"), metric.WithDescription("Bytes of bodies that were sent."))
	t.received, receivedErr = meter.Int64Counter("http.server.request.body.received",
		metric.WithUnit("By"), metric.WithDescription("Bytes of bodies that were received."))
	if err := errors.Join(err, sentErr, receivedErr); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// Shutdown exports what is left and ends what NewTelemetry started.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for i := len(t.shutdown) - 1; i >= 0; i-- {
		errs = append(errs, t.shutdown[i](ctx))
	}
	return errors.Join(errs...)
}

// routeMetrics records requests of one route. The attributes of each status are
// made once: making a set for every request would cost more than the rest.
type routeMetrics struct {
	t       *Telemetry
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

func (t *Telemetry) route(method, pattern string) routeMetrics {
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

// begin starts the span of a request, as a child of the caller's if it sent one.
func (t *Telemetry) begin(r *http.Request, pattern string) (*http.Request, trace.Span) {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	name := pattern
	if name == "" {
		name = "no route"
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return r.WithContext(ctx), span
}

func endSpan(span trace.Span, r *http.Request, pattern string, resp *response, aborted bool) {
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("http.request.method", r.Method),
			attribute.String("http.route", pattern),
			attribute.String("url.path", r.URL.Path),
			attribute.Int("http.response.status_code", resp.status),
			attribute.Int64("http.response.body.size", resp.sent),
			attribute.Int64("http.request.body.size", resp.read),
			attribute.String("extentd.request.id", resp.id[0]),
		)
		if aborted || resp.status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
	}
	span.End()
}
