package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/filter/cow"
	"github.com/extentd/extentd/storage/filter/offset"
	"github.com/extentd/extentd/storage/storagetest"
)

// A diary says which nodes were opened and closed, in order.
type diary struct {
	mu      sync.Mutex // protects all below
	entries []string
	fail    string // what cannot be opened
}

func (d *diary) note(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = append(d.entries, text)
}

// open notes that a node is opened, unless it is the one that cannot be.
func (d *diary) open(kind string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == kind {
		return errors.New("a node that fails")
	}
	d.entries = append(d.entries, "open "+kind)
	return nil
}

// take is what was noted since it was called last.
func (d *diary) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries := d.entries
	d.entries = nil
	return entries
}

func (d *diary) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.entries)
}

// expect fails unless that was noted.
func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, d.take()); diff != "" {
		t.Error(diff)
	}
}

// A noted file lives on when it is closed.
type noted struct {
	*storagetest.MemFile
	d    *diary
	kind string
}

func (n noted) Close() error {
	n.d.note("close " + n.kind)
	return nil
}

// keptNode is a node that holds what is written to it while it is open.
func (d *diary) keptNode(content []byte, hook storagetest.Hook) service.GraphNode {
	return service.GraphNode{Kind: "mem", Keep: true, Open: func(context.Context) (storage.File, error) {
		if err := d.open("mem"); err != nil {
			return nil, err
		}
		m := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
		m.Put(content, 0)
		return noted{m, d, "mem"}, nil
	}}
}

// A pass filter passes everything on.
type pass struct {
	filter.Sizes
	filter.Reads
	filter.Maps
	filter.Limits
	filter.Changes
	filter.Starts
	filter.Flushes
	next *storage.Node
	d    *diary
	kind string
}

func (p *pass) Close() error {
	p.d.note("close " + p.kind)
	return p.next.Close()
}

func (p *pass) Counters() []filter.Counter { return []filter.Counter{{Name: "tests", Value: 7}} }

func (d *diary) pass(kind string) service.GraphFilter {
	return service.GraphFilter{Kind: kind, Open: func(_ context.Context, n *storage.Node) (storage.File, error) {
		if err := d.open(kind); err != nil {
			return nil, err
		}
		return &pass{
			filter.Sizes{Next: n},
			filter.Reads{Next: n},
			filter.Maps{Next: n},
			filter.Limits{Next: n},
			filter.Changes{Next: n},
			filter.Starts{Next: n},
			filter.Flushes{Next: n},
			n, d, kind,
		}, nil
	}}
}

// window is a filter that shows a part of a node.
func window(off, n int64) service.GraphFilter {
	return service.GraphFilter{
		Kind: "offset", Options: fmt.Sprint(off, n),
		Open: func(ctx context.Context, next *storage.Node) (storage.File, error) {
			return offset.New(ctx, next, offset.Options{Offset: off, Length: n})
		},
	}
}

// overlaid is a filter that keeps what is written to it to itself.
func overlaid() service.GraphFilter {
	return service.GraphFilter{Kind: "cow", Overlay: true, Keep: true, Open: func(ctx context.Context, next *storage.Node) (storage.File, error) {
		scratch := storage.NewNode("scratch", storagetest.NewMemFileWith(storagetest.MemOptions{}), storage.NodeOptions{Check: true})
		return cow.New(ctx, next, cow.Options{File: scratch})
	}}
}

// unaligned is for Options.Blocksize.
func unaligned(_ context.Context, next *storage.Node) (storage.File, error) {
	return blocksize.New(next, blocksize.Options{})
}

// on is an image on a graph over a file.
func on(path string, filters ...service.GraphFilter) *service.Graph {
	return &service.Graph{Node: service.GraphNode{Kind: "file", Path: path}, Filters: filters}
}

// shortIdle is long for a test, and short for people.
const shortIdle = 20 * time.Millisecond

// What is opened from the node upwards is closed from the top down.
func TestGraphOrder(t *testing.T) {
	d := &diary{}
	g := &service.Graph{Node: d.keptNode(pattern(1, 4096), nil), Filters: []service.GraphFilter{d.pass("a"), d.pass("b")}}
	g.Node.Keep = false
	svc := start(t, service.Options{Idle: shortIdle, Images: []service.ImageSpec{{Name: "x", Format: "raw", Graph: g}}})
	h := acquire(t, svc, "x")
	if !bytes.Equal(read(t, h), pattern(1, 4096)) {
		t.Error("wrong content")
	}
	d.expect(t, "open mem", "open a", "open b")
	h.Release()
	eventually(t, "it is closed", func() bool { return d.len() == 3 })
	d.expect(t, "close b", "close a", "close mem")
	for _, fails := range []struct {
		kind string
		want []string
	}{
		{"mem", nil},
		{"a", []string{"open mem", "close mem"}},
		{"b", []string{"open mem", "open a", "close a", "close mem"}},
	} {
		d.fail = fails.kind
		if _, err := svc.Acquire(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "a node that fails") {
			t.Errorf("%s fails: %v", fails.kind, err)
		}
		d.expect(t, fails.want...)
	}
}

