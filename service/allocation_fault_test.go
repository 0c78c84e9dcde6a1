package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	format "github.com/extentd/extentd/storage/qcow2"
)

// A fault fails the nth change of the files of qcow2 images, once armed; 0 is
// none. A lack of space is one of writes alone: a sync that fails has failed.
type fault struct {
	mu    sync.Mutex // protects all below
	nth   int
	err   error
	fired bool
}

func (f *fault) arm(nth int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nth, f.err, f.fired = nth, err, false
}

func (f *fault) hit(sync bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nth == 0 || sync && errors.Is(f.err, storage.ErrNoSpace) {
		return nil
	}
	if f.nth--; f.nth > 0 {
		return nil
	}
	f.fired = true
	return f.err
}

func (f *fault) hasFired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

type writableFile interface {
	storage.File
	storage.Writer
}

type faultyFile struct {
	writableFile
	fault *fault
}

func (f *faultyFile) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.fault.hit(false); err != nil {
		return 0, err
	}
	return f.writableFile.WriteAt(ctx, p, off)
}

func (f *faultyFile) Flush(ctx context.Context) error {
	if err := f.fault.hit(true); err != nil {
		return err
	}
	return f.writableFile.Flush(ctx)
}

// A faultyImage adopts blocks by the node that the service knows.
type faultyImage struct {
	*format.Image
	node *storage.Node
}

func (i faultyImage) Adopt(ctx context.Context, blocks []storage.Blocks, verify bool) error {
	for n := range blocks {
		blocks[n].Node = i.node
	}
	return i.Image.Adopt(ctx, blocks, verify)
}

func faultyFormats(f *fault) map[string]service.Driver {
	d := service.QCOW2Driver()
	inner := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		below, ok := node.File().(writableFile)
		if !ok {
			return service.Layer{}, errors.New("the file cannot be written to")
		}
		faulty := storage.NewNode(node.Name(), &faultyFile{below, f}, storage.NodeOptions{Check: true})
		l, err := inner(ctx, faulty, opt)
		if err != nil {
			return l, err
		}
		i, ok := l.Mapper.(*format.Image)
		if !ok {
			return l, fmt.Errorf("the mapper is a %T", l.Mapper)
		}
		l.Mapper = faultyImage{i, faulty}
		return l, nil
	}
	return map[string]service.Driver{"qcow2": d}
}

// TestAllocationFaults fails every change of the image's file in turn, and looks
// at what is left: each update done or not, whatever was reported done is done,
// and the image goes on.
func TestAllocationFaults(t *testing.T) {
	for _, cause := range []error{syscall.EIO, fmt.Errorf("%w: %w", storage.ErrNoSpace, syscall.ENOSPC)} {
		nth := 1
		for ; faulted(t, nth, cause); nth++ {
			if t.Failed() {
				t.Fatalf("with change %d failing: %v", nth, cause)
			}
		}
		if nth < 5 {
			t.Errorf("%v: only %d faults", cause, nth-1)
		}
	}
}

