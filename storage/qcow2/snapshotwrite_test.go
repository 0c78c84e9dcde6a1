package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A snapshotted image is a written one with a model of its snapshots.
type snapshotted struct {
	*written
	rng    *rand.Rand
	models map[string][]byte // by id
}

// step does something at random with snapshots, or the image.
func (s *snapshotted) step() {
	s.t.Helper()
	ctx := s.t.Context()
	ids := slices.Sorted(maps.Keys(s.models))
	switch n := s.rng.IntN(30); {
	case n < 2 && len(ids) < 6:
		got, err := s.image.CreateSnapshot(ctx, qcow2.SnapshotOptions{Name: fmt.Sprint("name ", s.rng.IntN(4))})
		s.ok(err)
		if _, twice := s.models[got.ID]; twice || got.DiskSize != s.image.Size() {
			s.t.Fatalf("%+v", got)
		}
		s.models[got.ID] = bytes.Clone(s.model)
	case n == 2 && len(ids) > 0:
		id := ids[s.rng.IntN(len(ids))]
		s.ok(s.image.DeleteSnapshot(ctx, id))
		delete(s.models, id)
	case n == 3 && len(ids) > 0:
		id := ids[s.rng.IntN(len(ids))]
		s.ok(s.image.RevertTo(ctx, id))
		s.model = bytes.Clone(s.models[id])
	default:
		s.randomStep(s.rng)
	}
}

// compareAll reads the image and all snapshots, here and with qemu-img.
func (s *snapshotted) compareAll() {
	s.t.Helper()
	s.compare()
	for id, model := range s.models {
		m, err := s.image.OpenSnapshot(s.t.Context(), id, 0)
		s.ok(err)
		if got := readMapper(s.t, m); !bytes.Equal(got, model) {
			s.t.Fatalf("snapshot %s differs from its model at %d", id, differs(got, model))
		}
		s.compareChanges(s.image, m, s.model, model)
		for other, now := range s.models {
			n, err := s.image.OpenSnapshot(s.t.Context(), other, 0)
			s.ok(err)
			s.compareChanges(n, m, now, model)
			s.ok(n.Close())
		}
		s.ok(m.Close())
	}
}

// compareChanges: no byte that differs is called unchanged.
func (s *snapshotted) compareChanges(now storage.Differ, since storage.Mapper, a, b []byte) {
	s.t.Helper()
	off := s.rng.Int64N(int64(len(a)))
	n := 1 + s.rng.Int64N(int64(len(a))-off)
	at := off
	s.ok(now.Changes(s.t.Context(), since, off, n, func(from, length int64, changed bool) error {
		if from != at || length <= 0 {
			s.t.Fatalf("a piece of %d bytes at %d, after %d", length, from, at)
		}
		at += length
		for k := from; k < at && !changed; k++ {
			if k >= int64(len(b)) && a[k] != 0 || k < int64(len(b)) && a[k] != b[k] {
				s.t.Fatalf("byte %d differs, in a piece of %d bytes at %d that is called unchanged", k, length, from)
			}
		}
		return nil
	}))
	if at != off+n {
		s.t.Fatalf("the pieces end at %d, not %d", at, off+n)
	}
}

// readMapper reads all that a mapper without a backing shows.
func readMapper(t testing.TB, m interface {
	storage.Mapper
	storage.Unpacker
},
) []byte {
	t.Helper()
	p := make([]byte, m.Size())
	for at := int64(0); at < m.Size(); {
		var l storage.ExtentList
		if err := storage.CheckMapper(m).Fetch(t.Context(), at, 1, &l); err != nil {
			t.Fatal(err)
		}
		e := *l.At(l.Find(at))
		end := e.End()
		switch {
		case e.Flags&storage.Compressed != 0:
			packed, unit := make([]byte, e.PackedLength), make([]byte, m.PackedUnit())
			n, _ := e.Node.ReadAt(t.Context(), packed, e.NodeOffset)
			if err := m.Unpack(unit, packed[:n]); err != nil {
				t.Fatal(err)
			}
			copy(p[e.Offset:end], unit)
		case e.Status == storage.Local|storage.Alloc|storage.OffsetValid:
			e.Clip(at, end)
			_, _ = e.Node.ReadAt(t.Context(), p[at:end], e.NodeOffset)
		}
		at = end
	}
	return p
}

