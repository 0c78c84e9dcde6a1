package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a service with the drivers of the product that is closed at
// the end.
func start(t testing.TB, opt service.Options) *service.Service {
	t.Helper()
	if opt.Formats == nil {
		opt.Formats = map[string]service.Driver{"raw": service.RawDriver(), "qcow2": service.QCOW2Driver()}
	}
	opt.Check = true
	if opt.Recheck == 0 {
		opt.Recheck = -1 // tests change files faster than anybody
	}
	svc, err := service.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil && !errors.Is(err, storage.ErrClosed) { // the test may have closed it
			t.Error(err)
		}
	})
	return svc
}

// keep gives a service what it keeps in dir, opened anew as after the end of a
// process.
func keep(t testing.TB, opt *service.Options, dir string) {
	t.Helper()
	if err := opt.State.Close(); err != nil {
		t.Fatal(err)
	}
	db := state.New(dir)
	opt.State = db
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

func acquire(t testing.TB, svc *service.Service, name string) *service.Handle {
	t.Helper()
	h, err := svc.Acquire(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// read returns the whole image.
func read(t testing.TB, h *service.Handle) []byte {
	t.Helper()
	p := make([]byte, h.Device().Size())
	if err := h.Device().ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func readImage(t testing.TB, svc *service.Service, name string) []byte {
	t.Helper()
	h := acquire(t, svc, name)
	defer h.Release()
	return read(t, h)
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// qemu runs qemu-img or qemu-io in dir.
func qemu(t testing.TB, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("%v: apt-get install qemu-utils", err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// overlay makes a qcow2 image of 1 MiB that names its backing, unread.
func overlay(t testing.TB, dir, name, backing, format string) {
	t.Helper()
	args := []string{"qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing}
	if format != "" {
		args = append(args, "-F", format)
	}
	qemu(t, dir, append(args, name, "1M")...)
}

// openFiles counts the descriptors of this process that lead into dir.
func openFiles(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(target, dir+"/") {
			n++
		}
	}
	return n
}

// eventually fails unless ok becomes true within a few seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// pattern is n bytes that differ from place to place and from seed to seed.
func pattern(seed byte, n int) []byte {
	return bytes.Repeat([]byte{seed, 1, 2, 3, seed ^ 0xff, 5, 6, 7}, (n+7)/8)[:n]
}

// gatedDriver opens raw images once its gate lets it.
func gatedDriver(gate func(ctx context.Context) error) service.Driver {
	d := service.RawDriver()
	d.Extensions = []string{".gated"}
	open := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		if err := gate(ctx); err != nil {
			return service.Layer{}, fmt.Errorf("gate: %w", err)
		}
		return open(ctx, node, opt)
	}
	return d
}

// flushDriver opens raw images that ask before they flush.
func flushDriver(flush func() error) service.Driver {
	d := service.RawDriver()
	d.Extensions = []string{".counted"}
	open := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		l, err := open(ctx, node, opt)
		l.Mapper = &flushed{l.Mapper.(rawMapper), flush}
		return l, err
	}
	return d
}

type rawMapper interface {
	storage.WritableMapper
	storage.Resizer
	StartWriting(ctx context.Context) error
}

type flushed struct {
	rawMapper
	flush func() error
}

func (f *flushed) Flush(ctx context.Context) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.rawMapper.Flush(ctx)
}
