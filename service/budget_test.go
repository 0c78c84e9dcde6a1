package service_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// TestCachesShareMemory: what drivers are granted adds up to what there is, and
// comes back.
func TestCachesShareMemory(t *testing.T) {
	const total = 64 << 20
	dir := t.TempDir()
	var granted int64
	d := service.RawDriver()
	open := d.Open
	d.Extensions = []string{".link"}
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		granted = opt.CacheSize
		l, err := open(ctx, node, opt)
		l.ClusterSize = 512 // of a large image: it could use all
		return l, err
	}
	var names []string
	for _, name := range strings.Fields("a b c d e f g h i j k l m n o p") {
		names = append(names, name+".link")
		write(t, filepath.Join(dir, name+".link"), make([]byte, 1<<20))
	}
	svc := start(t, service.Options{Dir: dir, CacheSize: total, Idle: 50 * time.Millisecond, Formats: map[string]service.Driver{"link": d}})
	for range 3 {
		var handles []*service.Handle
		var sum, first int64
		for i, name := range names {
			handles = append(handles, acquire(t, svc, name))
			sum += granted
			if i == 0 {
				first = granted
			}
			if granted < 128<<10 || granted > total/4 {
				t.Errorf("image %d was granted %d", i, granted)
			}
		}
		if first != total/4 {
			t.Errorf("the first was granted %d", first)
		}
		if sum > total {
			t.Errorf("together they were granted %d of %d", sum, total)
		}
		for _, h := range handles {
			h.Release()
		}
		eventually(t, "all close", func() bool { return openFiles(t, dir) == 0 })
	}
}

// TestHeavyPagesEndEarly: the list of images that say much of themselves does
// not take memory for all of them at once.
func TestHeavyPagesEndEarly(t *testing.T) {
	dir := t.TempDir()
	d := service.RawDriver()
	open := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		l, err := open(ctx, node, opt)
		l.Describe = func(context.Context) (*service.QCOW2, error) {
			return &service.QCOW2{Snapshots: make([]service.Snapshot, 5000)}, nil
		}
		return l, err
	}
	var want []string
	for _, name := range []string{"a.raw", "b.raw", "c.raw", "d.raw", "e.raw"} {
		want = append(want, name)
		write(t, filepath.Join(dir, name), nil)
	}
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{"raw": d}})
	page, err := svc.List(t.Context(), "", 100, nil)
	if err != nil || len(page.Entries) != 2 || page.Next == "" {
		t.Errorf("%d entries, next %q: %v", len(page.Entries), page.Next, err)
	}
	if got := names(listAll(t, svc, 100)); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("listed %v", got)
	}
}
