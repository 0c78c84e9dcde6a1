package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func takeSnapshot(t testing.TB, svc *service.Service, image, name string) service.Snapshot {
	t.Helper()
	s, err := svc.CreateSnapshot(t.Context(), image, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func acquireSnapshot(t testing.TB, svc *service.Service, image, ref string) *service.SnapshotHandle {
	t.Helper()
	h, err := svc.AcquireSnapshot(t.Context(), image, ref)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// readSnapshot returns all of a snapshot.
func readSnapshot(t testing.TB, svc *service.Service, image, ref string) []byte {
	t.Helper()
	h := acquireSnapshot(t, svc, image, ref)
	defer h.Release()
	p := make([]byte, h.Size())
	if err := h.Device().ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func revert(t testing.TB, svc *service.Service, image, ref string) {
	t.Helper()
	if err := svc.RevertSnapshot(t.Context(), image, ref, nil); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshots takes, reads, reverts to and deletes snapshots; QEMU agrees.
func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	qemu(t, dir, "qemu-img", "snapshot", "-c", "of qemu", "vm.qcow2")
	svc := start(t, service.Options{Dir: dir})
	first := readImage(t, svc, "vm.qcow2")
	if s := takeSnapshot(t, svc, "vm.qcow2", "one"); s.ID != "2" || s.Name != "one" || s.Size != 4<<20 {
		t.Errorf("%+v", s)
	}
	w := acquireWritable(t, svc, "vm.qcow2")
	put(t, w, pattern(9, 100_000), 1000)
	second := read(t, w)
	takeSnapshot(t, svc, "vm.qcow2", "two")
	put(t, w, pattern(10, 4<<20), 0)
	if err := svc.Resize(t.Context(), "vm.qcow2", 6<<20, false, nil); err != nil {
		t.Fatal(err)
	}
	w.Release()
	for ref, want := range map[string][]byte{"of qemu": first, "one": first, "id:1": first, "two": second, "id:3": second} {
		if !bytes.Equal(readSnapshot(t, svc, "vm.qcow2", ref), want) {
			t.Errorf("%s reads otherwise", ref)
		}
	}
	revert(t, svc, "vm.qcow2", "two")
	if !bytes.Equal(readImage(t, svc, "vm.qcow2"), second) {
		t.Error("the image is not what it was, or as long")
	}
	revert(t, svc, "vm.qcow2", "id:2")
	if !bytes.Equal(readImage(t, svc, "vm.qcow2"), first) {
		t.Error("the image is not what it was first")
	}
	if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", "one", nil); err != nil {
		t.Fatal(err)
	}
	all, err := svc.Snapshots(t.Context(), "vm.qcow2")
	if err != nil || len(all) != 2 || all[0].Name != "of qemu" || all[1].Name != "two" {
		t.Errorf("%+v, %v", all, err)
	}
	if s, err := svc.Snapshot(t.Context(), "vm.qcow2", "two"); err != nil || s != all[1] {
		t.Errorf("%+v, %v", s, err)
	}
	closed(t, svc)
	checkClean(t, dir, "vm.qcow2")
	if out := qemu(t, dir, "qemu-img", "snapshot", "-l", "vm.qcow2"); !strings.Contains(out, "two") || strings.Contains(out, "one") {
		t.Error(out)
	}
}

// TestSnapshotErrors: what cannot be is told apart.
func TestSnapshotErrors(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	for range 2 {
		qemu(t, dir, "qemu-img", "snapshot", "-c", "twice", "vm.qcow2")
	}
	qemu(t, dir, "qemu-img", "snapshot", "-c", "id:7", "vm.qcow2")
	newDisk(t, dir, "external.qcow2", "-o", "data_file=external.raw")
	write(t, dir+"/disk.raw", make([]byte, 4096))
	svc := start(t, service.Options{Dir: dir})
	create := func(image, name string) error {
		_, err := svc.CreateSnapshot(t.Context(), image, name)
		return err
	}
	lookUp := func(image, ref string) error {
		_, err := svc.Snapshot(t.Context(), image, ref)
		h, other := svc.AcquireSnapshot(t.Context(), image, ref)
		if other == nil {
			h.Release()
		}
		if fmt.Sprint(err) != fmt.Sprint(other) {
			t.Errorf("%v, and when it is acquired %v", err, other)
		}
		return err
	}
	takeSnapshot(t, svc, "vm.qcow2", "ours")
	never := func(string) bool { return false }
	for what, test := range map[string]struct{ got, want error }{
		"no image":      {create("none.qcow2", "x"), storage.ErrNotFound},
		"raw":           {create("disk.raw", "x"), storage.ErrUnsupported},
		"raw, read":     {lookUp("disk.raw", "x"), storage.ErrUnsupported},
		"external":      {create("external.qcow2", "x"), storage.ErrUnsupported},
		"exists":        {create("vm.qcow2", "ours"), storage.ErrExists},
		"theirs exists": {create("vm.qcow2", "twice"), storage.ErrExists},
		"empty":         {create("vm.qcow2", ""), storage.ErrInvalid},
		"long":          {create("vm.qcow2", strings.Repeat("é", 128)), storage.ErrInvalid},
		"an id":         {create("vm.qcow2", "id:9"), storage.ErrInvalid},
		"NUL":           {create("vm.qcow2", "a\x00b"), storage.ErrInvalid},
		"unknown":       {lookUp("vm.qcow2", "none"), storage.ErrNotFound},
		"unknown id":    {lookUp("vm.qcow2", "id:99"), storage.ErrNotFound},
		"is an id":      {lookUp("vm.qcow2", "id:7"), storage.ErrNotFound},
		"ambiguous":     {lookUp("vm.qcow2", "twice"), storage.ErrConflict},
		"by id":         {lookUp("vm.qcow2", "id:2"), nil},
		"named as one":  {lookUp("vm.qcow2", "id:3"), nil},
		"delete which":  {svc.DeleteSnapshot(t.Context(), "vm.qcow2", "twice", nil), storage.ErrConflict},
		"delete none":   {svc.DeleteSnapshot(t.Context(), "vm.qcow2", "none", nil), storage.ErrNotFound},
		"revert none":   {svc.RevertSnapshot(t.Context(), "vm.qcow2", "none", nil), storage.ErrNotFound},
		"delete if":     {svc.DeleteSnapshot(t.Context(), "vm.qcow2", "ours", never), service.ErrPrecondition},
		"revert if":     {svc.RevertSnapshot(t.Context(), "vm.qcow2", "ours", never), service.ErrPrecondition},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%s: %v, want %v", what, test.got, test.want)
		}
	}
	closed(t, svc)
	readOnly := start(t, service.Options{Dir: dir, ReadOnly: true})
	if _, err := readOnly.CreateSnapshot(t.Context(), "vm.qcow2", "x"); !errors.Is(err, storage.ErrReadOnly) {
		t.Error(err)
	}
}

// TestSnapshotGenerations: those of a snapshot stay, across restarts and whatever
// happens to the image; one that takes its place has others. Of the image, taking
// one changes the map's alone.
func TestSnapshotGenerations(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	svc := open(t, service.Options{Dir: dir})
	h := acquireWritable(t, svc, "vm.qcow2")
	mapping, content := h.Generation(), h.DataGeneration()
	takeSnapshot(t, svc, "vm.qcow2", "one")
	if h.Generation() == mapping || h.DataGeneration() != content {
		t.Errorf("from %s %s to %s %s", mapping, content, h.Generation(), h.DataGeneration())
	}
	generations := func() string {
		s := acquireSnapshot(t, svc, "vm.qcow2", "one")
		defer s.Release()
		if s.Generation() == s.DataGeneration() {
			t.Error("two are one")
		}
		return s.Generation() + " " + s.DataGeneration()
	}
	before := generations()
	put(t, h, pattern(3, 70_000), 0)
	takeSnapshot(t, svc, "vm.qcow2", "two")
	mapping, content = h.Generation(), h.DataGeneration()
	revert(t, svc, "vm.qcow2", "two")
	if h.Generation() == mapping || h.DataGeneration() == content {
		t.Error("a revert changes no generation")
	}
	h.Release()
	if after := generations(); after != before {
		t.Errorf("%s has become %s", before, after)
	}
	closed(t, svc)
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "vm.qcow2")
	svc = start(t, service.Options{Dir: dir})
	if after := generations(); after != before {
		t.Errorf("after a restart %s is %s", before, after)
	}
	id := mustSnapshot(t, svc, "one").ID
	for _, ref := range []string{"one", "two"} {
		if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", ref, nil); err != nil {
			t.Fatal(err)
		}
	}
	if again := takeSnapshot(t, svc, "vm.qcow2", "one"); again.ID != id {
		t.Fatalf("the id is %s, and was %s", again.ID, id)
	}
	if generations() == before {
		t.Error("another snapshot has the same generation")
	}
}

