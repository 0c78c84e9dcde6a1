package telemetry_test

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setenv sets the variables given, and unsets all others of OpenTelemetry.
func setenv(t *testing.T, given map[string]string) {
	t.Helper()
	for _, pair := range os.Environ() {
		if name, value, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, value) // so that it comes back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, value := range given {
		t.Setenv(name, value)
	}
}

// Nothing is pushed unless the environment says where to.
func TestEnvironment(t *testing.T) {
	const endpoint = "http://127.0.0.1:1"
	for name, c := range map[string]struct {
		env     map[string]string
		tracing bool
		err     string
	}{
		"nothing":           {nil, false, ""},
		"endpoint":          {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}, true, ""},
		"traces alone":      {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, true, ""},
		"metrics scraped":   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "prometheus"}, true, ""},
		"no traces":         {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		"disabled":          {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "true"}, false, ""},
		"protocol":          {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, "grpc"},
		"protocol, unused":  {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, ""},
		"another exporter":  {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, false, "zipkin"},
		"traces prometheus": {map[string]string{"OTEL_TRACES_EXPORTER": "prometheus"}, false, "prometheus"},
	} {
		t.Run(name, func(t *testing.T) {
			setenv(t, c.env)
			m, err := telemetry.New(t.Context(), telemetry.Options{})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want one of %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if m.Tracing() != c.tracing {
				t.Errorf("tracing is %v", m.Tracing())
			}
			_ = m.Shutdown(t.Context()) // metrics that nobody takes are an error
		})
	}
}
