package block_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

func trackedKinds() map[string]qcow2.CreateOptions {
	return map[string]qcow2.CreateOptions{
		"512":       {Size: 100 << 10, ClusterSize: 512},
		"tables":    {Size: 2100 << 10, ClusterSize: 512}, // one granule of 512 bytes more needs another cluster of bits
		"extended":  {Size: 300 << 10, ClusterSize: 16 << 10, ExtendedL2: true},
		"lazy":      {Size: 200 << 10, ClusterSize: 4096, LazyRefcounts: true},
		"backing":   {Size: 200 << 10, ClusterSize: 1024, Backing: "below", BackingFormat: "raw"},
		straddled:   {Size: 100 << 10, ClusterSize: 4096},
		"data file": {Size: 256 << 10, ClusterSize: 4096, DataFile: "data", DataFileRaw: true},
	}
}

// straddled is an image in whose header the extension of bitmaps will lie across two
// sectors: an unknown one, of 368 bytes, comes before it.
const straddled = "straddled"

func straddle(kind, file string, content []byte) []byte {
	if kind == straddled && file == "image" {
		copy(content[112:], []byte{1, 2, 3, 4, 0, 0, 1, 0x70})
	}
	return content
}

func memFile(_ string, content []byte) storage.File { return storagetest.NewMemFile(content) }

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// Whatever is done to an image, its bitmaps mark what has changed since they were
// cleared, and no granule that nothing has touched; also after it was closed.
func TestBitmapsAgreeWithModel(t *testing.T) {
	for name, opt := range trackedKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTracked(t, seeded(t), opt, func(file string, content []byte) storage.File {
				return memFile(file, straddle(name, file, content))
			})
			for range 2 {
				for k := range 30 {
					s.step()
					if k%10 == 0 {
						s.check()
					}
				}
				s.check()
				must(t, s.image.Close())
				s.qemuChecks(t)
				s.open()
				s.check()
			}
			must(t, s.image.Close())
		})
	}
}

