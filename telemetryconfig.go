package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/telemetry"
)

// TelemetryConfig says where the server tells of what it does. The rest of it is
// in the variables of OpenTelemetry.
type TelemetryConfig struct {
	AuditLog string `koanf:"audit-log"`
}

func telemetryFlags(f *pflag.FlagSet) {
	f.String("audit-log", "", "append a line of JSON for each change to `FILE` (default: among the logs)")
}

// scope is what spans of this package are recorded under.
const scope = "github.com/extentd/extentd"

// A lockedWriter takes one Write at a time: the logs and the audit share it.
type lockedWriter struct {
	mu sync.Mutex // held while w writes: that is what it is for
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// newLogger returns a logger whose records have the ids of spans.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(telemetry.LogHandler(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})))
}

// openTelemetry starts what the server is observed by.
func (s *Server) openTelemetry(ctx context.Context, config *Config, logs io.Writer) error {
	var err error
	if s.audit, err = audit.New(audit.Options{File: config.Telemetry.AuditLog, Writer: logs, Logger: s.log}); err != nil {
		return err
	}
	s.telemetry, err = telemetry.New(ctx, telemetry.Options{Version: buildVersion()})
	return err
}

// stopTelemetry pushes what is left. That it could not be is no failure of the
// server's.
func (s *Server) stopTelemetry(ctx context.Context) {
	if s.telemetry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.telemetry.Shutdown(ctx); err != nil {
		s.log.Warn("the last of the telemetry could not be pushed", "error", err)
	}
}

// trace has what the service does recorded in spans, if they go anywhere.
func (s *Server) trace(opt *service.Options) {
	if !s.telemetry.Tracing() {
		return
	}
	opt.Observe = s.telemetry.Observe
	tracer := s.telemetry.Tracer(scope)
	opt.Trace = func(ctx context.Context, work, image string) (context.Context, func(error)) {
		if !trace.SpanFromContext(ctx).IsRecording() {
			return ctx, func(error) {}
		}
		ctx, span := tracer.Start(ctx, work, trace.WithAttributes(attribute.String("extentd.image", image)))
		return ctx, func(err error) { endSpan(span, err) }
	}
}

// traceNBD likewise records what clients of NBD ask for: each request is a trace.
func (s *Server) traceNBD(opt *nbd.Options) {
	if !s.telemetry.Tracing() {
		return
	}
	tracer := s.telemetry.Tracer(scope)
	opt.Trace = func(ctx context.Context, command, image string, off, n uint64) (context.Context, func(error)) {
		ctx, span := tracer.Start(ctx, "nbd "+command, trace.WithSpanKind(trace.SpanKindServer))
		if !span.IsRecording() {
			return ctx, func(error) {}
		}
		span.SetAttributes(attribute.String("extentd.image", image),
			attribute.Int64("extentd.offset", int64(off)), attribute.Int64("extentd.length", int64(n)))
		ctx, nodes := telemetry.WithNodes(ctx)
		return ctx, func(err error) {
			span.SetAttributes(attribute.Int64("extentd.node.operations", nodes.Asked()))
			endSpan(span, err)
		}
	}
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// heed makes the process tell of telemetry that cannot be pushed in the log, and
// open the audit log anew on SIGHUP, until stop is called. It is called by who
// owns the process.
func (s *Server) heed(config *Config) (stop func()) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		s.log.Warn("telemetry could not be pushed", "error", err)
	}))
	if config.Telemetry.AuditLog == "" {
		return func() {}
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var listening sync.WaitGroup
	listening.Go(func() {
		for range hangups {
			if err := s.audit.Reopen(); err != nil {
				s.log.Error("the audit log could not be opened anew", "error", err)
			}
		}
	})
	return func() {
		signal.Stop(hangups) // nothing is sent after it
		close(hangups)
		listening.Wait()
	}
}
