package service_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// A crash keeps files as they are while a service has them open, and puts them
// back, in the same inodes, once it is closed: what a process leaves that is
// killed.
type crash map[string][]byte

func takeCrash(t *testing.T, paths ...string) crash {
	t.Helper()
	c := crash{}
	for _, path := range paths {
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c[path] = p
	}
	return c
}

func (c crash) restore(t *testing.T) {
	t.Helper()
	for path, p := range c {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// upload is an image with an allocation of eight clusters, all filled, of which
// the second and third are mapped at 16 clusters.
type upload struct {
	dir  string
	opt  service.Options
	svc  *service.Service
	a    *service.Allocation
	want []byte
	// check is for the end. What was freed shortly before a kill leaks.
	check func(t testing.TB, dir, name string)
}

func newUpload(t *testing.T) *upload {
	t.Helper()
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	u := &upload{dir: dir, check: checkClean, opt: service.Options{Dir: dir}}
	u.restart(t)
	a := allocate(t, u.svc, "a.qcow2", service.AllocationRequest{Length: 8 * cluster})
	fill(t, u.svc, "a.qcow2", a.ID, pattern(9, 8*cluster), 0)
	update(t, u.svc, "a.qcow2", data(16*cluster, 2*cluster, a.ID, cluster))
	u.want = append(bytes.Repeat([]byte{1}, 4*cluster), make([]byte, 60*cluster)...)
	copy(u.want[16*cluster:], pattern(9, 8*cluster)[cluster:3*cluster])
	var err error
	if u.a, err = u.svc.Allocation(t.Context(), "a.qcow2", a.ID); err != nil {
		t.Fatal(err)
	}
	return u
}

// dies ends the service as kill would.
func (u *upload) dies(t *testing.T) {
	t.Helper()
	c := takeCrash(t, filepath.Join(u.dir, "a.qcow2"), filepath.Join(u.dir, ".state", "state.db"))
	closed(t, u.svc)
	keep(t, &u.opt, "")
	c.restore(t)
	u.check = checkSound
}

func (u *upload) restart(t *testing.T) {
	keep(t, &u.opt, filepath.Join(u.dir, ".state"))
	u.svc = open(t, u.opt)
}

// resumed fails unless the allocation is as it was, and goes on: without filling
// it again, the rest is mapped.
func (u *upload) resumed(t *testing.T) {
	t.Helper()
	got, err := u.svc.Allocation(t.Context(), "a.qcow2", u.a.ID)
	if diff := cmp.Diff(u.a, got, cmpopts.EquateApproxTime(time.Hour)); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if _, err := u.svc.Update(t.Context(), "a.qcow2", []service.Update{data(30*cluster, 2*cluster, u.a.ID, 0)}, nil); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("mapping a part again: %v", err)
	}
	allocate(t, u.svc, "a.qcow2", service.AllocationRequest{Length: cluster}) // takes none of its blocks
	update(t, u.svc, "a.qcow2", data(30*cluster, cluster, u.a.ID, 0), data(31*cluster, 5*cluster, u.a.ID, 3*cluster))
	copy(u.want[30*cluster:], pattern(9, cluster))
	copy(u.want[31*cluster:], pattern(9, 8*cluster)[3*cluster:])
	u.ends(t)
}

// ends compares the content, gives everything back, and checks.
func (u *upload) ends(t *testing.T) {
	t.Helper()
	list, err := u.svc.Allocations(t.Context(), "a.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if err := u.svc.GiveBack(t.Context(), "a.qcow2", a.ID); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(readImage(t, u.svc, "a.qcow2"), u.want) {
		t.Error("wrong content")
	}
	closed(t, u.svc)
	u.check(t, u.dir, "a.qcow2")
}

// gone fails unless there is no such allocation, and writes all over the image:
// nothing may be mapped twice.
func (u *upload) gone(t *testing.T) {
	t.Helper()
	if _, err := u.svc.Allocation(t.Context(), "a.qcow2", u.a.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("the allocation should be gone: %v", err)
	}
	a := allocate(t, u.svc, "a.qcow2", service.AllocationRequest{Length: 20 * cluster})
	fill(t, u.svc, "a.qcow2", a.ID, pattern(8, 20*cluster), 0)
	update(t, u.svc, "a.qcow2", data(40*cluster, 20*cluster, a.ID, 0))
	copy(u.want[40*cluster:], pattern(8, 20*cluster))
}

// What is reserved and not filled, qemu-img finds all the same.
func TestLeaksAreFound(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	svc := open(t, service.Options{Dir: dir})
	allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 40 * cluster})
	closed(t, svc)
	qemu(t, dir, "qemu-img", "check", "-q", "-r", "leaks", "a.qcow2")
	svc = open(t, service.Options{Dir: dir})
	before := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 40 * cluster})
	if err := svc.GiveBack(t.Context(), "a.qcow2", before.ID); err != nil {
		t.Fatal(err)
	}
	closed(t, svc)
	svc = open(t, service.Options{Dir: dir})
	after := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 40 * cluster})
	if diff := cmp.Diff(before.Extents, after.Extents); diff != "" {
		t.Errorf("the file has grown: %s", diff)
	}
	closed(t, svc)
	if r := leaks(t, dir, "a.qcow2"); r != 40 {
		t.Errorf("%d leaks are found of 40", r)
	}
}

