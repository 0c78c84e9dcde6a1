package telemetry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// Options configure telemetry. The zero value is usable.
type Options struct {
	// Version of the program. Default: "".
	Version string
	// Spans are given to it too, wherever else they go: tracing is on then.
	// Default: they go where the environment says.
	Spans sdktrace.SpanProcessor
}

// Telemetry measures and traces. It is safe for concurrent use.
type Telemetry struct {
	tracing  bool
	traces   trace.TracerProvider
	meters   metric.MeterProvider
	metrics  http.Handler
	shutdown []func(context.Context) error // in the order of starting
}

// New starts it; the caller shuts it down. Metrics are always there to be scraped.
// Spans are pushed over OTLP/HTTP if OTEL_EXPORTER_OTLP_ENDPOINT or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, as many as OTEL_TRACES_SAMPLER says;
// metrics likewise with OTEL_EXPORTER_OTLP_METRICS_ENDPOINT. The other variables
// of the OpenTelemetry specification are followed; one that asks for what there is
// not, such as another protocol, is an error.
func New(ctx context.Context, opt Options) (*Telemetry, error) {
	env, err := readEnvironment()
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	t := &Telemetry{traces: tracenoop.NewTracerProvider(), meters: metricnoop.NewMeterProvider()}
	if err := t.start(ctx, &opt, env); err != nil {
		return nil, errors.Join(fmt.Errorf("telemetry: %w", err), t.Shutdown(ctx))
	}
	return t, nil
}

func (t *Telemetry) start(ctx context.Context, opt *Options, env environment) error {
	about, err := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", "extentd"),
			attribute.String("service.version", opt.Version),
			attribute.String("service.instance.id", rand.Text()),
		),
		resource.WithFromEnv(), // the last wins
	)
	if err != nil {
		return err
	}
	if err := t.startMetrics(ctx, about, env); err != nil {
		return err
	}
	return t.startTraces(ctx, about, opt, env)
}

func (t *Telemetry) startMetrics(ctx context.Context, about *resource.Resource, env environment) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})); err != nil {
		return err
	}
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return err
	}
	options := []sdkmetric.Option{sdkmetric.WithReader(reader), sdkmetric.WithResource(about)}
	if env.metrics {
		exporter, err := pushMetrics(ctx)
		if err != nil {
			return err
		}
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)))
	}
	meters := sdkmetric.NewMeterProvider(options...)
	t.meters = meters
	t.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true})
	t.shutdown = append(t.shutdown, meters.Shutdown)
	return runtime.Start(runtime.WithMeterProvider(meters))
}

func (t *Telemetry) startTraces(ctx context.Context, about *resource.Resource, opt *Options, env environment) error {
	if !env.traces && opt.Spans == nil {
		return nil
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about)}
	if opt.Spans != nil {
		options = append(options, sdktrace.WithSpanProcessor(opt.Spans))
	}
	if env.traces {
		exporter, err := pushTraces(ctx)
		if err != nil {
			return err
		}
		options = append(options, sdktrace.WithBatcher(exporter))
	}
	provider := sdktrace.NewTracerProvider(options...)
	t.tracing, t.traces = true, provider
	t.shutdown = append(t.shutdown, provider.Shutdown)
	return nil
}

// None measures nothing, and needs no Shutdown.
func None() *Telemetry {
	return &Telemetry{
		traces:  tracenoop.NewTracerProvider(),
		meters:  metricnoop.NewMeterProvider(),
		metrics: promhttp.HandlerFor(prometheus.NewRegistry(), promhttp.HandlerOpts{}),
	}
}

// Tracing reports whether spans go anywhere. If not, nothing need be done for one.
func (t *Telemetry) Tracing() bool { return t.tracing }

// Tracer makes spans; scope is the import path of who records them.
func (t *Telemetry) Tracer(scope string) trace.Tracer { return t.traces.Tracer(scope) }

// Meter makes instruments; scope is the import path of who records with them.
func (t *Telemetry) Meter(scope string) metric.Meter { return t.meters.Meter(scope) }

// Metrics answers with all metrics as Prometheus scrapes them.
func (t *Telemetry) Metrics() http.Handler { return t.metrics }

// Shutdown pushes what is left and ends what New started.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for i := len(t.shutdown) - 1; i >= 0; i-- {
		errs = append(errs, t.shutdown[i](ctx))
	}
	return errors.Join(errs...)
}
