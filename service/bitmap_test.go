package service_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// step is one step of a change of bitmaps.
func step(image string, kind storage.BitmapChangeKind, name string, from ...string) service.ImageBitmapChange {
	return service.ImageBitmapChange{Image: image, BitmapChange: storage.BitmapChange{Kind: kind, Name: name, From: from}}
}

// recording creates an enabled bitmap.
func recording(image, name string) service.ImageBitmapChange {
	c := step(image, storage.BitmapCreate, name)
	c.Granularity, c.Enabled = 4096, true
	return c
}

func changeBitmaps(t testing.TB, svc *service.Service, changes ...service.ImageBitmapChange) {
	t.Helper()
	if err := svc.ChangeBitmaps(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
}

// bitmapsOf tells the bitmaps of an image: their names, with a star for those that
// record, and how much is dirty.
func bitmapsOf(t testing.TB, svc *service.Service, name string) string {
	t.Helper()
	h := acquire(t, svc, name)
	defer h.Release()
	all, err := h.Bitmaps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, i := range all {
		star := ""
		if i.Enabled {
			star = "*"
		}
		fmt.Fprintf(&b, "%s%s=%d ", i.Name, star, i.Dirty)
		if one, err := h.Bitmap(t.Context(), i.Name); err != nil || one != i {
			t.Errorf("bitmap %s: %+v, %v; in the list %+v", i.Name, one, err, i)
		}
	}
	return strings.TrimSpace(b.String())
}

func writeAt(t testing.TB, svc *service.Service, name string, off int64, n int) {
	t.Helper()
	h, err := svc.AcquireWritable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if err := h.Device().WriteAt(t.Context(), pattern(7, n), off); err != nil {
		t.Fatal(err)
	}
}

// TestBitmaps is the life of a bitmap, and how QEMU sees it.
func TestBitmaps(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "disk.qcow2")
	svc := open(t, service.Options{Dir: dir})
	const disk = "disk.qcow2"
	want := func(text string) {
		t.Helper()
		if got := bitmapsOf(t, svc, disk); got != text {
			t.Fatalf("bitmaps %s, want %s", got, text)
		}
	}
	want("")
	changeBitmaps(t, svc, recording(disk, "first"))
	want("first*=0")
	writeAt(t, svc, disk, 5000, 5000)
	want("first*=8192")
	changeBitmaps(t, svc, recording(disk, "second"), step(disk, storage.BitmapDisable, "first"))
	writeAt(t, svc, disk, 1<<20, 1)
	want("first=8192 second*=4096")
	changeBitmaps(t, svc, step(disk, storage.BitmapCreate, "both"), step(disk, storage.BitmapMerge, "both", "first", "second"))
	want("first=8192 second*=4096 both=131072")
	changeBitmaps(t, svc, step(disk, storage.BitmapClear, "first"), step(disk, storage.BitmapEnable, "first"), step(disk, storage.BitmapDelete, "both"))
	want("first*=0 second*=4096")
	var pieces []string
	h := acquire(t, svc, disk)
	err := h.Dirty(t.Context(), "second", 1<<20-4096, 3*4096, func(off, n int64, dirty bool) error {
		pieces = append(pieces, fmt.Sprint(off>>12, n>>12, dirty))
		return nil
	})
	info, infoErr := h.Info(t.Context())
	h.Release()
	if diff := cmp.Diff([]string{"255 1 false", "256 1 true", "257 1 false"}, pieces); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if infoErr != nil || len(info.QCOW2.Bitmaps) != 2 || info.QCOW2.Bitmaps[1].Dirty != 4096 {
		t.Errorf("%+v, %v", info.QCOW2, infoErr)
	}
	closed(t, svc)
	if out := qemu(t, dir, "qemu-img", "info", disk); strings.Count(out, "[0]: auto") != 2 || strings.Contains(out, "in-use") {
		t.Errorf("QEMU sees %s", out)
	}
	checkClean(t, dir, disk)
	svc = open(t, service.Options{Dir: dir})
	want("first*=0 second*=4096")
	closed(t, svc)
}