// faulted reports whether there was an nth change to fail.
func faulted(t *testing.T, nth int, cause error) bool {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	f := &fault{}
	opt := service.Options{Dir: dir, Formats: faultyFormats(f)}
	keep(t, &opt, filepath.Join(dir, "state"))
	svc := open(t, opt)
	f.arm(nth, cause)
	state := uploadFaulty(t, svc)
	stopped := svc.Close()
	fired := f.hasFired()
	f.arm(0, nil)
	checkSound(t, dir, "a.qcow2")
	if errors.Is(cause, storage.ErrNoSpace) && stopped == nil && state.gaveBack {
		checkClean(t, dir, "a.qcow2") // no space is no failure: nothing has leaked
	}

	keep(t, &opt, filepath.Join(dir, "state"))
	svc = open(t, opt)
	got := readImage(t, svc, "a.qcow2")
	for k, at := range []int{10 * cluster, 20 * cluster} {
		part := got[at : at+2*cluster]
		stamp := pattern(9, 4*cluster)[k*2*cluster : (k+1)*2*cluster]
		isNew := bytes.Equal(part, stamp)
		switch {
		case !isNew && len(bytes.Trim(part, "\x00")) > 0:
			t.Errorf("update %d is neither done nor not", k)
		case !isNew && state.flushed && k < state.applied:
			t.Errorf("update %d was reported done, and flushed", k)
		}
	}
	if list, err := svc.Allocations(t.Context(), "a.qcow2"); err != nil {
		t.Error(err)
	} else if state.gaveBack && len(list) > 0 {
		t.Errorf("given back, and there again: %+v", list[0])
	}
	b := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 20 * cluster})
	fill(t, svc, "a.qcow2", b.ID, pattern(8, 20*cluster), 0)
	update(t, svc, "a.qcow2", data(40*cluster, 20*cluster, b.ID, 0))
	copy(got[40*cluster:], pattern(8, 20*cluster))
	if !bytes.Equal(readImage(t, svc, "a.qcow2"), got) {
		t.Error("wrong content after going on")
	}
	closed(t, svc)
	checkSound(t, dir, "a.qcow2")
	return fired
}

type uploadState struct {
	applied           int // updates that were reported done
	flushed, gaveBack bool
}

// uploadFaulty uploads four clusters in two updates, going on after errors as a
// client would.
func uploadFaulty(t *testing.T, svc *service.Service) (s uploadState) {
	ctx := t.Context()
	a, err := svc.Allocate(ctx, "a.qcow2", service.AllocationRequest{Length: 6 * cluster})
	for tries := 0; err != nil; tries++ {
		if tries > 1 {
			t.Errorf("a second failure: %v", err)
			return s
		}
		a, err = svc.Allocate(ctx, "a.qcow2", service.AllocationRequest{Length: 6 * cluster})
	}
	if err := tryFill(t, svc, "a.qcow2", a.ID, pattern(9, 4*cluster), cluster); err != nil {
		s.gaveBack = svc.GiveBack(ctx, "a.qcow2", a.ID) == nil
		return s
	}
	updates := []service.Update{data(10*cluster, 2*cluster, a.ID, cluster), data(20*cluster, 2*cluster, a.ID, 3*cluster)}
	_, err = svc.Update(ctx, "a.qcow2", updates, nil)
	var batch *service.BatchError
	switch {
	case err == nil:
		s.applied = len(updates)
	case errors.As(err, &batch):
		s.applied = batch.Applied
	}
	h, err := svc.AcquireWritable(ctx, "a.qcow2")
	if err == nil {
		err = h.Device().Flush(ctx)
		h.Report(err)
		s.flushed = err == nil && s.applied > 0
		h.Release()
	}
	s.gaveBack = svc.GiveBack(ctx, "a.qcow2", a.ID) == nil
	return s
}

// When a failed write takes the image out of service, what was filled may be
// lost: the allocation is gone, its blocks are not, and the next one finds an
// image that works.
func TestAllocationOutOfService(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	f := &fault{}
	opt := service.Options{Dir: dir, Formats: faultyFormats(f)}
	keep(t, &opt, filepath.Join(dir, "state"))
	svc := open(t, opt)
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 6 * cluster})
	fill(t, svc, "a.qcow2", a.ID, pattern(9, 6*cluster), 0)
	update(t, svc, "a.qcow2", data(10*cluster, cluster, a.ID, 0))
	f.arm(1, syscall.EIO)
	h := acquireWritable(t, svc, "a.qcow2")
	err := h.Device().Flush(t.Context())
	h.Report(err)
	h.Release()
	if !errors.Is(err, storage.ErrOutOfService) {
		t.Fatal(err)
	}
	if _, err := svc.Allocation(t.Context(), "a.qcow2", a.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("what may be lost is still there: %v", err)
	}
	b := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 20 * cluster})
	fill(t, svc, "a.qcow2", b.ID, pattern(8, 20*cluster), 0)
	update(t, svc, "a.qcow2", data(40*cluster, 20*cluster, b.ID, 0))
	closed(t, svc)
	checkSound(t, dir, "a.qcow2")
}