// leaks is how many qemu-img check finds.
func leaks(t *testing.T, dir, name string) int {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", "--output=json", name)
	cmd.Dir = dir
	out, _ := cmd.Output() // exits with 3 if there are some
	var report struct{ Leaks int }
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	return report.Leaks
}

func TestResume(t *testing.T) {
	u := newUpload(t)
	closed(t, u.svc)
	checkSound(t, u.dir, "a.qcow2")
	u.restart(t)
	for _, repair := range []string{service.RepairNone, service.RepairLeaks} {
		if r, err := u.svc.Check(t.Context(), "a.qcow2", repair); err != nil || r.Leaks != 0 || r.LeaksFixed != 0 {
			t.Errorf("%s: %+v, %v", repair, r, err)
		}
	}
	u.resumed(t)
}

// Nobody asks for the allocation, and its blocks are kept all the same.
func TestResumeBeforeWriting(t *testing.T) {
	u := newUpload(t)
	closed(t, u.svc)
	for range 2 { // and once more: the first time leaves a record as good
		u.restart(t)
		update(t, u.svc, "a.qcow2", service.Update{Length: cluster, Kind: service.KindZero})
		b := allocate(t, u.svc, "a.qcow2", service.AllocationRequest{Length: 16 * cluster})
		fill(t, u.svc, "a.qcow2", b.ID, pattern(2, 16*cluster), 0)
		if err := u.svc.GiveBack(t.Context(), "a.qcow2", b.ID); err != nil {
			t.Error(err)
		}
		closed(t, u.svc)
	}
	clear(u.want[:cluster])
	u.restart(t)
	u.resumed(t)
}

func TestResumeAfterKill(t *testing.T) {
	u := newUpload(t)
	update(t, u.svc, "a.qcow2", service.Update{Length: cluster, Kind: service.KindZero})
	h := acquireWritable(t, u.svc, "a.qcow2")
	if err := h.Device().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Release()
	clear(u.want[:cluster])
	u.dies(t)
	checkSound(t, u.dir, "a.qcow2")
	u.restart(t)
	u.resumed(t)
}

// What was mapped and not flushed may be lost with the process. It is not mapped
// a second time.
func TestKillBeforeFlush(t *testing.T) {
	u := newUpload(t)
	u.dies(t)
	u.restart(t)
	h := acquire(t, u.svc, "a.qcow2")
	got := read(t, h)
	h.Release()
	lost := bytes.Clone(u.want)
	clear(lost[16*cluster : 18*cluster])
	if !bytes.Equal(got, u.want) && !bytes.Equal(got, lost) {
		t.Error("wrong content")
	}
	u.want = got
	if _, err := u.svc.Update(t.Context(), "a.qcow2", []service.Update{data(20*cluster, cluster, u.a.ID, cluster)}, nil); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("mapping what may be mapped: %v", err)
	}
	update(t, u.svc, "a.qcow2", data(20*cluster, 5*cluster, u.a.ID, 3*cluster))
	copy(u.want[20*cluster:], pattern(9, 8*cluster)[3*cluster:])
	if !bytes.Equal(readImage(t, u.svc, "a.qcow2"), u.want) {
		t.Error("wrong content after the rest is mapped")
	}
	closed(t, u.svc)
	checkSound(t, u.dir, "a.qcow2")
}

