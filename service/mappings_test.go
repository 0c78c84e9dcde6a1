package service_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

func TestUpdateRefuses(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", "-c", "write -z 512k 64k", "a.qcow2")
	newDisk(t, dir, "other.qcow2")
	write(t, filepath.Join(dir, "b.raw"), pattern(1, 1<<20))
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{{Name: "fixed", Path: filepath.Join(dir, "other.qcow2"), ReadOnly: true}}})
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 4 * cluster})
	foreign := allocate(t, svc, "other.qcow2", service.AllocationRequest{Length: cluster})
	claim := allocate(t, svc, "a.qcow2", service.AllocationRequest{Anchored: &service.Range{Offset: 8 * cluster, Length: cluster}})
	fill(t, svc, "a.qcow2", a.ID, pattern(1, 4*cluster), 0)
	update(t, svc, "a.qcow2", data(0, cluster, a.ID, 3*cluster))
	h := acquire(t, svc, "a.qcow2")
	defer h.Release()
	generation, content := h.Generation(), read(t, h)
	good := service.Update{Offset: 0, Length: cluster, Kind: service.KindZero}
	for _, c := range []struct {
		name  string
		image string
		bad   service.Update
		want  error
		field string
	}{
		{"kind", "a.qcow2", service.Update{Length: cluster, Kind: "hole"}, storage.ErrInvalid, "updates[1].target.kind"},
		{"no kind", "a.qcow2", service.Update{Length: cluster}, storage.ErrInvalid, "updates[1].target.kind"},
		{"no length", "a.qcow2", service.Update{Kind: service.KindZero}, storage.ErrInvalid, "updates[1].length"},
		{"negative", "a.qcow2", service.Update{Offset: -cluster, Length: cluster, Kind: service.KindZero}, storage.ErrInvalid, "updates[1].offset"},
		{"no allocation", "a.qcow2", data(0, cluster, "", 0), storage.ErrInvalid, "updates[1].target.allocation"},
		{"negative allocation offset", "a.qcow2", data(0, cluster, a.ID, -cluster), storage.ErrInvalid, "updates[1].target.allocation_offset"},
		{"allocation to zero", "a.qcow2", service.Update{Length: cluster, Kind: service.KindZero, Allocation: a.ID}, storage.ErrInvalid, "updates[1].target.allocation"},
		{"allocation offset to zero", "a.qcow2", service.Update{Length: cluster, Kind: service.KindZero, AllocationOffset: 1}, storage.ErrInvalid, "updates[1].target.allocation_offset"},
		{"anchored discard", "a.qcow2", service.Update{Length: cluster, Kind: service.KindUnmapped, Anchored: true}, storage.ErrInvalid, "updates[1].target.anchored"},
		{"anchored data", "a.qcow2", service.Update{Length: cluster, Kind: service.KindData, Allocation: a.ID, Anchored: true}, storage.ErrInvalid, "updates[1].target.anchored"},
		{"misaligned offset", "a.qcow2", service.Update{Offset: 512, Length: cluster, Kind: service.KindZero}, storage.ErrMisaligned, "updates[1].offset"},
		{"misaligned length", "a.qcow2", service.Update{Length: 512, Kind: service.KindUnmapped}, storage.ErrMisaligned, "updates[1].length"},
		{"misaligned in the allocation", "a.qcow2", data(0, cluster, a.ID, 512), storage.ErrMisaligned, "updates[1].target.allocation_offset"},
		{"beyond the end", "a.qcow2", service.Update{Offset: 63 * cluster, Length: 2 * cluster, Kind: service.KindZero}, storage.ErrOutOfRange, "updates[1]"},
		{"overflow", "a.qcow2", service.Update{Offset: 1 << 62, Length: 1<<63 - 1, Kind: service.KindZero}, storage.ErrOutOfRange, "updates[1]"},
		{"beyond the allocation", "a.qcow2", data(0, 2*cluster, a.ID, 3*cluster), storage.ErrOutOfRange, "updates[1].target.allocation_offset"},
		{"far beyond the allocation", "a.qcow2", data(0, cluster, a.ID, 1<<62), storage.ErrOutOfRange, "updates[1].target.allocation_offset"},
		{"unknown allocation", "a.qcow2", data(0, cluster, "a-x", 0), storage.ErrNotFound, "updates[1].target.allocation"},
		{"another image's", "a.qcow2", data(0, cluster, foreign.ID, 0), storage.ErrNotFound, "updates[1].target.allocation"},
		{"mapped already", "a.qcow2", data(cluster, cluster, a.ID, 3*cluster), storage.ErrConflict, "updates[1].target.allocation_offset"},
		{"partly mapped", "a.qcow2", data(cluster, 2*cluster, a.ID, 2*cluster), storage.ErrConflict, "updates[1].target.allocation_offset"},
		{"claim elsewhere", "a.qcow2", data(9*cluster, cluster, claim.ID, 0), storage.ErrConflict, "updates[1].target.allocation_offset"},
		{"fixed", "b.raw", data(0, cluster, a.ID, 0), storage.ErrUnsupported, "updates[1].target.kind"},
		{"read-only", "fixed", good, storage.ErrReadOnly, ""},
		{"no image", "none.qcow2", good, storage.ErrNotFound, ""},
	} {
		_, err := svc.Update(t.Context(), c.image, []service.Update{good, c.bad}, nil)
		var batch *service.BatchError
		if !errors.Is(err, c.want) || errors.As(err, &batch) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v, want %v of %s", c.name, err, c.want, c.field)
		}
	}
	for _, n := range []int{0, service.MaxUpdates + 1} {
		var invalid *storage.InvalidError
		if _, err := svc.Update(t.Context(), "a.qcow2", make([]service.Update, n), nil); !errors.As(err, &invalid) || invalid.Field != "updates" {
			t.Errorf("%d updates: %v", n, err)
		}
	}
	twice := []service.Update{data(0, 2*cluster, a.ID, 0), data(2*cluster, 2*cluster, a.ID, cluster)}
	if _, err := svc.Update(t.Context(), "a.qcow2", twice, nil); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a part of the allocation twice: %v", err)
	}
	never := func(string) bool { return false }
	if _, err := svc.Update(t.Context(), "a.qcow2", []service.Update{data(0, cluster, a.ID, 0)}, never); !errors.Is(err, service.ErrPrecondition) {
		t.Errorf("another generation: %v", err)
	}
	if h.Generation() != generation || !bytes.Equal(read(t, h), content) {
		t.Error("something has changed")
	}
	update(t, svc, "a.qcow2", data(cluster, 3*cluster, a.ID, 0)) // as if nothing had been tried
}

