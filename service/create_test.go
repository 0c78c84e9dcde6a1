package service_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// entries are the names of everything in the directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out
}

func raw(name string, size int64) service.CreateRequest {
	return service.CreateRequest{Name: name, Format: "raw", Size: size, HasSize: true}
}

func qcow2(name string, size int64) service.CreateRequest {
	return service.CreateRequest{Name: name, Format: "qcow2", Size: size, HasSize: true}
}

func TestCreateRaw(t *testing.T) {
	dir := t.TempDir()
	svc := start(t, service.Options{Dir: dir})
	for preallocation, allocated := range map[string]bool{"": false, "off": false, "falloc": true, "full": true} {
		r := raw("p"+preallocation+".img", 5<<20+7)
		r.Preallocation = preallocation
		if err := svc.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		h := acquire(t, svc, r.Name)
		info, err := h.Info(t.Context())
		if err != nil || info.Size != r.Size || (info.Allocated >= r.Size) != allocated || info.ReadOnly {
			t.Errorf("preallocation %q: %+v, %v", preallocation, info, err)
		}
		h.Release()
	}
	w := acquireWritable(t, svc, "p.img")
	put(t, w, pattern(1, 100), 0)
	w.Release()
	if err := svc.Create(t.Context(), raw("p.img", 1)); !errors.Is(err, storage.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
}

func TestCreateQCOW2(t *testing.T) {
	dir := t.TempDir()
	svc := start(t, service.Options{Dir: dir})
	with := func(name string, set func(*service.CreateRequest)) service.CreateRequest {
		r := qcow2(name, 4<<20)
		set(&r)
		return r
	}
	for _, r := range []service.CreateRequest{
		qcow2("plain.qcow2", 4<<20),
		with("old.qcow2", func(r *service.CreateRequest) { r.Compat = "0.10" }),
		with("small.qcow2", func(r *service.CreateRequest) { r.ClusterSize, r.RefcountBits, r.Compat = 512, 1, "1.1" }),
		with("ext.qcow2", func(r *service.CreateRequest) { r.ExtendedL2, r.LazyRefcounts, r.CompressionType = true, true, "zstd" }),
		with("data.qcow2", func(r *service.CreateRequest) { r.DataFile, r.DataFileRaw = "disk.data", true }),
		with("meta.qcow2", func(r *service.CreateRequest) { r.Preallocation = "metadata" }),
		with("over.qcow2", func(r *service.CreateRequest) { r.Backing, r.HasSize, r.Size = "plain.qcow2", false, 0 }),
		with("longer.qcow2", func(r *service.CreateRequest) { r.Backing, r.BackingFormat, r.Size = "plain.qcow2", "qcow2", 8<<20 }),
	} {
		if err := svc.Create(t.Context(), r); err != nil {
			t.Errorf("%s: %v", r.Name, err)
			continue
		}
		qemu(t, dir, "qemu-img", "check", "-q", r.Name)
		h := acquire(t, svc, r.Name)
		want := max(r.Size, 4<<20)
		if got := h.Device().Size(); got != want {
			t.Errorf("%s: size %d, want %d", r.Name, got, want)
		}
		h.Release()
		w := acquireWritableUnless(t, svc, r.Name, "plain.qcow2")
		if w != nil {
			put(t, w, pattern(1, 70000), 1000)
			w.Release()
		}
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	out := qemu(t, dir, "qemu-img", "info", "longer.qcow2")
	if !strings.Contains(out, "backing file: plain.qcow2\n") || !strings.Contains(out, "backing file format: qcow2\n") {
		t.Error(out)
	}
	for _, name := range []string{"old.qcow2", "small.qcow2", "ext.qcow2", "data.qcow2", "over.qcow2", "longer.qcow2"} {
		qemu(t, dir, "qemu-img", "check", "-q", name)
		qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "read -P 1 1001 1", name)
	}
}

// acquireWritableUnless leaves alone what others are made to need.
func acquireWritableUnless(t *testing.T, svc *service.Service, name, not string) *service.Handle {
	t.Helper()
	if name == not {
		return nil
	}
	return acquireWritable(t, svc, name)
}

func TestCreateRefuses(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 4096))
	write(t, filepath.Join(elsewhere, "far.raw"), pattern(1, 4096))
	far := service.ImageSpec{Name: "far.raw", Path: filepath.Join(elsewhere, "far.raw")}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{far}})
	before := entries(t, dir)
	for what, test := range map[string]struct {
		r     service.CreateRequest
		field string // of the *storage.InvalidError
		err   error
	}{
		"no format":           {r: service.CreateRequest{Name: "x.raw", HasSize: true}, field: "format"},
		"unknown format":      {r: service.CreateRequest{Name: "x.vmdk", Format: "vmdk", HasSize: true}, field: "format"},
		"no name":             {r: raw("", 1), field: "name"},
		"a path":              {r: raw("../x.raw", 1), field: "name"},
		"hidden":              {r: raw(".x.raw", 1), field: "name"},
		"another extension":   {r: raw("x.qcow2", 1), field: "name"},
		"no extension":        {r: qcow2("x", 1), field: "name"},
		"no size":             {r: service.CreateRequest{Name: "x.raw", Format: "raw"}, field: "size"},
		"negative size":       {r: raw("x.raw", -1), field: "size"},
		"too large":           {r: raw("x.raw", storage.MaxSize+1), field: "size"},
		"raw with clusters":   {r: change(raw("x.raw", 1), func(r *service.CreateRequest) { r.ClusterSize = 65536 }), field: "cluster_size"},
		"raw with a backing":  {r: change(raw("x.raw", 1), func(r *service.CreateRequest) { r.Backing = "base.raw" }), field: "backing"},
		"raw with metadata":   {r: change(raw("x.raw", 1), func(r *service.CreateRequest) { r.Preallocation = "metadata" }), field: "preallocation"},
		"unknown compat":      {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.Compat = "2" }), field: "compat"},
		"bad cluster size":    {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.ClusterSize = 1000 }), field: "cluster_size"},
		"format of nothing":   {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.BackingFormat = "raw" }), field: "backing_format"},
		"wrong format":        {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.Backing, r.BackingFormat = "base.raw", "qcow2" }), field: "backing_format"},
		"raw data of nothing": {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.DataFileRaw = true }), field: "data_file_raw"},
		"data in a path":      {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.DataFile = "sub/x" }), field: "data_file"},
		"data in itself":      {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.DataFile = "x.qcow2" }), field: "data_file"},
		"exists":              {r: raw("base.raw", 1), err: storage.ErrExists},
		"exists elsewhere":    {r: raw("far.raw", 1), err: storage.ErrExists},
		"data exists":         {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.DataFile = "base.raw" }), err: storage.ErrExists},
		"no backing":          {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.Backing = "none.raw" }), err: storage.ErrBackingUnavailable},
		"backing outside":     {r: change(qcow2("x.qcow2", 1), func(r *service.CreateRequest) { r.Backing = "far.raw" }), err: storage.ErrRefused},
	} {
		err := svc.Create(t.Context(), test.r)
		var invalid *storage.InvalidError
		switch {
		case test.err != nil && !errors.Is(err, test.err):
			t.Errorf("%s: %v", what, err)
		case test.field != "" && (!errors.As(err, &invalid) || invalid.Field != test.field):
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(before, entries(t, dir)); diff != "" {
			t.Errorf("%s: something is left: %s", what, diff)
		}
	}
	w := acquireWritable(t, svc, "base.raw")
	r := qcow2("x.qcow2", 1)
	r.Backing = "base.raw"
	if err := svc.Create(t.Context(), r); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("over what is being written to: %v", err)
	}
	w.Release()
	if err := svc.Create(t.Context(), r); err != nil {
		t.Errorf("over what was written to: %v", err)
	}
	refused(t, svc, "base.raw", storage.ErrConflict)
	if err := start(t, service.Options{Images: []service.ImageSpec{far}}).Create(t.Context(), raw("n.raw", 1)); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("without a directory: %v", err)
	}
}