// TestChangedWhileDown: whatever QEMU does to the image while nobody serves it.
func TestChangedWhileDown(t *testing.T) {
	for _, c := range []struct {
		name  string
		while func(u *upload)
		gone  bool
	}{
		{"repaired", func(u *upload) { qemu(t, u.dir, "qemu-img", "check", "-q", "-r", "leaks", "a.qcow2") }, true},
		{"repaired and written", func(u *upload) {
			qemu(t, u.dir, "qemu-img", "check", "-q", "-r", "leaks", "a.qcow2")
			for k := range 10 { // one by one, so that they take every gap
				qemu(t, u.dir, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 4 %dk 64k", 1280+64*k), "a.qcow2")
			}
			copy(u.want[20*cluster:], bytes.Repeat([]byte{4}, 10*cluster))
		}, true},
		{"written", func(u *upload) {
			qemu(t, u.dir, "qemu-io", "-f", "qcow2", "-c", "write -P 4 1280k 640k", "a.qcow2")
			copy(u.want[20*cluster:], bytes.Repeat([]byte{4}, 10*cluster))
		}, false},
		{"a snapshot", func(u *upload) { qemu(t, u.dir, "qemu-img", "snapshot", "-c", "s", "a.qcow2") }, false},
		{"touched", func(u *upload) { touch(t, filepath.Join(u.dir, "a.qcow2")) }, false},
		{"replaced", func(u *upload) {
			path := filepath.Join(u.dir, "a.qcow2")
			p, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path, path+".old"); err != nil { // the inode stays taken
				t.Fatal(err)
			}
			write(t, path, p)
			qemu(t, u.dir, "qemu-img", "check", "-q", "-r", "leaks", "a.qcow2")
		}, true},
		{"made anew", func(u *upload) {
			qemu(t, u.dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
			clear(u.want)
		}, true},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				u := newUpload(t)
				flush(t, u.svc, "a.qcow2")
				if killed {
					u.dies(t)
				} else {
					closed(t, u.svc)
				}
				c.while(u)
				u.restart(t)
				if c.gone {
					u.gone(t)
					u.ends(t)
				} else {
					u.resumed(t)
				}
			})
		}
	}
}

func flush(t testing.TB, svc *service.Service, name string) {
	t.Helper()
	h := acquireWritable(t, svc, name)
	defer h.Release()
	if err := h.Device().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func touch(t testing.TB, path string) {
	t.Helper()
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
}

// A claim is resumed if the image was not changed, and only then.
func TestResumeClaim(t *testing.T) {
	for _, spoil := range []bool{false, true} {
		dir := t.TempDir()
		newDisk(t, dir, "a.qcow2")
		qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 256k", "-c", "write -z 512k 256k", "a.qcow2")
		opt := service.Options{Dir: dir}
		keep(t, &opt, filepath.Join(dir, "state"))
		svc := open(t, opt)
		a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Anchored: &service.Range{Offset: 8 * cluster, Length: 4 * cluster}})
		fill(t, svc, "a.qcow2", a.ID, pattern(6, 4*cluster), 0)
		update(t, svc, "a.qcow2", data(9*cluster, cluster, a.ID, cluster))
		closed(t, svc)
		checkClean(t, dir, "a.qcow2")
		if spoil {
			qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 4 512k 64k", "a.qcow2")
		}
		keep(t, &opt, filepath.Join(dir, "state"))
		svc = open(t, opt)
		want := append(bytes.Repeat([]byte{1}, 4*cluster), make([]byte, 60*cluster)...)
		copy(want[9*cluster:], pattern(6, 4*cluster)[cluster:2*cluster])
		zero := []service.Update{{Offset: 8 * cluster, Length: cluster, Kind: service.KindZero}}
		if spoil {
			copy(want[8*cluster:], bytes.Repeat([]byte{4}, cluster))
			if _, err := svc.Allocation(t.Context(), "a.qcow2", a.ID); !errors.Is(err, storage.ErrNotFound) {
				t.Error(err)
			}
		} else {
			if _, err := svc.Update(t.Context(), "a.qcow2", zero, nil); !errors.Is(err, storage.ErrConflict) {
				t.Errorf("the range is not claimed: %v", err)
			}
			update(t, svc, "a.qcow2", data(10*cluster, 2*cluster, a.ID, 2*cluster), data(8*cluster, cluster, a.ID, 0))
			copy(want[8*cluster:], pattern(6, 4*cluster))
		}
		if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
			t.Error("wrong content")
		}
		update(t, svc, "a.qcow2", zero...)
		closed(t, svc)
		checkClean(t, dir, "a.qcow2")
	}
}
