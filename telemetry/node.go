package telemetry

import (
	"context"
	"io"
	"sync/atomic"
	"syscall"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// scope is what spans of nodes are recorded under.
const scope = "github.com/extentd/extentd/telemetry"

// maxNodeSpans bounds the spans of what one request asks of nodes: one that reads
// a whole image asks more than anybody looks at.
const maxNodeSpans = 500

// Nodes counts what one traced request asks of nodes.
type Nodes struct{ asked atomic.Int64 }

// Asked is how many operations there were, also those beyond the bound on spans.
func (n *Nodes) Asked() int64 { return n.asked.Load() }

type nodesKey struct{}

// WithNodes returns a context in which each operation on a node is a span, up to
// a bound, and a child of the span that the context has then. Without it nothing
// is recorded of nodes.
func WithNodes(ctx context.Context) (context.Context, *Nodes) {
	n := new(Nodes)
	return context.WithValue(ctx, nodesKey{}, n), n
}

// Observe returns a file that records what is asked of next under its name, for
// requests whose context wants it, and has all abilities of the file below next
// that this program makes use of: a range of a local file can still be sent from
// without reading it. It takes the place of next.
func (t *Telemetry) Observe(next *storage.Node) (storage.File, error) {
	o := &observed{File: next.File(), tracer: t.Tracer(scope), node: attribute.String("extentd.node", next.Name())}
	w, writes := next.File().(storage.Writer)
	c, local := next.File().(localFile)
	switch {
	case !writes:
		return o, nil
	case !local:
		return &observedWriter{o, w}, nil
	}
	return &observedLocal{&observedWriter{o, w}, c}, nil
}

// An observed file records what is asked of a file that is read alone.
type observed struct {
	storage.File
	tracer trace.Tracer
	node   attribute.KeyValue
}

// An observedWriter is one that can be written to.
type observedWriter struct {
	*observed
	w storage.Writer
}

// A localFile can be sent from.
type localFile interface {
	syscall.Conn
	Direct() bool
}

// An observedLocal is one that can be sent from.
type observedLocal struct {
	*observedWriter
	localFile
}

var (
	_ storage.File       = (*observed)(nil)
	_ storage.Sparse     = (*observed)(nil)
	_ storage.Advertiser = (*observed)(nil)
	_ filter.Counting    = (*observed)(nil)
	_ storage.Writer     = (*observedWriter)(nil)
	_ storage.Starter    = (*observedWriter)(nil)
	_ localFile          = (*observedLocal)(nil)
)

// begin starts the span of an operation, nil if there is to be none.
func (o *observed) begin(ctx context.Context, op filter.Op, off, n int64) (context.Context, trace.Span) {
	nodes, wanted := ctx.Value(nodesKey{}).(*Nodes)
	if !wanted || nodes.asked.Add(1) > maxNodeSpans {
		return ctx, nil
	}
	return o.start(ctx, op.String(), off, n)
}

func (o *observed) start(ctx context.Context, op string, off, n int64) (context.Context, trace.Span) {
	return o.tracer.Start(ctx, "node "+op, trace.WithAttributes(
		o.node, attribute.String("extentd.operation", op), attribute.Int64("extentd.offset", off), attribute.Int64("extentd.length", n)))
}

// end ends a span, if there is one.
func end(span trace.Span, err error) {
	if span == nil {
		return
	}
	if err != nil && err != io.EOF { //nolint:errorlint // the end of a file is a bare io.EOF
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

func (o *observed) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	ctx, span := o.begin(ctx, filter.Read, off, int64(len(p)))
	n, err := o.File.ReadAt(ctx, p, off)
	end(span, err)
	return n, err
}

func (o *observed) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	ctx, span := o.begin(ctx, filter.Extents, off, n)
	err := o.File.Extents(ctx, off, n, into)
	end(span, err)
	return err
}

// Allocated is the file's, or else its size.
func (o *observed) Allocated(ctx context.Context) (int64, error) {
	if sparse, ok := o.File.(storage.Sparse); ok {
		return sparse.Allocated(ctx)
	}
	return o.Size(ctx)
}

// Advertise is the file's, or else what binds.
func (o *observed) Advertise(ctx context.Context, which storage.Limit) (int64, error) {
	if a, ok := o.File.(storage.Advertiser); ok {
		return a.Advertise(ctx, which)
	}
	return o.Limit(ctx, which)
}

// Counters are the file's, if it counts.
func (o *observed) Counters() []filter.Counter {
	if c, counts := o.File.(filter.Counting); counts {
		return c.Counters()
	}
	return nil
}

func (o *observedWriter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	ctx, span := o.begin(ctx, filter.Write, off, int64(len(p)))
	n, err := o.w.WriteAt(ctx, p, off)
	end(span, err)
	return n, err
}

func (o *observedWriter) Zero(ctx context.Context, off, n int64, keep bool) error {
	ctx, span := o.begin(ctx, filter.Zero, off, n)
	err := o.w.Zero(ctx, off, n, keep)
	end(span, err)
	return err
}

func (o *observedWriter) Trim(ctx context.Context, off, n int64) error {
	ctx, span := o.begin(ctx, filter.Trim, off, n)
	err := o.w.Trim(ctx, off, n)
	end(span, err)
	return err
}

// Truncate records the new size as the offset.
func (o *observedWriter) Truncate(ctx context.Context, size int64) error {
	ctx, span := o.begin(ctx, filter.Truncate, size, 0)
	err := o.w.Truncate(ctx, size)
	end(span, err)
	return err
}

func (o *observedWriter) Flush(ctx context.Context) error {
	ctx, span := o.begin(ctx, filter.Flush, 0, 0)
	err := o.w.Flush(ctx)
	end(span, err)
	return err
}

// StartWriting is the file's, if it must be made ready.
func (o *observedWriter) StartWriting(ctx context.Context) error {
	if f, must := o.File.(storage.Starter); must {
		return f.StartWriting(ctx)
	}
	return ctx.Err()
}

// Sending is told of a range that is about to be sent from the file: the kernel
// reads it, and nobody knows when, so that its span has no duration.
func (o *observedLocal) Sending(ctx context.Context, off, n int64) {
	if nodes, wanted := ctx.Value(nodesKey{}).(*Nodes); wanted && nodes.asked.Add(1) <= maxNodeSpans {
		_, span := o.start(ctx, "send", off, n)
		span.End()
	}
}
