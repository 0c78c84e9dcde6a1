package telemetry_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/mem"
	"github.com/extentd/extentd/storage/storagetest"
	"github.com/extentd/extentd/telemetry"
)

// traced is telemetry that records spans.
func traced(t *testing.T) (*telemetry.Telemetry, *tracetest.SpanRecorder) {
	t.Helper()
	setenv(t, nil)
	recorder := tracetest.NewSpanRecorder()
	m, err := telemetry.New(t.Context(), telemetry.Options{Spans: recorder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m, recorder
}

func observe(t *testing.T, m *telemetry.Telemetry, name string, f storage.File) *storage.Node {
	t.Helper()
	seen, err := m.Observe(storage.NewNode(name, f, storage.NodeOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewNode(name, seen, storage.NodeOptions{Check: true})
}

func newMem(t *testing.T, size int64) *mem.File {
	t.Helper()
	f, err := mem.New(mem.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A spanText is a span as tests compare it.
type spanText struct {
	Name, Node     string
	Offset, Length int64
	Failed         bool
	Child          bool // of the request's span
}

func spansOf(ended []sdktrace.ReadOnlySpan, parent string) []spanText {
	var out []spanText
	for _, s := range ended {
		text := spanText{Name: s.Name(), Failed: s.Status().Code.String() == "Error", Child: s.Parent().SpanID().String() == parent}
		for _, a := range s.Attributes() {
			switch a.Key {
			case "extentd.node":
				text.Node = a.Value.AsString()
			case "extentd.offset":
				text.Offset = a.Value.AsInt64()
			case "extentd.length":
				text.Length = a.Value.AsInt64()
			}
		}
		out = append(out, text)
	}
	return out
}

// Each operation within a request that is recorded is a span, and none elsewhere.
func TestNodeSpans(t *testing.T) {
	m, recorder := traced(t)
	node := observe(t, m, "disk", newMem(t, 1<<20))
	ask := func(ctx context.Context) {
		buf := make([]byte, 512)
		_, err := node.WriteAt(ctx, buf, 4096)
		_, short := node.ReadAt(ctx, buf, 1<<20-100)
		if short == io.EOF { //nolint:errorlint // as File says
			short = nil
		}
		err = errors.Join(err, short, node.Extents(ctx, 0, 8192, new(storage.ExtentList)), node.Zero(ctx, 0, 1024, true),
			node.Trim(ctx, 1024, 512), node.Truncate(ctx, 2<<20), node.Flush(ctx))
		if err != nil {
			t.Error(err)
		}
		if _, err := node.ReadAt(ctx, buf, 4<<20); err == nil {
			t.Error("a read past the end is no error")
		}
	}
	ask(t.Context())
	spanned, span := m.Tracer("test").Start(t.Context(), "request")
	ask(spanned) // nobody wants spans of nodes
	if got := recorder.Ended(); len(got) != 0 {
		t.Fatalf("%d spans that nobody wanted", len(got))
	}
	counting, nodes := telemetry.WithNodes(spanned)
	ask(counting)
	if nodes.Asked() != 8 {
		t.Errorf("%d operations are counted, want 8", nodes.Asked())
	}
	want := []spanText{
		{"node write", "disk", 4096, 512, false, true},
		{"node read", "disk", 1<<20 - 100, 512, false, true},
		{"node extents", "disk", 0, 8192, false, true},
		{"node zero", "disk", 0, 1024, false, true},
		{"node trim", "disk", 1024, 512, false, true},
		{"node truncate", "disk", 2 << 20, 0, false, true},
		{"node flush", "disk", 0, 0, false, true},
		{"node read", "disk", 4 << 20, 512, true, true},
	}
	got := spansOf(recorder.Ended(), span.SpanContext().SpanID().String())
	if last := &got[len(got)-1]; !last.Failed { // a memory may say it by io.EOF alone
		want[len(want)-1].Failed = false
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What one request may record is bounded, and what it asks is counted all the same.
func TestNodeSpansAreBounded(t *testing.T) {
	m, recorder := traced(t)
	node := observe(t, m, "disk", newMem(t, 1<<20))
	ctx, nodes := telemetry.WithNodes(t.Context())
	for range 2000 {
		if _, err := node.ReadAt(ctx, make([]byte, 1), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(recorder.Ended()); got != 500 || nodes.Asked() != 2000 {
		t.Errorf("%d spans of %d operations, want 500 of 2000", got, nodes.Asked())
	}
}

// A failed operation says so in its span.
func TestNodeSpanOfFailure(t *testing.T) {
	m, recorder := traced(t)
	broken := errors.New("the disk is on fire")
	node := observe(t, m, "disk", failing{newMem(t, 1<<20), broken})
	ctx, _ := telemetry.WithNodes(t.Context())
	if _, err := node.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, broken) || err.Error() != "disk: read of 1 bytes at 0: the disk is on fire" {
		t.Errorf("got %v", err)
	}
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Status().Code.String() != "Error" || spans[0].Status().Description != broken.Error() {
		t.Errorf("got %v", spans)
	}
}

// failing fails reads. It cannot be written to.
type failing struct {
	storage.File
	err error
}

func (f failing) ReadAt(context.Context, []byte, int64) (int, error) { return 0, f.err }

// An observed node can do what the node below can, and no more.
func TestObserveKeepsAbilities(t *testing.T) {
	m, _ := traced(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	local, err := file.Open(t.Context(), path, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	node := observe(t, m, "disk.raw", local)
	defer node.Close()
	conn, sendable := node.File().(syscall.Conn)
	if !sendable {
		t.Fatal("a local file cannot be sent from")
	}
	if raw, err := conn.SyscallConn(); err != nil || raw == nil {
		t.Errorf("got %v, %v", raw, err)
	}
	if d, ok := node.File().(interface{ Direct() bool }); !ok || d.Direct() {
		t.Error("it does not say that it goes through the page cache")
	}
	want, err := local.Allocated(t.Context())
	if got, gotErr := node.Allocated(t.Context()); got != want || err != nil || gotErr != nil {
		t.Errorf("%d bytes allocated, want %d: %v, %v", got, want, gotErr, err)
	}
	if err := node.StartWriting(t.Context()); err != nil {
		t.Error(err)
	}
	remote := observe(t, m, "remote", failing{newMem(t, 512), nil})
	if _, sendable := remote.File().(syscall.Conn); sendable {
		t.Error("what is no local file can be sent from")
	}
	if err := remote.StartWriting(t.Context()); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("what cannot be written to: %v", err)
	}
	if _, err := remote.WriteAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("what cannot be written to: %v", err)
	}
}

// An observed node is as good as the one below.
func TestObserveIsFilter(t *testing.T) {
	m, _ := traced(t)
	storagetest.TestFilter(t, func(_ *testing.T, next *storage.Node) (storage.File, error) { return m.Observe(next) })
}

// Looking at what is not recorded costs no allocation.
func TestObserveAllocates(t *testing.T) {
	m, _ := traced(t)
	node := observe(t, m, "disk", newMem(t, 1<<20))
	ctx, _ := m.Tracer("test").Start(t.Context(), "not followed")
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := node.ReadAt(ctx, buf, 0); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNodeRead(b *testing.B) {
	for _, observed := range []bool{false, true} {
		name := map[bool]string{false: "bare", true: "not sampled"}[observed]
		b.Run(name, func(b *testing.B) {
			f, err := mem.New(mem.Options{Size: 1 << 20})
			if err != nil {
				b.Fatal(err)
			}
			node := storage.NewNode("disk", f, storage.NodeOptions{})
			if observed {
				seen, err := telemetry.None().Observe(node)
				if err != nil {
					b.Fatal(err)
				}
				node = storage.NewNode("disk", seen, storage.NodeOptions{})
			}
			buf := make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := node.ReadAt(b.Context(), buf, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
