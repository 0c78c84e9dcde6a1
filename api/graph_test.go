package api_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/readonly"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/storagetest"
)

// A replaceable file fails all reads once it has been replaced.
type replaceable struct {
	storage.File // not its Writer
	replaced     *atomic.Bool
}

func (r *replaceable) Validator() string { return "one" }

func (r *replaceable) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if r.replaced.Load() {
		return 0, storage.ErrChanged
	}
	return r.File.ReadAt(ctx, p, off)
}

// An image says what it stands on, and which limits each node has: a request
// that breaks those of the topmost one reaches none. One that has changed
// underneath is opened anew.
func TestGraph(t *testing.T) {
	var replaced atomic.Bool
	limits := storage.Limits{Minimum: 512, Preferred: 4096}
	node := service.GraphNode{Kind: "http", Name: "disk.img", ReadOnly: true, Open: func(context.Context) (storage.File, error) {
		replaced.Store(false)
		m := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 65536, Limits: limits})
		return &replaceable{m, &replaced}, nil
	}}
	filters := []service.GraphFilter{
		{Kind: "stats", Open: func(_ context.Context, next *storage.Node) (storage.File, error) {
			return stats.New(next, stats.Options{})
		}},
		{Kind: "readonly", ReadOnly: true, Open: func(_ context.Context, next *storage.Node) (storage.File, error) {
			return readonly.New(next, readonly.Options{})
		}},
	}
	f := startWith(t, api.Options{}, service.Options{Images: []service.ImageSpec{
		{Name: "g", Format: "raw", Graph: &service.Graph{Node: node, Filters: filters}},
	}}, nil)
	f.expect(t, 206, "/v1/images/g/data", "Range", "bytes=512-1023")
	f.get(t, "/v1/images/g/data", "Range", "bytes=1-10").problem(t, 400, "misaligned")
	var img api.Image
	decode(t, f.expect(t, 200, "/v1/images/g").body, &img)
	graph := *img.Layers[0].Graph
	var names []string
	for _, n := range graph {
		names = append(names, fmt.Sprintf("%s %s %d", n.Kind, n.Node, n.Limits.Minimum))
	}
	want := []string{"http disk.img 512", "stats stats(disk.img) 512", "readonly readonly(stats(disk.img)) 512"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	read := filter.Read.String()
	if counters := *graph[1].Counters; counters[read+"_operations"] != 1 || counters[read+"_bytes"] != 512 || graph[0].Counters != nil || graph[2].Counters != nil {
		t.Errorf("%+v", graph)
	}
	if img.Layers[0].Node != "readonly(stats(disk.img))" || !img.ReadOnly || img.Limits.Minimum != 512 {
		t.Errorf("%+v", img)
	}
	replaced.Store(true)
	a := f.get(t, "/v1/images/g/data", "Range", "bytes=512-1023")
	a.problem(t, 500, "io-error")
	if !strings.Contains(string(a.body), "changed underneath") {
		t.Errorf("%s", a.body)
	}
	f.expect(t, 206, "/v1/images/g/data", "Range", "bytes=512-1023")
	f.expect(t, 200, "/v1/images") // its answer keeps to the contract
}
