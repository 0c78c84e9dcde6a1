package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// failing opens raw images that fail as they are told.
type failing struct {
	rawMapper
	start, close func() error
}

func (f *failing) StartWriting(ctx context.Context) error {
	return errors.Join(f.start(), f.rawMapper.StartWriting(ctx))
}

func (f *failing) Close() error { return errors.Join(f.close(), f.rawMapper.Close()) }

func failingDriver(start, closing func() error) map[string]service.Driver {
	d := service.RawDriver()
	open := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		l, err := open(ctx, node, opt)
		l.Mapper = &failing{l.Mapper.(rawMapper), start, closing}
		return l, err
	}
	return map[string]service.Driver{"raw": d}
}

// An upgrade that ends half-way leaves an image that can be read, and be upgraded
// the next time.
func TestUpgradeFailsHalfWay(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	broken := errors.New("broken")
	fail := broken
	svc := start(t, service.Options{Dir: dir, Formats: failingDriver(func() error { return fail }, func() error { return nil })})
	h := acquire(t, svc, "a.raw")
	refused(t, svc, "a.raw", broken)
	again := acquire(t, svc, "a.raw")
	if again == h || again.Writable() {
		t.Error("it was not opened anew")
	}
	if !bytes.Equal(read(t, h), read(t, again)) {
		t.Error("they differ")
	}
	again.Release()
	h.Release()
	fail = nil
	w := acquireWritable(t, svc, "a.raw")
	put(t, w, pattern(2, 4096), 0)
	w.Release()
	if !bytes.Equal(readImage(t, svc, "a.raw"), pattern(2, 4096)) {
		t.Error("wrong content")
	}
}

// That what was written could not be closed cleanly is said to somebody.
func TestCloseFails(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	write(t, filepath.Join(dir, "b.raw"), pattern(1, 4096))
	broken := errors.New("broken")
	told := make(chan string, 10)
	svc := start(t, service.Options{
		Dir: dir, Idle: 50 * time.Millisecond,
		Formats: failingDriver(func() error { return nil }, func() error { return broken }),
		OnError: func(image string, err error) {
			if !errors.Is(err, broken) {
				t.Error(err)
			}
			told <- image
		},
	})
	acquire(t, svc, "b.raw").Release() // nothing was written to it
	acquireWritable(t, svc, "a.raw").Release()
	if name := <-told; name != "a.raw" {
		t.Error(name)
	}
	acquireWritable(t, svc, "a.raw").Release()
	if err := svc.Close(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "a.raw") {
		t.Error(err)
	}
	if len(told) > 0 {
		t.Errorf("told of %s too", <-told)
	}
}

// TestCrowdOfWriters lets everything happen at once to files with two names.
func TestCrowdOfWriters(t *testing.T) {
	dir := t.TempDir()
	const images, size = 3, 64 << 10
	for i := range images {
		name := fmt.Sprintf("%d.qcow2", i)
		qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", name, "64k")
		hardLink(t, dir, name, fmt.Sprintf("%d-too.qcow2", i))
	}
	svc := start(t, service.Options{Dir: dir, MaxOpen: 4, Idle: 8 * time.Millisecond})
	var wg sync.WaitGroup
	stop := time.Now().Add(time.Second)
	for w := range 8 {
		wg.Go(func() {
			part := int64(w) * size / 8
			seen := map[string]bool{}
			for k := 0; time.Now().Before(stop); k++ {
				name := fmt.Sprintf("%d%s.qcow2", k%images, []string{"", "-too"}[k/images%2])
				h, err := svc.AcquireWritable(t.Context(), name)
				if err != nil {
					t.Error(err)
					return
				}
				p := pattern(byte(k), size/8)
				before := h.DataGeneration()
				put(t, h, p, part)
				if now := h.DataGeneration(); now == before || seen[now] {
					t.Errorf("generation %s after %s", now, before)
				} else {
					seen[now] = true
				}
				if err := h.Device().ReadAt(t.Context(), p, part); err != nil || !bytes.Equal(p, pattern(byte(k), size/8)) {
					t.Errorf("what was written is not there: %v", err)
				}
				h.Release()
				time.Sleep(time.Duration(k%7) * time.Millisecond)
			}
		})
	}
	wg.Go(func() {
		for time.Now().Before(stop) {
			page, err := svc.List(t.Context(), "", 10, nil)
			if err != nil || len(page.Entries) != 2*images {
				t.Errorf("%d entries, %v", len(page.Entries), err)
			}
			for _, e := range page.Entries {
				if e.Err != nil {
					t.Errorf("%s: %v", e.Name, e.Err)
				}
			}
		}
	})
	wg.Wait()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range images {
		qemu(t, dir, "qemu-img", "check", "-q", fmt.Sprintf("%d.qcow2", i))
	}
}