func (s *snapshotted) verifyAll() {
	s.t.Helper()
	s.close()
	for id, model := range s.models {
		run(s.t, s.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.id="+id, "image", "result")
		if got := load(s.t, s.dir, "result"); !bytes.Equal(got, model) {
			s.t.Fatalf("qemu-img reads snapshot %s otherwise at %d", id, differs(got, model))
		}
	}
}

// TestRandomSnapshots takes, deletes and reverts to snapshots between random
// writes, and has QEMU read all of them.
func TestRandomSnapshots(t *testing.T) {
	for _, kind := range writtenKinds() {
		if strings.Contains(kind.options, "data_file") || kind.name == "refcounts of 1" || strings.HasPrefix(kind.name, "snapshots") {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			w := newWritten(t, kind.size, kind.options, func(dir string) {
				if kind.prepare != nil {
					kind.prepare(t, dir)
				}
			})
			s := &snapshotted{written: w, rng: random(t), models: map[string][]byte{}}
			if kind.name == "refcounts of 2" { // at most three references
				kind.size = 0
			}
			for range 3 {
				for range 60 {
					if kind.size == 0 && len(s.models) > 1 {
						s.randomStep(s.rng)
						continue
					}
					s.step()
				}
				s.compareAll()
				s.verifyAll()
				s.load()
				s.open()
			}
		})
	}
}

// TestSnapshotsBesideQEMU: qemu-img and we take, revert to and delete each other's.
func TestSnapshotsBesideQEMU(t *testing.T) {
	w := newWritten(t, 2<<20, "", func(dir string) { snapshots(t, dir) })
	s := &snapshotted{written: w, rng: random(t), models: map[string][]byte{}}
	for _, id := range []string{"1", "2", "3"} {
		run(t, w.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.id="+id, "image", "model")
		s.models[id] = load(t, w.dir, "model")
	}
	for k := range 4 {
		for range 20 {
			s.step()
		}
		s.verifyAll()
		ids := slices.Sorted(maps.Keys(s.models))
		switch {
		case len(ids) == 0:
		case k%2 == 0:
			id := ids[s.rng.IntN(len(ids))]
			run(t, w.dir, "qemu-img", "snapshot", "-a", id, "image")
			s.model = bytes.Clone(s.models[id])
		default: // by name alone
			if id, name := s.first(); id != "" {
				run(t, w.dir, "qemu-img", "snapshot", "-d", name, "image")
				delete(s.models, id)
			}
		}
		s.load()
		s.open()
		s.compareAll()
	}
	s.verifyAll()
}

// first is the first snapshot of the table.
func (s *snapshotted) first() (id, name string) {
	s.t.Helper()
	i := openDisk(s.t, s.dir, "image")
	defer i.Close()
	all, err := i.Snapshots(s.t.Context())
	s.ok(err)
	if len(all) == 0 {
		return "", ""
	}
	return all[0].ID, all[0].Name
}

// TestSnapshotRefused: what cannot be is told, and changes nothing.
func TestSnapshotRefused(t *testing.T) {
	for _, tt := range []struct {
		options, name string
		err           error
	}{
		{"", "", storage.ErrInvalid},
		{"", strings.Repeat("n", 256), storage.ErrInvalid},
		{"", "a\x00b", storage.ErrInvalid},
		{"", "\xff", storage.ErrInvalid},
		{"data_file=data", "s", storage.ErrUnsupported},
		{"refcount_bits=1", "s", storage.ErrUnsupported},
	} {
		w := newWritten(t, 1<<20, tt.options, nil)
		w.write([]byte("something"), 5)
		if _, err := w.image.CreateSnapshot(t.Context(), qcow2.SnapshotOptions{Name: tt.name}); !errors.Is(err, tt.err) {
			t.Errorf("%q, %q: %v, want %v", tt.options, tt.name, err, tt.err)
		}
		for _, err := range []error{w.image.DeleteSnapshot(t.Context(), "1"), w.image.RevertTo(t.Context(), "1")} {
			if !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%v, want %v", err, storage.ErrNotFound)
			}
		}
		w.write([]byte("goes on"), 70000)
		w.close()
	}
}

// TestChangesAreExact: what was not written to is unchanged, and what was is not.
func TestChangesAreExact(t *testing.T) {
	w := newWritten(t, 4<<20, "", func(dir string) { qemuIO(t, dir, "image", "write -P 1 0 2M") })
	s, err := w.image.CreateSnapshot(t.Context(), qcow2.SnapshotOptions{Name: "s"})
	w.ok(err)
	m, err := w.image.OpenSnapshot(t.Context(), s.ID, 0)
	w.ok(err)
	defer m.Close()
	w.write([]byte("changed"), 1<<20+5)
	w.write([]byte("new"), 3<<20)
	w.clear(2<<20, 64<<10, storage.ToZero) // it read as zeros
	var got []string
	w.ok(w.image.Changes(t.Context(), m, 0, 4<<20, func(off, n int64, changed bool) error {
		got = append(got, fmt.Sprintf("%d+%d %v", off>>16, n>>16, changed))
		return nil
	}))
	if want := []string{"0+16 false", "16+1 true", "17+31 false", "48+1 true", "49+15 false"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	other := newWritten(t, 4<<20, "", nil)
	if err := other.image.Changes(t.Context(), m, 0, 1, nil); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("since a snapshot of another image: %v", err)
	}
}

