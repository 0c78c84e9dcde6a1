package qcow2_test

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestNewBlocksCrashes reserves clusters that several refcount blocks are missing
// for, where the entries of these lie in two sectors of the refcount table, and
// cuts that off everywhere: the table must never name a block that itself has no
// refcount, because what counts it is not named.
func TestNewBlocksCrashes(t *testing.T) {
	const (
		cluster = 512
		counts  = cluster * cluster / 8 // bytes that a block has the refcounts of
		sector  = 64 * counts           // and a sector of the table
	)
	for _, tt := range []struct {
		name       string
		contiguous bool
		n          int64 // of each reservation, bytes
	}{
		{"in a row", true, 7 * counts},
		{"as it comes", false, 7 * counts},
		{"bit by bit", false, 3 * counts / 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rng := random(t)
			w := newWritten(t, 8<<20, "cluster_size=512,refcount_bits=64", nil)
			// The table grows to three sectors. All is in use up to blocks before the
			// end of the second, but for a cluster that the last block counts.
			b := reserveAndMap(w, 0, 2*sector-15*counts/2, true)
			for guest := b.Length; (b.Offset+b.Length)%counts != counts-cluster; guest += b.Length {
				b = reserveAndMap(w, guest, cluster, true)
			}
			w.ok(w.image.Close())
			journal := storagetest.NewJournal()
			file := journal.File("image", w.file.Bytes())
			w.file = file.MemFile
			w.node = storage.NewNode("image", file, storage.NodeOptions{})
			var err error
			w.image, err = qcow2.Open(t.Context(), w.node, qcow2.Options{})
			w.ok(err)
			w.ok(w.image.StartWriting(t.Context()))
			guest, first, last := int64(4<<20), int64(8<<20), int64(0)
			for end := guest + 7*counts; guest < end; {
				b := reserveAndMap(w, guest, min(tt.n, end-guest), tt.contiguous)
				guest += b.Length
				first, last = min(first, b.Offset), max(last, b.Offset+b.Length)
			}
			if first >= 2*sector-counts || last <= 2*sector+counts {
				t.Fatalf("%d to %d is reserved, not around %d", first, last, 2*sector)
			}
			w.ok(w.image.Flush(t.Context()))
			w.ok(w.image.Close())
			for at := range journal.Len() + 1 {
				checkNewBlocks(t, w, journal, at, rng)
			}
		})
	}
}

// reserveAndMap reserves and maps up to n bytes.
func reserveAndMap(w *written, guest, n int64, contiguous bool) storage.Blocks {
	w.t.Helper()
	b, err := w.image.Alloc(w.t.Context(), n, storage.AllocOptions{Contiguous: contiguous})
	w.ok(err)
	b.Length = min(b.Length, n)
	w.ok(w.image.Update(w.t.Context(), guest, b.Length, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
	return b
}

// checkNewBlocks checks what crashes at a position may leave.
func checkNewBlocks(t *testing.T, w *written, journal *storagetest.Journal, at int, rng *rand.Rand) {
	t.Helper()
	for k := range 10 {
		opt := storagetest.CutOptions{Seed: rng.Uint64(), Drop: k > 0, Tear: k > 7}
		cut := journal.Cut(at, opt)["image"]
		res, err := qcow2.Check(t.Context(), storage.NewNode("cut", cut, storage.NodeOptions{}), qcow2.CheckOptions{})
		w.ok(err)
		if res.Corruptions > 0 || res.CheckErrors > 0 {
			t.Fatalf("cut at %d of %d, %+v: %d corruptions\n%s", at, journal.Len(), opt, res.Corruptions, strings.Join(res.Errors, "\n"))
		}
		if rng.IntN(200) > 0 {
			continue
		}
		w.ok(cut.WriteFile(filepath.Join(w.dir, "cut")))
		if out, err := try(t, w.dir, "qemu-img", "check", "-f", "qcow2", "cut"); err != nil && !strings.Contains(err.Error(), "exit status 3") {
			t.Fatalf("cut at %d of %d, %+v: qemu-img check: %v\n%s", at, journal.Len(), opt, err, out)
		}
	}
}
