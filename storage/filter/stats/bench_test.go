package stats_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/filter/log"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/filter/retry"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/storagetest"
)

// plain is a filter that does nothing.
type plain struct{}

func (plain) Interpose(ctx context.Context, r filter.Request) (int, error) { return r.Do(ctx) }

// BenchmarkReadAt reads 4 KiB of memory through filters: what a layer costs is
// the difference.
func BenchmarkReadAt(b *testing.B) {
	quiet := log.Options{Logger: slog.New(slog.NewTextHandler(new(bytes.Buffer), nil))}
	for _, c := range []struct {
		name   string
		layers int
		open   func(next *storage.Node) (filter.Filter, error)
	}{
		{"plain", 0, nil},
		{"plain", 1, func(next *storage.Node) (filter.Filter, error) { return filter.Interpose(next, plain{}), nil }},
		{"plain", 3, func(next *storage.Node) (filter.Filter, error) { return filter.Interpose(next, plain{}), nil }},
		{"log off", 1, func(next *storage.Node) (filter.Filter, error) { return log.New(next, quiet) }},
		{"rate", 1, func(next *storage.Node) (filter.Filter, error) { return rate.New(next, rate.Options{Read: 1 << 50}) }},
		{"retry", 1, func(next *storage.Node) (filter.Filter, error) { return retry.New(next, retry.Options{}) }},
		{"error", 1, func(next *storage.Node) (filter.Filter, error) { return fault.New(next, fault.Options{Rate: 1e-18}) }},
		{"stats", 1, func(next *storage.Node) (filter.Filter, error) { return stats.New(next, stats.Options{}) }},
	} {
		mem := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 1<<20))
		node := storage.NewNode("mem", mem, storage.NodeOptions{})
		for range c.layers {
			f, err := c.open(node)
			if err != nil {
				b.Fatal(err)
			}
			node = storage.NewNode("filter", f, storage.NodeOptions{})
		}
		b.Run(fmt.Sprintf("%s=%d", c.name, c.layers), func(b *testing.B) { benchmark(b, node) })
		b.Run(fmt.Sprintf("%s=%d parallel", c.name, c.layers), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 4096)
				for pb.Next() {
					if _, err := node.ReadAt(b.Context(), p, 64<<10); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func benchmark(b *testing.B, node *storage.Node) {
	b.ReportAllocs()
	ctx, p := b.Context(), make([]byte, 4096)
	for b.Loop() {
		if _, err := node.ReadAt(ctx, p, 64<<10); err != nil {
			b.Fatal(err)
		}
	}
}