// TestDeletedSnapshotFails: who reads a snapshot that is deleted gets an error.
func TestDeletedSnapshotFails(t *testing.T) {
	w := newWritten(t, 1<<20, "", nil)
	w.write(bytes.Repeat([]byte{7}, 300_000), 1000)
	var ids []string
	for range 2 {
		s, err := w.image.CreateSnapshot(t.Context(), qcow2.SnapshotOptions{Name: "s"})
		w.ok(err)
		ids = append(ids, s.ID)
	}
	var open []*qcow2.SnapshotMapper
	for _, id := range ids {
		m, err := w.image.OpenSnapshot(t.Context(), id, 0)
		w.ok(err)
		open = append(open, m)
	}
	w.ok(w.image.DeleteSnapshot(t.Context(), ids[0]))
	var l storage.ExtentList
	if err := open[0].Fetch(t.Context(), 0, 1, &l); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("of the deleted one: %v", err)
	}
	if got := readMapper(t, open[1]); !bytes.Equal(got, w.model) {
		t.Errorf("the other differs at %d", differs(got, w.model))
	}
	for _, m := range open {
		w.ok(m.Close())
	}
	w.close()
}

// TestSnapshotCrashes cuts the journal off while snapshots are taken, deleted and
// reverted to: what is left is consistent, but for flags that a repair mends, and
// each snapshot is whole or is not there.
func TestSnapshotCrashes(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,lazy_refcounts=on", "cluster_size=16k,extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			rng := random(t)
			w := newWritten(t, 128<<10, options, nil)
			w.ok(w.image.Close())
			journal := storagetest.NewJournal()
			file := journal.File("image", w.file.Bytes())
			w.file, w.node = file.MemFile, storage.NewNode("image", file, storage.NodeOptions{})
			i, err := qcow2.Open(t.Context(), w.node, qcow2.Options{CacheSize: 64 << 10})
			w.ok(err)
			w.ok(i.StartWriting(t.Context()))
			w.image, w.units = i, i.Units()
			s := &snapshotted{written: w, rng: rng, models: map[string][]byte{}}
			var history [][]byte // of all snapshots that there ever were
			for range 120 {
				s.step()
				history = append(history, slices.Collect(maps.Values(s.models))...)
			}
			w.ok(w.image.Close())
			for range 40 {
				at := rng.IntN(journal.Len() + 1)
				opt := storagetest.CutOptions{Seed: rng.Uint64(), Drop: rng.IntN(4) > 0}
				checkSnapshotCut(t, w, journal.Cut(at, opt)["image"], history)
			}
		})
	}
}

// checkSnapshotCut repairs an image as it is after a crash, and reads its
// snapshots.
func checkSnapshotCut(t *testing.T, w *written, file *storagetest.MemFile, models [][]byte) {
	t.Helper()
	path := filepath.Join(w.dir, "cut")
	w.ok(file.WriteFile(path))
	i, err := qcow2.Open(t.Context(), storage.NewNode("cut", file, storage.NodeOptions{}), qcow2.Options{})
	w.ok(err)
	before := readMapper(t, i)
	w.ok(i.StartWriting(t.Context()))
	if after := readMapper(t, i); !bytes.Equal(before, after) {
		t.Fatalf("a repair has changed the image at %d", differs(before, after))
	}
	all, err := i.Snapshots(t.Context())
	w.ok(err)
	for _, s := range all {
		m, err := i.OpenSnapshot(t.Context(), s.ID, 0)
		w.ok(err)
		got := readMapper(t, m)
		if !slices.ContainsFunc(models, func(model []byte) bool { return bytes.Equal(got, model) }) {
			t.Fatalf("snapshot %s is none that was taken", s.ID)
		}
		w.ok(m.Close())
	}
	w.ok(i.Close())
	w.ok(file.WriteFile(path))
	repair := "leaks"
	if i.Info().Version == 2 { // it cannot say that flags are in doubt
		repair = "all"
	}
	if out, err := try(t, w.dir, "qemu-img", "check", "-f", "qcow2", "-r", repair, "cut"); err != nil {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	run(t, w.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "cut", "result")
	if got := load(t, w.dir, "result"); !bytes.Equal(got, before) {
		t.Fatalf("qemu-img reads the image otherwise at %d", differs(got, before))
	}
}
