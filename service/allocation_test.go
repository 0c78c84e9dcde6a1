package service_test

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

const cluster = 64 << 10

// newDisk makes an image of 64 clusters of 64 KiB, the first four of which are
// written.
func newDisk(t testing.TB, dir, name string, options ...string) {
	t.Helper()
	args := append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, options...)
	qemu(t, dir, append(args, name, "4M")...)
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 256k", name)
}

func allocate(t testing.TB, svc *service.Service, name string, req service.AllocationRequest) *service.Allocation {
	t.Helper()
	a, err := svc.Allocate(t.Context(), name, req)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func fill(t testing.TB, svc *service.Service, name, id string, p []byte, off int64) {
	t.Helper()
	if err := tryFill(t, svc, name, id, p, off); err != nil {
		t.Fatal(err)
	}
}

func tryFill(t testing.TB, svc *service.Service, name, id string, p []byte, off int64) error {
	w, err := svc.OpenAllocation(t.Context(), name, id)
	if err != nil {
		return err
	}
	defer w.Release()
	return w.WriteAt(t.Context(), p, off)
}

// data is an update that maps a part of an allocation.
func data(off, n int64, id string, at int64) service.Update {
	return service.Update{Offset: off, Length: n, Kind: service.KindData, Allocation: id, AllocationOffset: at}
}

func update(t testing.TB, svc *service.Service, name string, updates ...service.Update) {
	t.Helper()
	if _, err := svc.Update(t.Context(), name, updates, nil); err != nil {
		t.Fatal(err)
	}
}

func closed(t testing.TB, svc *service.Service) {
	t.Helper()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
}

// open is start without the close at the end.
func open(t testing.TB, opt service.Options) *service.Service {
	t.Helper()
	if opt.Formats == nil {
		opt.Formats = map[string]service.Driver{"raw": service.RawDriver(), "qcow2": service.QCOW2Driver()}
	}
	opt.Check = true
	svc, err := service.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// checkClean fails unless qemu-img finds nothing at all.
func checkClean(t testing.TB, dir, name string) {
	t.Helper()
	qemu(t, dir, "qemu-img", "check", "-q", name)
}

// checkSound fails if qemu-img finds more than leaks.
func checkSound(t testing.TB, dir, name string) {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", name)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
		t.Errorf("qemu-img check %s: %v\n%s", name, err, out)
	}
}

func TestAllocation(t *testing.T) {
	for _, contiguous := range []bool{true, false} {
		dir := t.TempDir()
		newDisk(t, dir, "a.qcow2")
		opt := service.Options{Dir: dir}
		keep(t, &opt, filepath.Join(dir, ".state"))
		svc := open(t, opt)
		before := time.Now()
		a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 5*cluster - 7, Contiguous: contiguous})
		if !regexp.MustCompile(`^a-[a-z2-7]{26}$`).MatchString(a.ID) || a.Length != 5*cluster || contiguous && !a.Contiguous || len(a.Mapped) != 0 {
			t.Errorf("%+v", a)
		}
		if in := a.Expires.Sub(before); in < 59*time.Minute || in > 61*time.Minute {
			t.Errorf("it expires in %v", in)
		}
		at := int64(0)
		for _, e := range a.Extents {
			if e.AllocationOffset != at || e.Node != "a.qcow2" || e.NodeOffset%cluster != 0 || e.NodeOffset == 0 {
				t.Errorf("%+v", e)
			}
			at += e.Length
		}
		fill(t, svc, "a.qcow2", a.ID, pattern(5, 3*cluster), 2*cluster)
		fill(t, svc, "a.qcow2", a.ID, pattern(4, 2*cluster), 0)
		want := append(bytes.Repeat([]byte{1}, 4*cluster), make([]byte, 60*cluster)...)
		if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
			t.Error("what is not mapped shows")
		}
		update(t, svc, "a.qcow2", data(3*cluster, 3*cluster, a.ID, 2*cluster))
		copy(want[3*cluster:], pattern(5, 3*cluster))
		if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
			t.Error("wrong content once it is mapped")
		}
		got, err := svc.Allocation(t.Context(), "a.qcow2", a.ID)
		a.Mapped = []service.AllocationRange{{AllocationOffset: 2 * cluster, Length: 3 * cluster}}
		if diff := cmp.Diff(a, got, cmpopts.IgnoreFields(*a, "Expires")); err != nil || diff != "" {
			t.Error(err, diff)
		}
		if list, err := svc.Allocations(t.Context(), "a.qcow2"); err != nil || len(list) != 1 || !cmp.Equal(list[0], got) {
			t.Errorf("%+v, %v", list, err)
		}
		if err := tryFill(t, svc, "a.qcow2", a.ID, []byte{1, 2}, 2*cluster-1); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("filling what is mapped: %v", err)
		}
		if err := svc.GiveBack(t.Context(), "a.qcow2", a.ID); err != nil {
			t.Error(err)
		}
		for _, again := range []func() error{
			func() error { _, err := svc.Allocation(t.Context(), "a.qcow2", a.ID); return err },
			func() error { return svc.GiveBack(t.Context(), "a.qcow2", a.ID) },
			func() error { return tryFill(t, svc, "a.qcow2", a.ID, []byte{1}, 0) },
			func() error { _, err := svc.Allocation(t.Context(), "nothing.qcow2", a.ID); return err },
			func() error { return svc.GiveBack(t.Context(), "nothing.qcow2", a.ID) },
		} {
			if err := again(); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("what is given back: %v", err)
			}
		}
		closed(t, svc)
		checkClean(t, dir, "a.qcow2")
		svc = open(t, service.Options{Dir: dir})
		if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
			t.Error("wrong content after a restart")
		}
		closed(t, svc)
	}
}

