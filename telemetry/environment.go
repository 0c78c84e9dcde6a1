package telemetry

import (
	"context"
	"fmt"
	"os"
	"strings"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// An environment is what the OTEL_ variables say that the SDK does not read
// itself.
type environment struct {
	traces, metrics bool // are pushed
}

func readEnvironment() (environment, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return environment{}, nil
	}
	var env environment
	var err error
	if env.traces, err = pushed("TRACES"); err != nil {
		return environment{}, err
	}
	env.metrics, err = pushed("METRICS")
	return env, err
}

// pushed reports whether a signal is.
func pushed(signal string) (bool, error) {
	name, exporter := "OTEL_"+signal+"_EXPORTER", ""
	switch exporter = os.Getenv(name); exporter {
	case "none":
		return false, nil
	case "", "otlp":
	case "prometheus": // metrics are scraped anyway
		if signal == "METRICS" {
			return false, nil
		}
		fallthrough
	default:
		return false, fmt.Errorf("%s is %q, must be otlp or none", name, exporter)
	}
	if first("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return false, nil
	}
	if p := first("OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != "http/protobuf" {
		return false, fmt.Errorf("the protocol of OTLP is %q, must be http/protobuf", p)
	}
	return true, nil
}

// first is the first of the variables that is set to something.
func first(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

func pushTraces(ctx context.Context) (sdktrace.SpanExporter, error) { return otlptracehttp.New(ctx) }

func pushMetrics(ctx context.Context) (sdkmetric.Exporter, error) { return otlpmetrichttp.New(ctx) }