func TestUpdateKinds(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	svc := open(t, service.Options{Dir: dir})
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 2 * cluster})
	fill(t, svc, "a.qcow2", a.ID, pattern(7, 2*cluster), 0)
	h := acquire(t, svc, "a.qcow2")
	generation := h.Generation()
	got, err := svc.Update(t.Context(), "a.qcow2", []service.Update{
		{Offset: 0, Length: cluster, Kind: service.KindUnmapped},
		{Offset: cluster, Length: cluster, Kind: service.KindZero},
		{Offset: 2 * cluster, Length: cluster, Kind: service.KindZero, Anchored: true},
		data(3*cluster, cluster, a.ID, cluster),
		data(10*cluster, cluster, a.ID, 0),
		{Offset: 10 * cluster, Length: cluster, Kind: service.KindZero}, // over what came before
	}, func(g string) bool { return g == generation })
	if err != nil || got == generation || got != h.Generation() {
		t.Errorf("generation %q after %q: %v", got, generation, err)
	}
	want := make([]byte, 64*cluster)
	copy(want[3*cluster:], pattern(7, 2*cluster)[cluster:])
	if !bytes.Equal(read(t, h), want) {
		t.Error("wrong content")
	}
	h.Release()
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
	out := qemu(t, dir, "qemu-img", "map", "--output=json", "a.qcow2")
	anchored := `{ "start": 131072, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false, "offset":`
	if !strings.Contains(strings.ReplaceAll(out, ", \"compressed\": false", ""), anchored) {
		t.Errorf("nothing is anchored at 131072: %s", out)
	}
}