// TestBitmapsRefused: what cannot be is told apart, and changes nothing.
func TestBitmapsRefused(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "disk.qcow2")
	newDisk(t, dir, "other.qcow2")
	newDisk(t, dir, "old.qcow2", "-o", "compat=0.10")
	write(t, filepath.Join(dir, "disk.raw"), pattern(1, 1<<20))
	svc := start(t, service.Options{Dir: dir})
	changeBitmaps(t, svc, recording("disk.qcow2", "there"), recording("other.qcow2", "there"))
	bad := func(g int64) service.ImageBitmapChange {
		c := recording("disk.qcow2", "bad")
		c.Granularity = g
		return c
	}
	for what, tt := range map[string]struct {
		changes []service.ImageBitmapChange
		want    error
		index   int // of the change that is to blame, or -1
	}{
		"nothing":            {nil, storage.ErrInvalid, -1},
		"too many":           {make([]service.ImageBitmapChange, 1001), storage.ErrInvalid, -1},
		"no operation":       {[]service.ImageBitmapChange{{Image: "disk.qcow2"}}, storage.ErrInvalid, 0},
		"no image":           {[]service.ImageBitmapChange{recording("none.qcow2", "x")}, storage.ErrNotFound, 0},
		"raw":                {[]service.ImageBitmapChange{recording("disk.qcow2", "x"), recording("disk.raw", "x")}, storage.ErrUnsupported, 1},
		"version 2":          {[]service.ImageBitmapChange{recording("disk.qcow2", "x"), recording("old.qcow2", "x")}, storage.ErrUnsupported, -1},
		"exists":             {[]service.ImageBitmapChange{recording("other.qcow2", "x"), recording("disk.qcow2", "there")}, storage.ErrExists, 1},
		"twice":              {[]service.ImageBitmapChange{recording("disk.qcow2", "x"), recording("disk.qcow2", "x")}, storage.ErrExists, 1},
		"unknown":            {[]service.ImageBitmapChange{recording("disk.qcow2", "x"), step("other.qcow2", storage.BitmapDelete, "none")}, storage.ErrNotFound, 1},
		"deleted":            {[]service.ImageBitmapChange{step("disk.qcow2", storage.BitmapDelete, "there"), step("disk.qcow2", storage.BitmapEnable, "there")}, storage.ErrNotFound, 1},
		"merge of nothing":   {[]service.ImageBitmapChange{step("disk.qcow2", storage.BitmapMerge, "there")}, storage.ErrInvalid, 0},
		"merge of none":      {[]service.ImageBitmapChange{step("disk.qcow2", storage.BitmapMerge, "there", "none")}, storage.ErrNotFound, 0},
		"granularity":        {[]service.ImageBitmapChange{bad(513)}, storage.ErrInvalid, 0},
		"little granularity": {[]service.ImageBitmapChange{bad(256)}, storage.ErrInvalid, 0},
		"much granularity":   {[]service.ImageBitmapChange{bad(4 << 30)}, storage.ErrInvalid, 0},
		"no name":            {[]service.ImageBitmapChange{recording("disk.qcow2", "")}, storage.ErrInvalid, 0},
		"long name":          {[]service.ImageBitmapChange{recording("disk.qcow2", strings.Repeat("x", 1024))}, storage.ErrInvalid, 0},
		"slash":              {[]service.ImageBitmapChange{recording("disk.qcow2", "a/b")}, storage.ErrInvalid, 0},
		"NUL":                {[]service.ImageBitmapChange{recording("disk.qcow2", "a\x00")}, storage.ErrInvalid, 0},
		"no UTF-8":           {[]service.ImageBitmapChange{recording("disk.qcow2", "\xff")}, storage.ErrInvalid, 0},
		"dots":               {[]service.ImageBitmapChange{recording("disk.qcow2", "..")}, storage.ErrInvalid, 0},
	} {
		err := svc.ChangeBitmaps(t.Context(), tt.changes)
		var blamed *service.BitmapChangeError
		if !errors.Is(err, tt.want) || errors.As(err, &blamed) != (tt.index >= 0) || blamed != nil && blamed.Index != tt.index {
			t.Errorf("%s: %v, blames %v", what, err, blamed)
		}
		for _, name := range []string{"disk.qcow2", "other.qcow2"} {
			if got := bitmapsOf(t, svc, name); got != "there*=0" {
				t.Fatalf("%s: %s has %s", what, name, got)
			}
		}
	}
	for _, name := range []string{"disk.raw", "disk.qcow2"} {
		h := acquire(t, svc, name)
		want := storage.ErrNotFound
		if name == "disk.raw" {
			want = storage.ErrUnsupported
			if _, err := h.Bitmaps(t.Context()); !errors.Is(err, want) {
				t.Error(err)
			}
		}
		if err := h.Dirty(t.Context(), "none", 0, 0, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := h.Bitmap(t.Context(), "none"); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		h.Release()
	}
	closed(t, svc)
	readOnly := start(t, service.Options{Dir: dir, ReadOnly: true})
	if err := readOnly.ChangeBitmaps(t.Context(), []service.ImageBitmapChange{recording("disk.qcow2", "x")}); !errors.Is(err, storage.ErrReadOnly) {
		t.Error(err)
	}
}

// TestBitmapsOfTwoNames: one image under two names is changed once.
func TestBitmapsOfTwoNames(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "disk.qcow2")
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{{Name: "alias", Path: filepath.Join(dir, "disk.qcow2"), Format: "qcow2"}}})
	changeBitmaps(t, svc, recording("disk.qcow2", "a"), recording("alias", "b"), step("disk.qcow2", storage.BitmapDisable, "b"))
	if got := bitmapsOf(t, svc, "alias"); got != "a*=0 b=0" {
		t.Error(got)
	}
	if err := svc.ChangeBitmaps(context.Background(), []service.ImageBitmapChange{recording("disk.qcow2", "c"), recording("alias", "c")}); !errors.Is(err, storage.ErrExists) {
		t.Error(err)
	}
}
