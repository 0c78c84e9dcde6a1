package test

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// TestPublishers: two clients upload at once through allocations and publish to
// the same range. A reader of the map sees one or the other, wholly.
func TestPublishers(t *testing.T) {
	t.Parallel()
	const cluster, clusters = 4 * kib, 600 // more than one L2 table
	m := newMaker(t, t.TempDir(), "published")
	file := m.create(".qcow2", 4*mib, "cluster_size=4k")
	s := serveRacy(t, m.dir)
	publish := func(stamp byte) error {
		g, err := s.allocate(file, object{"length": cluster * clusters, "contiguous": true})
		if err != nil {
			return err
		}
		// Filled in two parts, the last first.
		half := cluster * clusters / 2
		for _, at := range []int64{half, 0} {
			if err := s.fill(file, g.ID, at, bytes.Repeat([]byte{stamp}, int(half))); err != nil {
				return err
			}
		}
		err = s.update(file, []object{target(8*kib, cluster*clusters, "data", "allocation", g.ID, "allocation_offset", 0)})
		if err != nil {
			return err
		}
		return s.giveBack(file, g.ID)
	}
	must(t, publish(1))
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(2)
	for worker := range 2 {
		wg.Go(func() {
			defer left.Add(-1)
			for i := range 12 {
				if err := publish(byte(10*worker + i + 2)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	answers := 0
	for ; left.Load() > 0 && !t.Failed(); answers++ {
		p := s.page(t, file, "offset", 8*kib, "length", cluster*clusters)
		if len(p.Extents) != 1 || !*p.Extents[0].OffsetValid {
			t.Errorf("the range is %v, which is no single upload", p.Extents)
		}
		data, err := s.read(file, 8*kib+cluster, cluster)
		must(t, err)
		if len(bytes.TrimLeft(data, string(data[:1]))) > 0 || data[0] == 0 {
			t.Errorf("a cluster is a mixture")
		}
	}
	wg.Wait()
	t.Logf("%d answers", answers)
	s.stop()
	m.checkClean(t, file)
}

// TestUpdateRace: of two updates that demand the same generation exactly one
// goes through, and the other is told.
func TestUpdateRace(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "raced")
	file := m.create(".qcow2", mib)
	s := serveRacy(t, m.dir)
	for round := range 20 {
		must(t, s.put(file, 0, bytes.Repeat([]byte{9}, 4096), false))
		etag := s.expectHeader(t, extentsPath(file)).Get("ETag")
		exactlyOne(t, func(int) error {
			return s.update(file, []object{target(0, 64*kib, "zero", "anchored", round%2 == 0)}, "If-Match", etag)
		})
		etag = s.expectHeader(t, imagePath(file, "/data")).Get("ETag")
		exactlyOne(t, func(worker int) error {
			return s.put(file, 4096*int64(worker), []byte("winner"), false, "If-Match", etag)
		})
		// A stale one has no effect at all.
		mustRefuse(t, s.put(file, 0, []byte("loser"), false, "If-Match", etag), http.StatusPreconditionFailed, "precondition-failed")
	}
	s.stop()
	m.checkClean(t, file)
}

func exactlyOne(t *testing.T, try func(worker int) error) {
	t.Helper()
	var errs [3]error
	var wg sync.WaitGroup
	for worker := range errs {
		wg.Go(func() { errs[worker] = try(worker) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !isRefusal(err, http.StatusPreconditionFailed, "precondition-failed"):
			t.Fatal(err)
		}
	}
	if won != 1 {
		t.Fatalf("%d of three racing requests went through: %v", won, errs)
	}
}

// expectHeader is the header of a GET that succeeds.
func (s *server) expectHeader(t *testing.T, path string) http.Header {
	t.Helper()
	header, _ := s.expect(t, http.StatusOK, path)
	return header
}

// TestGenerations: what changes only bytes changes the data's tag; what changes
// the map changes both; what changes nothing changes none; and a clean close
// changes none either.
func TestGenerations(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "tagged")
	file := m.create(".qcow2", mib)
	s := serve(t, m.dir, "--idle", "200ms")
	must(t, s.put(file, 0, []byte("one"), false))
	tags := func() (string, string) {
		var img image
		s.getJSON(t, &img, imagePath(file, ""))
		return img.Generation, img.DataGeneration
	}
	for _, step := range []struct {
		name      string
		do        func() error
		maps, any bool
	}{
		{"in place", func() error { return s.put(file, 0, []byte("two"), false) }, false, true},
		{"allocating", func() error { return s.put(file, 128*kib, []byte("two"), false) }, true, true},
		{"discard", func() error { return s.update(file, []object{target(0, 64*kib, "unmapped")}) }, true, true},
		{"a read", func() error { _, err := s.read(file, 0, 4096); return err }, false, false},
		{"flush", func() error { return s.flush(file) }, false, false},
		{"idle close", func() error { return s.awaitClosed(m.path(file)) }, false, false},
		{"refused", func() error {
			if err := s.put(file, mib, []byte("two"), false); !isRefusal(err, http.StatusBadRequest, "out-of-range") {
				return fmt.Errorf("a write beyond the end: %w", err)
			}
			return nil
		}, false, false},
	} {
		mapping, data := tags()
		must(t, step.do())
		newMapping, newData := tags()
		if (newMapping != mapping) != step.maps || (newData != data) != step.any {
			t.Errorf("%s: mapping generation changed: %v, want %v; data generation changed: %v, want %v",
				step.name, newMapping != mapping, step.maps, newData != data, step.any)
		}
	}
}