// The end of the image may cut the last cluster.
func TestUpdateTail(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "200000")
	svc := open(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.qcow2")
	size := h.Device().Size()
	tail := size - 2*cluster
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: size})
	fill(t, svc, "a.qcow2", a.ID, pattern(3, int(a.Length)), 0)
	update(t, svc, "a.qcow2", data(2*cluster, tail, a.ID, 2*cluster))
	want := make([]byte, size)
	copy(want[2*cluster:], pattern(3, int(a.Length))[2*cluster:])
	if !bytes.Equal(read(t, h), want) {
		t.Error("wrong content")
	}
	update(t, svc, "a.qcow2", service.Update{Offset: 2 * cluster, Length: tail, Kind: service.KindZero, Anchored: true})
	claim := allocate(t, svc, "a.qcow2", service.AllocationRequest{Anchored: &service.Range{Offset: 2 * cluster, Length: tail}})
	fill(t, svc, "a.qcow2", claim.ID, pattern(4, int(tail)), 0)
	update(t, svc, "a.qcow2", data(2*cluster, tail, claim.ID, 0))
	copy(want[2*cluster:], pattern(4, int(tail)))
	if claim.Length != 2*cluster || !bytes.Equal(read(t, h), want) {
		t.Errorf("%+v, or wrong content", claim)
	}
	if err := svc.GiveBack(t.Context(), "a.qcow2", a.ID); err != nil {
		t.Error(err)
	}
	h.Release()
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
}

// A batch stops at the first error, and says how far it came.
func TestBatchStops(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", "-c", "write -z 512k 64k", "a.qcow2")
	opt := service.Options{Dir: dir}
	keep(t, &opt, dir)
	svc := open(t, opt)
	claim := allocate(t, svc, "a.qcow2", service.AllocationRequest{Anchored: &service.Range{Offset: 8 * cluster, Length: cluster}})
	a := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: 3 * cluster})
	fill(t, svc, "a.qcow2", a.ID, pattern(2, 3*cluster), 0)
	_, err := svc.Update(t.Context(), "a.qcow2", []service.Update{
		data(0, cluster, a.ID, 0),
		data(8*cluster, cluster, a.ID, cluster), // claimed by another
		data(16*cluster, cluster, a.ID, 2*cluster),
	}, nil)
	var batch *service.BatchError
	if !errors.As(err, &batch) || batch.Applied != 1 || !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "updates[1]") {
		t.Fatal(err)
	}
	got, err := svc.Allocation(t.Context(), "a.qcow2", a.ID)
	if err != nil || len(got.Mapped) != 1 || got.Mapped[0] != (service.AllocationRange{Length: cluster}) {
		t.Errorf("%+v, %v", got, err)
	}
	update(t, svc, "a.qcow2", data(9*cluster, 2*cluster, a.ID, cluster))
	for _, id := range []string{a.ID, claim.ID} {
		if err := svc.GiveBack(t.Context(), "a.qcow2", id); err != nil {
			t.Error(err)
		}
	}
	want := append(bytes.Repeat([]byte{1}, 4*cluster), make([]byte, 60*cluster)...)
	copy(want, pattern(2, cluster))
	copy(want[9*cluster:], pattern(2, 3*cluster)[cluster:])
	if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
		t.Error("wrong content")
	}
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
}