// qemuChecks has QEMU look at the closed image: nothing has leaked.
func (s *tracked) qemuChecks(t *testing.T, args ...string) {
	t.Helper()
	dir := t.TempDir()
	for name, f := range s.files {
		must(t, os.WriteFile(filepath.Join(dir, name), f.(interface{ Bytes() []byte }).Bytes(), 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "qemu-img", append([]string{"check", "-q", "-f", "qcow2", "image"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img check: %v; if it is missing: apt-get install qemu-utils\n%s", err, out)
	}
}

// A bitmapState is what is true once a change of bitmaps, which begins and ends at
// positions of the journal, is done.
type bitmapState struct {
	from, to int
	bytes    []byte
	bitmaps  map[string]*bitmapModel
}

// Wherever the power fails, the image is consistent, and each bitmap is inconsistent,
// or says what has changed.
func TestBitmapsSurviveCrashes(t *testing.T) {
	for name, opt := range trackedKinds() {
		if name == "tables" || name == "data file" { // two files: which bytes belong together is not known
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := seeded(t)
			journal := storagetest.NewJournal()
			s := newTracked(t, rng, opt, func(file string, content []byte) storage.File {
				return journal.File(file, straddle(name, file, content))
			})
			states := []bitmapState{{0, 0, bytes.Clone(s.bytes), nil}}
			for range 60 {
				from, before := journal.Len(), s.bitmaps
				size := len(s.bytes)
				s.step()
				if rng.IntN(20) == 0 {
					must(t, s.image.Close())
					s.open()
					size = -1
				}
				if fmt.Sprintf("%p", before) != fmt.Sprintf("%p", s.bitmaps) || size != len(s.bytes) {
					states = append(states, s.state(from, journal.Len()))
				}
			}
			from := journal.Len()
			must(t, s.image.Close())
			states = append(states, s.state(from, journal.Len()))
			kept := 0
			for range 12 {
				at := rng.IntN(journal.Len() + 1)
				cut := storagetest.CutOptions{Seed: rng.Uint64(), Drop: rng.IntN(4) > 0, Tear: rng.IntN(2) == 0}
				kept += s.checkCut(t, journal.Cut(at, cut)["image"], at, states)
			}
			if kept == 0 {
				t.Error("no bitmap was ever consistent")
			}
		})
	}
}

func (s *tracked) state(from, to int) bitmapState {
	st := bitmapState{from, to, bytes.Clone(s.bytes), map[string]*bitmapModel{}}
	for name, m := range s.bitmaps {
		st.bitmaps[name] = m.clone()
	}
	return st
}

// checkCut opens what a crash has left, and returns how many bitmaps are consistent.
func (s *tracked) checkCut(t *testing.T, file *storagetest.MemFile, at int, states []bitmapState) (kept int) {
	t.Helper()
	c := &tracked{t: t, opt: s.opt, files: map[string]storage.File{"image": file, "below": s.files["below"]}}
	c.open()
	now := c.read()
	all, err := c.image.Bitmaps(t.Context())
	must(t, err)
	var possible []bitmapState
	for k, st := range states {
		if st.to <= at && (k+1 == len(states) || states[k+1].to > at) || st.from < at && at < st.to {
			possible = append(possible, st)
		}
	}
	for _, b := range all {
		if b.Inconsistent {
			continue
		}
		kept++
		dirty := bitsOf(t, c.image, b.Name)
		var reasons []string
		for _, st := range possible {
			why := "there is no such bitmap"
			if m := st.bitmaps[b.Name]; m != nil {
				why = m.since(st.bytes, now).wrong(dirty, false)
			}
			reasons = append(reasons, why)
		}
		if !strings.Contains("\n"+strings.Join(reasons, "\n")+"\n", "\n\n") {
			t.Fatalf("cut at %d: %+v: %q", at, b, reasons)
		}
	}
	must(t, c.image.Close())
	if s.opt.Backing == "" {
		delete(c.files, "below")
	}
	c.qemuChecks(t, "-r", "leaks")
	return kept
}

// since is what the bitmap must say if the bytes have become others while it recorded.
func (m *bitmapModel) since(then, now []byte) *bitmapModel {
	c := m.clone()
	c.resize(len(now))
	for k := range now {
		if m.enabled && (k >= len(then) || then[k] != now[k]) {
			c.changed[k] = true
		}
	}
	return c
}

// Writers, a reader of the bitmap, and changes of others at the same time.
func TestBitmapsInParallel(t *testing.T) {
	s := newTracked(t, seeded(t), qcow2.CreateOptions{Size: 4 << 20, ClusterSize: 4096}, memFile)
	create := storage.BitmapChange{Kind: storage.BitmapCreate, Name: "a", Granularity: 512, Enabled: true}
	must(t, s.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{create}))
	const writers, writes = 4, 200
	var wg sync.WaitGroup
	for g := range int64(writers) {
		wg.Go(func() {
			for k := range int64(writes) {
				if err := s.d.WriteAt(t.Context(), []byte{1, 2, 3}, (k*writers+g)*4096); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for k := range 20 {
			changes := []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: fmt.Sprint(k), Enabled: true}}
			if k > 2 {
				changes = append(changes, storage.BitmapChange{Kind: storage.BitmapDelete, Name: fmt.Sprint(k - 3)}, storage.BitmapChange{Kind: storage.BitmapDisable, Name: fmt.Sprint(k - 1)})
			}
			if err := s.d.Exclusively(t.Context(), func(context.Context) error { return s.image.ChangeBitmaps(t.Context(), changes) }); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 50 {
			if dirty := bitsOf(t, s.image, "a"); len(dirty) != 4<<20 {
				t.Error(len(dirty))
			}
			if _, err := s.image.Bitmaps(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	dirty := bitsOf(t, s.image, "a")
	for k := range dirty {
		if want := k%4096 < 512 && k < writers*writes*4096; dirty[k] != want {
			t.Fatalf("byte %d: %v", k, dirty[k])
		}
	}
	must(t, s.image.Close())
	s.qemuChecks(t)
}

// BenchmarkRecord overwrites 4 KiB in place: without bitmaps, with frozen ones alone,
// and with one and four that record.
func BenchmarkRecord(b *testing.B) {
	const size = 64 << 20
	for _, enabled := range []int{-1, 0, 1, 4} {
		b.Run(fmt.Sprint(enabled), func(b *testing.B) {
			s := newTracked(b, rand.New(rand.NewPCG(1, 1)), qcow2.CreateOptions{Size: size}, memFile)
			defer s.image.Close()
			must(b, s.d.WriteAt(b.Context(), make([]byte, size), 0))
			for k := range max(1, enabled) {
				change := storage.BitmapChange{Kind: storage.BitmapCreate, Name: fmt.Sprint(k), Enabled: enabled > 0}
				if enabled >= 0 {
					must(b, s.image.ChangeBitmaps(b.Context(), []storage.BitmapChange{change}))
				}
			}
			p := make([]byte, 4096)
			rng := rand.New(rand.NewPCG(2, 2))
			b.ReportAllocs()
			for b.Loop() {
				must(b, s.d.WriteAt(b.Context(), p, rng.Int64N(size/4096)*4096))
			}
		})
	}
}