// So it is when the format finds nothing that it knows.
func TestGraphFormatFails(t *testing.T) {
	d := &diary{}
	g := &service.Graph{Node: d.keptNode(pattern(1, 4096), nil), Filters: []service.GraphFilter{d.pass("a")}}
	g.Node.Keep = false
	svc := start(t, service.Options{Images: []service.ImageSpec{{Name: "x", Format: "qcow2", Graph: g}}})
	if _, err := svc.Acquire(t.Context(), "x"); !errors.Is(err, storage.ErrCorrupt) {
		t.Error(err)
	}
	d.expect(t, "open mem", "open a", "close a", "close mem")
}

// What is kept is opened once, and outlives its image.
func TestGraphIsKept(t *testing.T) {
	d := &diary{}
	fails := false
	hook := func(_ context.Context, op *storagetest.Op) error {
		if fails && op.Kind == storagetest.OpFlush {
			return errors.New("a flush that fails")
		}
		return nil
	}
	g := &service.Graph{Node: d.keptNode(pattern(1, 4096), hook), Filters: []service.GraphFilter{d.pass("a")}}
	svc := start(t, service.Options{Idle: shortIdle, Images: []service.ImageSpec{{Name: "x", Format: "raw", Graph: g}}})
	seen := map[string]bool{}
	fresh := func(h *service.Handle) {
		t.Helper()
		if seen[h.DataGeneration()] {
			t.Errorf("%s was the generation of something else", h.DataGeneration())
		}
		seen[h.DataGeneration()] = true
	}
	h := acquireWritable(t, svc, "x")
	fresh(h)
	put(t, h, pattern(2, 512), 512)
	fresh(h)
	generation := h.DataGeneration()
	h.Release()
	var again *service.Handle
	eventually(t, "the image is closed", func() bool {
		again = acquire(t, svc, "x")
		same := again == h
		again.Release()
		if same {
			time.Sleep(2 * shortIdle)
		}
		return !same
	})
	if again.DataGeneration() != generation {
		t.Error("a clean close changes the generation")
	}
	h = acquireWritable(t, svc, "x")
	put(t, h, pattern(3, 512), 1024)
	fresh(h)
	fails = true
	err := h.Device().Flush(t.Context())
	if !errors.Is(err, storage.ErrOutOfService) {
		t.Error(err)
	}
	h.Report(err)
	fails = false
	again = acquire(t, svc, "x")
	if again == h {
		t.Error("the handle is the one that failed")
	}
	fresh(again)
	h.Release()
	again.Release()
	h = acquireWritable(t, svc, "x") // it can go on
	want := slices.Concat(pattern(1, 512), pattern(2, 512), pattern(3, 512), pattern(1, 4096-1536))
	if !bytes.Equal(read(t, h), want) {
		t.Error("wrong content")
	}
	put(t, h, pattern(4, 512), 0)
	d.expect(t, "open mem", "open a")
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	d.expect(t) // in use
	h.Release()
	d.expect(t, "close a", "close mem")
}

func TestGraphsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	d := &diary{}
	path := filepath.Join(dir, "a.raw")
	for what, spec := range map[string]service.ImageSpec{
		"no format":        {Graph: &service.Graph{Node: d.keptNode(nil, nil)}},
		"path and graph":   {Path: path, Graph: on(path)},
		"nothing opens it": {Format: "raw", Graph: &service.Graph{Node: service.GraphNode{Kind: "x"}}},
		"two ways":         {Format: "raw", Graph: &service.Graph{Node: service.GraphNode{Path: path, Open: d.keptNode(nil, nil).Open}}},
		"filter":           {Graph: on(path, service.GraphFilter{Kind: "x"})},
	} {
		spec.Name = "x"
		svc, err := service.New(service.Options{Images: []service.ImageSpec{spec}, Formats: map[string]service.Driver{"raw": service.RawDriver()}})
		if err == nil {
			t.Errorf("%s is taken", what)
			_ = svc.Close()
		}
	}
}