func TestAllocateRefuses(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	write(t, filepath.Join(dir, "b.raw"), pattern(1, 1<<20))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=d.data,data_file_raw=on", "d.qcow2", "1M")
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{{Name: "fixed", Path: filepath.Join(dir, "b.raw"), ReadOnly: true}}})
	anchored := func(off, n int64) service.AllocationRequest {
		return service.AllocationRequest{Anchored: &service.Range{Offset: off, Length: n}}
	}
	h := acquire(t, svc, "a.qcow2")
	defer h.Release()
	generation := h.Generation()
	for _, c := range []struct {
		image string
		req   service.AllocationRequest
		want  error
	}{
		{"a.qcow2", service.AllocationRequest{}, storage.ErrInvalid},
		{"a.qcow2", service.AllocationRequest{Length: -1}, storage.ErrInvalid},
		{"a.qcow2", service.AllocationRequest{Length: 64<<30 + 1}, storage.ErrInvalid},
		{"a.qcow2", service.AllocationRequest{Length: 1, Anchored: &service.Range{Length: cluster}}, storage.ErrInvalid},
		{"a.qcow2", service.AllocationRequest{Contiguous: true, Anchored: &service.Range{Length: cluster}}, storage.ErrInvalid},
		{"a.qcow2", anchored(0, 0), storage.ErrInvalid},
		{"a.qcow2", anchored(-cluster, cluster), storage.ErrInvalid},
		{"a.qcow2", anchored(0, 1<<62), storage.ErrInvalid},
		{"a.qcow2", anchored(64*cluster, cluster), storage.ErrOutOfRange},
		{"a.qcow2", anchored(1<<62, cluster), storage.ErrOutOfRange},
		{"a.qcow2", anchored(512, cluster), storage.ErrMisaligned},
		{"a.qcow2", anchored(cluster, 512), storage.ErrMisaligned},
		{"a.qcow2", anchored(0, cluster), storage.ErrConflict},           // data
		{"a.qcow2", anchored(8*cluster, cluster), storage.ErrConflict},   // nothing
		{"a.qcow2", anchored(3*cluster, 2*cluster), storage.ErrConflict}, // both
		{"b.raw", service.AllocationRequest{Length: 1}, storage.ErrUnsupported},
		{"b.raw", anchored(0, 4096), storage.ErrUnsupported},
		{"d.qcow2", service.AllocationRequest{Length: 1}, storage.ErrUnsupported},
		{"fixed", service.AllocationRequest{Length: 1}, storage.ErrReadOnly},
		{"none.qcow2", service.AllocationRequest{Length: 1}, storage.ErrNotFound},
	} {
		if _, err := svc.Allocate(t.Context(), c.image, c.req); !errors.Is(err, c.want) {
			t.Errorf("%s, %+v: %v, want %v", c.image, c.req, err, c.want)
		}
	}
	if h.Generation() != generation {
		t.Error("the map has changed")
	}
	for _, name := range []string{"a.qcow2", "b.raw", "fixed"} {
		if list, err := svc.Allocations(t.Context(), name); err != nil || len(list) != 0 {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	if _, err := svc.Allocations(t.Context(), "none.qcow2"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

func TestReadOnlyServer(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	opt := service.Options{Dir: dir, ReadOnly: true}
	keep(t, &opt, filepath.Join(dir, "state"))
	svc := start(t, opt)
	_, allocating := svc.Allocate(t.Context(), "a.qcow2", service.AllocationRequest{Length: 1})
	_, filling := svc.OpenAllocation(t.Context(), "a.qcow2", "a-x")
	_, updating := svc.Update(t.Context(), "a.qcow2", []service.Update{{Length: cluster, Kind: service.KindZero}}, nil)
	for _, err := range []error{allocating, filling, updating, svc.GiveBack(t.Context(), "a.qcow2", "a-x")} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Error(err)
		}
	}
	if list, err := svc.Allocations(t.Context(), "a.qcow2"); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if _, err := svc.Allocation(t.Context(), "a.qcow2", "a-x"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	if matches, _ := filepath.Glob(filepath.Join(dir, "*")); len(matches) != 1 {
		t.Errorf("files were made: %v", matches)
	}
}

// An image has 1,000 allocations at most, and the next one after one is given
// back.
func TestAllocationLimit(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "4M")
	svc := open(t, service.Options{Dir: dir})
	var last *service.Allocation
	for range 1000 {
		last = allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 1})
	}
	if _, err := svc.Allocate(t.Context(), "a.qcow2", service.AllocationRequest{Length: 1}); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("one more: %v", err)
	}
	if err := svc.GiveBack(t.Context(), "a.qcow2", last.ID); err != nil {
		t.Fatal(err)
	}
	allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 1})
	if list, err := svc.Allocations(t.Context(), "a.qcow2"); err != nil || len(list) != 1000 {
		t.Errorf("%d, %v", len(list), err)
	}
	closed(t, svc)
	checkSound(t, dir, "a.qcow2")
}