// TestClaim: while a range is claimed others cannot write to it, and what is
// published shows in place.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 256k", "-c", "write -z 512k 256k", "a.qcow2")
	svc := open(t, service.Options{Dir: dir})
	claimed := service.AllocationRequest{Anchored: &service.Range{Offset: 8 * cluster, Length: 4 * cluster}}
	a := allocate(t, svc, "a.qcow2", claimed)
	if _, err := svc.Allocate(t.Context(), "a.qcow2", claimed); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a second claim: %v", err)
	}
	zero := []service.Update{{Offset: 9 * cluster, Length: cluster, Kind: service.KindZero}}
	if _, err := svc.Update(t.Context(), "a.qcow2", zero, nil); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("another write: %v", err)
	}
	fill(t, svc, "a.qcow2", a.ID, pattern(6, 4*cluster), 0)
	want := append(bytes.Repeat([]byte{1}, 4*cluster), make([]byte, 60*cluster)...)
	if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
		t.Error("it shows before it is published")
	}
	update(t, svc, "a.qcow2", data(9*cluster, cluster, a.ID, cluster))
	copy(want[9*cluster:], pattern(6, 4*cluster)[cluster:2*cluster])
	if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
		t.Error("wrong content when a part is published")
	}
	update(t, svc, "a.qcow2", data(10*cluster, 2*cluster, a.ID, 2*cluster), data(8*cluster, cluster, a.ID, 0))
	copy(want[8*cluster:], pattern(6, 4*cluster))
	if !bytes.Equal(readImage(t, svc, "a.qcow2"), want) {
		t.Error("wrong content when all is published")
	}
	update(t, svc, "a.qcow2", zero...) // nothing is claimed any more
	b := allocate(t, svc, "a.qcow2", service.AllocationRequest{Length: cluster})
	for _, id := range []string{a.ID, b.ID} {
		if err := svc.GiveBack(t.Context(), "a.qcow2", id); err != nil {
			t.Error(err)
		}
	}
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
}

// Two clients upload at once, in parts and in parallel, and publish the same
// range: one or the other is seen, wholly.
func TestPublishers(t *testing.T) {
	const length = 40 * cluster
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	opt := service.Options{Dir: dir}
	keep(t, &opt, dir)
	svc := open(t, opt)
	var clients sync.WaitGroup
	var done atomic.Bool
	for client := range 2 {
		clients.Go(func() {
			for round := range 5 {
				a, err := svc.Allocate(t.Context(), "a.qcow2", service.AllocationRequest{Length: length, Contiguous: true})
				if err != nil {
					t.Error(err)
					return
				}
				stamp := bytes.Repeat([]byte{byte(10*client + round + 2)}, length/8)
				var parts sync.WaitGroup
				for part := range 8 {
					parts.Go(func() {
						if err := tryFill(t, svc, "a.qcow2", a.ID, stamp, int64(part)*length/8); err != nil {
							t.Error(err)
						}
					})
				}
				parts.Wait()
				if _, err := svc.Update(t.Context(), "a.qcow2", []service.Update{data(8*cluster, length, a.ID, 0)}, nil); err != nil {
					t.Error(err)
				}
				if err := svc.GiveBack(t.Context(), "a.qcow2", a.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		for !done.Load() {
			h := acquire(t, svc, "a.qcow2")
			release := h.HoldMap()
			var seen []storage.Mapping
			for m, err := range h.Device().Walk(t.Context(), 8*cluster, length, block.WalkOptions{}) {
				if err != nil {
					t.Error(err)
				}
				seen = append(seen, m)
			}
			release()
			if len(seen) != 1 {
				t.Errorf("the range is in %d pieces", len(seen))
			}
			h.Release()
		}
	})
	clients.Wait()
	done.Store(true)
	reader.Wait()
	closed(t, svc)
	checkClean(t, dir, "a.qcow2")
}

// Of updates that demand the same generation one goes through.
func TestUpdateRace(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.qcow2")
	defer h.Release()
	for range 20 {
		generation := h.Generation()
		var won atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, err := svc.Update(t.Context(), "a.qcow2", []service.Update{{Length: cluster, Kind: service.KindZero}},
					func(g string) bool { return g == generation })
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, service.ErrPrecondition):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := won.Load(); n != 1 {
			t.Fatalf("%d went through", n)
		}
	}
}