func mustSnapshot(t testing.TB, svc *service.Service, ref string) service.Snapshot {
	t.Helper()
	s, err := svc.Snapshot(t.Context(), "vm.qcow2", ref)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSnapshotsAndAllocations: what is reserved stays so, and what is claimed is in
// the way.
func TestSnapshotsAndAllocations(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	svc := start(t, service.Options{Dir: dir, State: state.New(t.TempDir())})
	takeSnapshot(t, svc, "vm.qcow2", "before")
	a := allocate(t, svc, "vm.qcow2", service.AllocationRequest{Length: 128 << 10})
	fill(t, svc, "vm.qcow2", a.ID, pattern(5, 128<<10), 0)
	takeSnapshot(t, svc, "vm.qcow2", "meanwhile")
	revert(t, svc, "vm.qcow2", "before")
	update(t, svc, "vm.qcow2", data(1<<20, 128<<10, a.ID, 0))
	if got := readImage(t, svc, "vm.qcow2")[1<<20 : 1<<20+128<<10]; !bytes.Equal(got, pattern(5, 128<<10)) {
		t.Error("what was reserved has not come to be")
	}
	if zeros := make([]byte, 3<<20); !bytes.Equal(readSnapshot(t, svc, "vm.qcow2", "meanwhile")[1<<20:], zeros) {
		t.Error("it shows in a snapshot")
	}
	h := acquireWritable(t, svc, "vm.qcow2")
	if err := h.Device().Zero(t.Context(), 1<<20, 64<<10, true); err != nil {
		t.Fatal(err)
	}
	h.Release()
	claim := allocate(t, svc, "vm.qcow2", service.AllocationRequest{Anchored: &service.Range{Offset: 1 << 20, Length: 64 << 10}})
	if _, err := svc.CreateSnapshot(t.Context(), "vm.qcow2", "x"); !errors.Is(err, storage.ErrConflict) {
		t.Error(err)
	}
	if err := svc.RevertSnapshot(t.Context(), "vm.qcow2", "before", nil); !errors.Is(err, storage.ErrConflict) {
		t.Error(err)
	}
	if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", "meanwhile", nil); err != nil {
		t.Error(err)
	}
	fill(t, svc, "vm.qcow2", claim.ID, pattern(6, 64<<10), 0)
	update(t, svc, "vm.qcow2", data(1<<20, 64<<10, claim.ID, 0))
	takeSnapshot(t, svc, "vm.qcow2", "after")
	if got := readSnapshot(t, svc, "vm.qcow2", "after")[1<<20 : 1<<20+64<<10]; !bytes.Equal(got, pattern(6, 64<<10)) {
		t.Error("what was claimed is not in the snapshot")
	}
}

// TestManySnapshots opens more than are kept open.
func TestManySnapshots(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	svc := start(t, service.Options{Dir: dir})
	h := acquireWritable(t, svc, "vm.qcow2")
	defer h.Release()
	const many = 20
	var held []*service.SnapshotHandle
	for n := range byte(many) {
		put(t, h, pattern(n, 65536), 0)
		name := fmt.Sprint("s", n)
		takeSnapshot(t, svc, "vm.qcow2", name)
		held = append(held, acquireSnapshot(t, svc, "vm.qcow2", name))
	}
	check := func(n int, s *service.SnapshotHandle) error {
		p := make([]byte, 65536)
		if err := s.Device().ReadAt(context.Background(), p, 0); err != nil {
			return err
		}
		if !bytes.Equal(p, pattern(byte(n), 65536)) {
			return fmt.Errorf("snapshot %d reads otherwise", n)
		}
		return nil
	}
	for n := range many {
		if err := check(n, held[n]); err != nil {
			t.Error(err)
		}
		held[n].Release()
	}
	for n := range many {
		s := acquireSnapshot(t, svc, "vm.qcow2", fmt.Sprint("s", many-1-n))
		if err := check(many-1-n, s); err != nil {
			t.Error(err)
		}
		s.Release()
	}
}