// Two names for one file: an allocation is of the one under which it was made.
// Deleting the image takes its allocations along.
func TestAllocationNames(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	kept := filepath.Join(dir, "state")
	opt := service.Options{Dir: dir, Idle: 20 * time.Millisecond, Images: []service.ImageSpec{{Name: "again", Path: filepath.Join(dir, "a.qcow2")}}}
	keep(t, &opt, kept)
	svc := open(t, opt)
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: cluster})
	b := allocate(t, svc, "again", service.AllocationRequest{Length: cluster})
	check := func() {
		t.Helper()
		for _, c := range []struct{ image, id, other string }{{"again", b.ID, a.ID}, {"a.qcow2", a.ID, b.ID}} {
			list, err := svc.Allocations(t.Context(), c.image)
			if err != nil || len(list) != 1 || list[0].ID != c.id {
				t.Errorf("%s: %v, %v", c.image, list, err)
			}
			if _, err := svc.Allocation(t.Context(), c.image, c.other); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%s has what is another's: %v", c.image, err)
			}
		}
	}
	check()
	closed(t, svc)
	keep(t, &opt, kept)
	svc = open(t, opt)
	check()
	if err := svc.Delete(t.Context(), "a.qcow2", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is closed", func() bool { return openFiles(t, dir) == openFiles(t, kept) })
	newDisk(t, dir, "a.qcow2")
	for _, name := range []string{"a.qcow2", "again"} {
		if list, err := svc.Allocations(t.Context(), name); err != nil || len(list) != 0 {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
}
