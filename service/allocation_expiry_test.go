package service_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func isGone(t *testing.T, svc *service.Service, id string) func() bool {
	return func() bool {
		_, err := svc.Allocation(t.Context(), "a.qcow2", id)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		return err != nil
	}
}

func TestExpiry(t *testing.T) {
	const ttl = 300 * time.Millisecond
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	opt := service.Options{Dir: dir, AllocationTTL: ttl, Idle: 20 * time.Millisecond}
	keep(t, &opt, filepath.Join(dir, "state"))
	svc := open(t, opt)
	filled := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 4 * cluster})
	held := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: cluster})
	left := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: cluster})
	w, err := svc.OpenAllocation(t.Context(), "a.qcow2", held.ID)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * ttl); time.Now().Before(end); time.Sleep(ttl / 10) {
		fill(t, svc, "a.qcow2", filled.ID, pattern(1, cluster), 0)
	}
	if isGone(t, svc, filled.ID)() || isGone(t, svc, held.ID)() || !isGone(t, svc, left.ID)() {
		t.Error("what is used has expired, or what is not has not")
	}
	if err := svc.GiveBack(t.Context(), "a.qcow2", held.ID); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("giving back what is being filled: %v", err)
	}
	w.Release()
	update(t, svc, "a.qcow2", data(0, cluster, filled.ID, 0))
	eventually(t, "they expire", func() bool { return isGone(t, svc, filled.ID)() && isGone(t, svc, held.ID)() })
	eventually(t, "the image closes", func() bool { return openImages(t, dir) == 0 })
	checkClean(t, dir, "a.qcow2")
	closed(t, svc)
}

// openImages counts the descriptors of images in dir.
func openImages(t *testing.T, dir string) int {
	return openFiles(t, dir) - openFiles(t, filepath.Join(dir, "state"))
}

// What expires while nobody serves it is given back by whoever serves it next,
// though nobody asks for it.
func TestExpiresWhileDown(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	opt := service.Options{Dir: dir, AllocationTTL: 100 * time.Millisecond, Idle: 20 * time.Millisecond}
	for _, killed := range []bool{false, true} {
		keep(t, &opt, filepath.Join(dir, "state"))
		svc := open(t, opt)
		a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 4 * cluster})
		c := takeCrash(t, filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "state", "state.db"))
		closed(t, svc)
		keep(t, &opt, "")
		if killed {
			c.restore(t)
		}
		time.Sleep(100 * time.Millisecond)
		keep(t, &opt, filepath.Join(dir, "state"))
		svc = open(t, opt)
		if !killed && !isGone(t, svc, a.ID)() {
			t.Error("it is still there")
		}
		time.Sleep(50 * time.Millisecond)
		eventually(t, "the image closes", func() bool { return openImages(t, dir) == 0 })
		checkClean(t, dir, "a.qcow2")
		closed(t, svc)
	}
}
