package crash_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestSoakReplay crashes every kind of workload at its events, with what a disk
// may do to the events that no flush covers.
func TestSoakReplay(t *testing.T) {
	soak(t, 4, func(t *testing.T, round int) {
		for _, k := range kinds {
			for _, workers := range []int{1, 3} {
				if workers > 1 && k.weights[5] > 0 {
					continue // a resize moves what is whose
				}
				name := fmt.Sprintf("%s %d %d", k.name, workers, round)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					replay(t, k, name, workers)
				})
			}
		}
	})
}

// TestSoakGrowth is about new refcount blocks and a refcount table that grows:
// few of the ways in which they can come to lie beside each other are unlucky, so
// there are many workloads, and our check alone looks at each event.
func TestSoakGrowth(t *testing.T) {
	soak(t, 4, func(t *testing.T, round int) {
		for i := range max(2, 12/slowness) {
			name := fmt.Sprintf("%d %d", round, i)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := record(t, growing, "growth "+name, 1+i%2*2, 45)
				for at := 0; at <= r.journal.Len(); at++ {
					opt := storagetest.CutOptions{Seed: uint64(at), Drop: at%4 == 1, Tear: at%4 == 3}
					result, err := check(t.Context(), r.journal.Cut(at, opt), qcow2.RepairNone)
					if err != nil || result.Corruptions != 0 {
						must(t, wrap(fmt.Errorf("check: %d corruptions, %w", result.Corruptions, wrapped(err)), at, r.journal.Len(), opt))
					}
				}
			})
		}
	})
}

// How many crashes of a workload are looked at, beside those at each event.
const (
	everyEvent = 120 / slowness // at most so many of them, evenly
	losses     = 160 / slowness // with random losses
	asked      = 4 / slowness   // by QEMU, beside the one after a clean close
)

func replay(t *testing.T, k *kind, name string, workers int) {
	r := record(t, k, name, workers, 45)
	random := source(name + " crashes")
	events := r.journal.Len()
	stride := max(1, events/everyEvent)
	n := 0
	for at := 0; at <= events; at += stride {
		r.crash(t, at, storagetest.CutOptions{}, n, 10)
		r.crash(t, at, storagetest.CutOptions{Drop: true}, n, 10)
		n++
	}
	var cuts []int
	for range losses {
		cuts = append(cuts, random.IntN(events+1))
	}
	for i, at := range slices.Sorted(slices.Values(cuts)) {
		r.crash(t, at, storagetest.CutOptions{Seed: 1 + random.Uint64()>>1, Drop: i%4 != 0, Tear: i%2 == 0}, i, 10)
	}
	for range asked {
		at := random.IntN(events + 1)
		opt := storagetest.CutOptions{Seed: 1 + random.Uint64()>>1, Drop: true, Tear: random.IntN(2) == 0}
		must(t, wrap(r.askQEMU(t, r.journal.Cut(at, opt), at), at, events, opt))
	}
	// After the close nothing is lost whatever happens, and nothing leaks.
	end := r.journal.Cut(events, storagetest.CutOptions{Drop: true})
	must(t, clean(t.Context(), end))
	must(t, r.askQEMU(t, end, events))
}

// crash verifies one crash. Each usedth is written to again afterwards.
func (r *recording) crash(t *testing.T, at int, opt storagetest.CutOptions, n, used int) {
	t.Helper()
	files := r.journal.Cut(at, opt)
	_, err := r.sound(t.Context(), files, at)
	must(t, wrap(err, at, r.journal.Len(), opt))
	if n%used == 0 {
		// From the crash itself, not from what the check made of it.
		files = r.journal.Cut(at, opt)
		if err := r.reopened(t, files, fmt.Sprint("reopened ", at)); err != nil {
			must(t, wrap(err, at, r.journal.Len(), opt))
		}
	}
}

// reopened writes to what a crash left. Its leaks may stay.
func (r *recording) reopened(t *testing.T, files map[string]*storagetest.MemFile, name string) error {
	// Clusters beyond the end of the file leak as well, and are counted once it
	// is longer.
	longer := map[string]*storagetest.MemFile{"image.qcow2": files["image.qcow2"].Clone(), "data.raw": files["data.raw"]}
	size, err := longer["image.qcow2"].Size(t.Context())
	if err != nil {
		return err
	}
	longer["image.qcow2"].SetSize(size + 2*r.kind.size)
	before, err := check(t.Context(), longer, qcow2.RepairNone)
	if err != nil {
		return err
	}
	err = r.usable(t, files, name)
	if err != nil && before.Leaks > 0 {
		after, checked := check(t.Context(), files, qcow2.RepairNone)
		if checked == nil && after.Corruptions == 0 && after.Leaks <= before.Leaks {
			return nil
		}
		err = fmt.Errorf("%w; %d leaks before: %v", err, before.Leaks, before.Errors)
	}
	return err
}

func wrap(err error, at, events int, opt storagetest.CutOptions) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("a crash at %d of %d, %+v: %w", at, events, opt, err)
}
