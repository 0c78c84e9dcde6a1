package telemetry_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/telemetry"
)

// What is logged within a span has its ids, whatever the logger was made with.
func TestLogHandler(t *testing.T) {
	m, _ := traced(t)
	ctx, span := m.Tracer("test").Start(t.Context(), "request")
	id := span.SpanContext()
	remote := trace.ContextWithRemoteSpanContext(t.Context(), id.WithTraceFlags(0)) // not sampled
	var out bytes.Buffer
	log := slog.New(telemetry.LogHandler(slog.NewJSONHandler(&out, nil)))
	for name, c := range map[string]struct {
		do   func()
		want bool
	}{
		"no span":     {func() { log.Info("x") }, false},
		"span":        {func() { log.InfoContext(ctx, "x") }, true},
		"not sampled": {func() { log.InfoContext(remote, "x") }, true},
		"attributes":  {func() { log.With("a", 1).InfoContext(ctx, "x") }, true},
		"off":         {func() { log.DebugContext(ctx, "x"); log.Info("x") }, false},
	} {
		out.Reset()
		c.do()
		var record map[string]any
		if err := json.Unmarshal(out.Bytes(), &record); err != nil {
			t.Fatalf("%s: %v: %s", name, err, &out)
		}
		traceID, has := record["trace_id"]
		if has != c.want || has && (traceID != id.TraceID().String() || record["span_id"] != id.SpanID().String()) {
			t.Errorf("%s: %s", name, &out)
		}
	}
	out.Reset()
	log.WithGroup("g").InfoContext(ctx, "x", "a", 1)
	if !bytes.Contains(out.Bytes(), []byte(id.TraceID().String())) {
		t.Errorf("in a group: %s", &out)
	}
}
