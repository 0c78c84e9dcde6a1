package qcow2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestCrashes cuts the journal of a random workload off at many places, with
// what was not synced lost in part: qemu-img check must find no corruption, and
// what was flushed must be there.
func TestCrashes(t *testing.T) {
	for _, kind := range []writtenKind{
		{name: "512", size: 96 << 10, options: "cluster_size=512"},
		{name: "default", size: 1 << 20},
		{name: "lazy", size: 96 << 10, options: "cluster_size=512,lazy_refcounts=on"},
		{name: "extended", size: 256 << 10, options: "cluster_size=16k,extended_l2=on"},
		{name: "wide refcounts", size: 64 << 10, options: "cluster_size=512,refcount_bits=64"},
		{name: "snapshots", size: 256 << 10, options: "cluster_size=512", prepare: snapshots},
		{name: "compressed", size: 128 << 10, options: "cluster_size=4k", prepare: func(t testing.TB, dir string) {
			var commands []string
			for k := range 16 {
				commands = append(commands, fmt.Sprintf("write -c -P %d %dk 4k", k+1, 8*k))
			}
			qemuIO(t, dir, "image", commands...)
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			rng := random(t)
			w := newWritten(t, kind.size, kind.options, func(dir string) {
				if kind.prepare != nil {
					kind.prepare(t, dir)
				}
			})
			w.ok(w.image.Close())
			testCrashes(t, w, rng)
		})
	}
}

// A moment is what the image contained at a position in the journal.
type moment struct {
	at      int // from here on it may be found
	durable bool
	model   []byte
}

func testCrashes(t *testing.T, w *written, rng *rand.Rand) {
	journal := storagetest.NewJournal()
	file := journal.File("image", w.file.Bytes())
	w.file, w.node = file.MemFile, storage.NewNode("image", file, storage.NodeOptions{})
	i, err := qcow2.Open(t.Context(), w.node, qcow2.Options{CacheSize: 64 << 10})
	w.ok(err)
	moments := []moment{{journal.Len(), true, bytes.Clone(w.model)}}
	w.ok(i.StartWriting(t.Context()))
	w.image, w.units = i, i.Units()
	for round := range 160 {
		before := journal.Len()
		w.randomStep(rng)
		moments = append(moments, moment{before, false, bytes.Clone(w.model)})
		if round%20 == 19 {
			w.ok(w.image.Flush(t.Context()))
			moments = append(moments, moment{journal.Len(), true, bytes.Clone(w.model)})
		}
	}
	w.ok(w.image.Close())
	moments = append(moments, moment{journal.Len(), true, bytes.Clone(w.model)})
	for range 15 {
		at := rng.IntN(journal.Len() + 1)
		opt := storagetest.CutOptions{Seed: rng.Uint64(), Drop: rng.IntN(4) > 0}
		t.Logf("cut at %d of %d, %+v", at, journal.Len(), opt)
		checkCut(t, w, journal.Cut(at, opt)["image"], at, moments)
	}
}

// checkCut checks an image as it is after a crash.
func checkCut(t *testing.T, w *written, file *storagetest.MemFile, at int, moments []moment) {
	t.Helper()
	path := filepath.Join(w.dir, "cut")
	w.ok(file.WriteFile(path))
	if out, err := try(t, w.dir, "qemu-img", "check", "-f", "qcow2", "cut"); err != nil && !w.image.Info().LazyRefcounts {
		if !strings.Contains(err.Error(), "exit status 3") {
			t.Fatalf("qemu-img check: %v\n%s", err, out)
		}
	}
	// Opening it for writing repairs lazy refcounts; leaks are left.
	i, err := qcow2.Open(t.Context(), storage.NewNode("cut", file, storage.NodeOptions{}), qcow2.Options{})
	w.ok(err)
	w.ok(i.StartWriting(t.Context()))
	r := &written{t: t, image: i, units: i.Units()}
	got := r.read(0, i.Size())
	r.model = bytes.Clone(got)
	r.write([]byte("goes on"), 0)
	w.ok(i.Close())
	w.ok(file.WriteFile(path))
	if out, err := try(t, w.dir, "qemu-img", "check", "-f", "qcow2", "-r", "leaks", "cut"); err != nil {
		t.Fatalf("qemu-img check -r leaks: %v\n%s", err, out)
	}
	first, end := 0, len(moments)
	for k, m := range moments {
		if m.at <= at && m.durable {
			first = k
		}
		if m.at > at {
			end = min(end, k)
		}
	}
	for off, b := range got {
		found := false
		for k := first; k < end && !found; k++ {
			found = moments[k].model[off] == b
		}
		if !found {
			t.Fatalf("byte %d is %#x: it was never that since the last flush", off, b)
		}
	}
}