func change(r service.CreateRequest, set func(*service.CreateRequest)) service.CreateRequest {
	set(&r)
	return r
}

// A create that fails in the middle, or that nobody waits for anymore, leaves
// nothing behind.
func TestCreateLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("broken")
	ctx, cancel := context.WithCancel(t.Context())
	var step func() error
	driver := service.RawDriver()
	driver.Extensions, driver.Children = []string{".made"}, true
	driver.Create = func(ctx context.Context, node *storage.Node, opt service.CreateOptions) error {
		for _, n := range []*storage.Node{node, opt.DataNode} {
			if _, err := n.WriteAt(ctx, pattern(1, 512), 0); err != nil {
				return err
			}
		}
		return step()
	}
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{"made": driver}})
	r := service.CreateRequest{Name: "a.made", Format: "made", HasSize: true, DataFile: "a.data"}
	for what, fail := range map[string]func() error{
		"driver":    func() error { return broken },
		"cancelled": func() error { cancel(); return nil },
		"image appears": func() error {
			write(t, filepath.Join(dir, "a.made"), nil)
			return nil
		},
		"data appears": func() error {
			write(t, filepath.Join(dir, "a.data"), nil)
			return nil
		},
	} {
		step = fail
		if err := svc.Create(ctx, r); err == nil {
			t.Errorf("%s: no error", what)
		}
		ctx, cancel = context.WithCancel(t.Context())
		left := slices.DeleteFunc(entries(t, dir), func(name string) bool {
			return what == "image appears" && name == "a.made" || what == "data appears" && name == "a.data"
		})
		if len(left) > 0 {
			t.Errorf("%s: %v is left", what, left)
		}
		for _, name := range entries(t, dir) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	step = func() error { return nil }
	if err := svc.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.data", "a.made"}, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// Of many who create one image, one does.
func TestCreateRaces(t *testing.T) {
	dir := t.TempDir()
	svc := start(t, service.Options{Dir: dir})
	for i := range 10 {
		name := fmt.Sprintf("%d.raw", i)
		var wg sync.WaitGroup
		made := make(chan error, 8)
		for range 8 {
			wg.Go(func() { made <- svc.Create(t.Context(), raw(name, 4096)) })
		}
		wg.Wait()
		close(made)
		n := 0
		for err := range made {
			switch {
			case err == nil:
				n++
			case !errors.Is(err, storage.ErrExists):
				t.Error(err)
			}
		}
		if n != 1 {
			t.Errorf("%d have made it", n)
		}
	}
}

// TestCreateTooLarge: what cannot be reserved is refused before anything of it is.
func TestCreateTooLarge(t *testing.T) {
	dir := t.TempDir()
	svc := start(t, service.Options{Dir: dir})
	for _, r := range []service.CreateRequest{raw("x.raw", 1<<60), qcow2("x.qcow2", 1<<50)} {
		for _, preallocation := range []string{"falloc", "full"} {
			r.Preallocation = preallocation
			if err := svc.Create(t.Context(), r); !errors.Is(err, storage.ErrNoSpace) || !strings.Contains(err.Error(), "available") {
				t.Errorf("%s: %v", preallocation, err)
			}
		}
	}
	if all := entries(t, dir); len(all) != 0 {
		t.Errorf("left behind: %v", all)
	}
}
