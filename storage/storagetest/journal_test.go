package storagetest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, w storage.Writer, p []byte, off int64) {
	t.Helper()
	_, err := w.WriteAt(t.Context(), p, off)
	must(t, err)
}

// TestJournalWithoutLoss: a cut that loses nothing is the files as they were,
// whatever was done to them, and in whatever order the cuts are made.
func TestJournalWithoutLoss(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("changes of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	j := storagetest.NewJournal()
	names := []string{"image", "data"}
	files := []*storagetest.JournalFile{j.File("image", []byte("as it was created")), j.FileWith("data", nil, storagetest.MemOptions{Litter: 0xdb})}
	var states [][2][]byte
	for {
		states = append(states, [2][]byte{files[0].Bytes(), files[1].Bytes()})
		if len(states) != j.Len()+1 {
			t.Fatalf("%d events after %d changes", j.Len(), len(states)-1)
		}
		if len(states) > 150 {
			break
		}
		f, off, n := files[random.IntN(2)], random.Int64N(20<<10), random.Int64N(9<<10)
		switch random.IntN(6) {
		case 0, 1:
			put(t, f, bytes.Repeat([]byte{byte(len(states))}, int(n)), off)
		case 2:
			must(t, f.Zero(t.Context(), off, n, n%2 == 0))
		case 3:
			must(t, f.Trim(t.Context(), off, n))
		case 4:
			must(t, f.Truncate(t.Context(), off))
		case 5:
			must(t, f.Flush(t.Context()))
		}
	}
	for range 1000 {
		at := random.IntN(len(states))
		for k, name := range names {
			if got := j.Cut(at, storagetest.CutOptions{})[name].Bytes(); !bytes.Equal(got, states[at][k]) {
				t.Fatalf("%s after %d events differs", name, at)
			}
		}
	}
}

// TestJournalLosses: each sector is as it was at the last flush or at some time
// after it, and every option loses what it says.
func TestJournalLosses(t *testing.T) {
	const sectors, sector = 64, 512
	j := storagetest.NewJournal()
	f := j.File("image", make([]byte, sectors*sector))
	var history [sectors][]uint64 // what was written since the last flush, and before it what was there
	for i := range history {
		history[i] = []uint64{0}
	}
	random := rand.New(rand.NewPCG(1, 1))
	flushed := 0
	for tag := uint64(1); tag <= 200; tag++ {
		if tag%50 == 30 { // some are not flushed at the end
			must(t, f.Flush(t.Context()))
			flushed = j.Len()
			for i := range history {
				history[i] = history[i][len(history[i])-1:]
			}
		}
		at := random.IntN(sectors)
		n := 1 + random.IntN(min(8, sectors-at))
		p := make([]byte, n*sector)
		for i := range n {
			binary.LittleEndian.PutUint64(p[i*sector:], tag)
			history[at+i] = append(history[at+i], tag)
		}
		put(t, f, p, int64(at)*sector)
	}
	reordered, torn := false, false
	for seed := range uint64(300) {
		opt := storagetest.CutOptions{Seed: seed, Drop: seed%3 > 0, Tear: seed%3 != 1}
		got := j.Cut(j.Len(), opt)["image"].Bytes()
		if !bytes.Equal(got, j.Cut(j.Len(), opt)["image"].Bytes()) {
			t.Fatalf("%+v: two cuts differ", opt)
		}
		last := 0
		for i := range sectors {
			tag := binary.LittleEndian.Uint64(got[i*sector:])
			at := slices.Index(history[i], tag)
			if at < 0 {
				t.Fatalf("%+v: sector %d has %d, want one of %v", opt, i, tag, history[i])
			}
			if seed == 0 && opt.Drop && at > 0 {
				t.Errorf("%+v: sector %d has kept %d", opt, i, tag)
			}
			if at == len(history[i])-1 {
				last++
			} else if opt.Drop {
				reordered = reordered || slices.ContainsFunc(history[:], func(h []uint64) bool { return slices.Max(h) > history[i][at+1] })
			} else {
				torn = true
			}
		}
		if !opt.Drop && !opt.Tear && last != sectors {
			t.Errorf("%+v: something is lost", opt)
		}
	}
	if !reordered || !torn {
		t.Errorf("later writes without earlier ones: %v, parts of writes: %v", reordered, torn)
	}
	for seed := range uint64(50) { // what is durable is there
		files := j.Cut(flushed, storagetest.CutOptions{Seed: seed, Drop: true, Tear: true})
		if !bytes.Equal(files["image"].Bytes(), j.Cut(flushed, storagetest.CutOptions{})["image"].Bytes()) {
			t.Errorf("seed %d: a flush has not kept what was written", seed)
		}
	}
}

// TestJournalClasses: among the seeds are those that lose all, all but one, and
// one.
func TestJournalClasses(t *testing.T) {
	const writes = 20
	j := storagetest.NewJournal()
	f := j.File("image", make([]byte, writes*512))
	for k := range int64(writes) {
		put(t, f, []byte{1}, k*512)
	}
	seen := map[int]bool{}
	for seed := range uint64(200) {
		got := j.Cut(writes, storagetest.CutOptions{Seed: seed, Drop: true})["image"].Bytes()
		n := bytes.Count(got, []byte{1})
		if seed == 0 && n > 0 {
			t.Errorf("seed 0 keeps %d", n)
		}
		seen[n] = true
	}
	if !seen[0] || !seen[1] || !seen[writes-1] || len(seen) < writes/2 {
		t.Errorf("numbers of writes that happened: %v", seen)
	}
}

// TestJournalFlush covers only its own file, only what was before it, and nothing
// when it fails.
func TestJournalFlush(t *testing.T) {
	ctx := t.Context()
	broken := errors.New("broken")
	entered, leave := make(chan struct{}), make(chan struct{})
	first := true
	hook := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind != storagetest.OpFlush {
			return nil
		}
		if first {
			first = false
			return broken
		}
		entered <- struct{}{}
		<-leave
		return nil
	}
	j := storagetest.NewJournal()
	f, other := j.FileWith("image", make([]byte, 4), storagetest.MemOptions{Hook: hook}), j.File("data", make([]byte, 4))
	put(t, f, []byte{1}, 0)
	put(t, other, []byte{1}, 0)
	if err := f.Flush(ctx); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	expect := func(what string, image, data []byte) {
		t.Helper()
		files := j.Cut(j.Len(), storagetest.CutOptions{Drop: true})
		if !bytes.Equal(files["image"].Bytes(), image) || !bytes.Equal(files["data"].Bytes(), data) {
			t.Errorf("%s: %v and %v, want %v and %v", what, files["image"].Bytes(), files["data"].Bytes(), image, data)
		}
	}
	expect("failed", make([]byte, 4), make([]byte, 4))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Flush(ctx); err != nil {
			t.Error(err)
		}
	})
	<-entered
	put(t, f, []byte{2}, 1)
	expect("under way", make([]byte, 4), make([]byte, 4))
	leave <- struct{}{}
	wg.Wait()
	expect("flushed", []byte{1, 0, 0, 0}, make([]byte, 4))
	must(t, other.Flush(ctx))
	expect("the other as well", []byte{1, 0, 0, 0}, []byte{1, 0, 0, 0})
}

// TestJournalRecordsWhatHappened: of a write that fails half way the half, and
// nothing of what fails.
func TestJournalRecordsWhatHappened(t *testing.T) {
	broken := errors.New("broken")
	j := storagetest.NewJournal()
	f := j.FileWith("image", nil, storagetest.MemOptions{Hook: storagetest.Hooks(
		storagetest.ShortNth(storagetest.OpWrite, 1, 2, broken),
		storagetest.FailNth(storagetest.OpWrite, 1, broken), // the second: the first did not come so far
		storagetest.FailNth(storagetest.OpTruncate, 1, broken),
	)})
	p := []byte{1, 2, 3, 4}
	if n, err := f.WriteAt(t.Context(), p, 0); n != 2 || !errors.Is(err, broken) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if n, err := f.WriteAt(t.Context(), p, 0); n != 0 || !errors.Is(err, broken) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if err := f.Truncate(t.Context(), 0); !errors.Is(err, broken) {
		t.Errorf("Truncate = %v", err)
	}
	clear(p) // it is the caller's
	if got := j.Cut(j.Len(), storagetest.CutOptions{})["image"].Bytes(); j.Len() != 1 || !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("after %d events %v", j.Len(), got)
	}
}

func TestJournalReopen(t *testing.T) {
	j := storagetest.NewJournal()
	f := j.File("image", []byte("content"))
	put(t, f, []byte("CON"), 0)
	must(t, f.Flush(t.Context()))
	put(t, f, []byte("!"), 7)
	must(t, f.Close())
	f = j.Reopen("image", storagetest.MemOptions{})
	if got := f.Bytes(); string(got) != "CONtent!" {
		t.Errorf("reopened as %q", got)
	}
	put(t, f, []byte("T"), 3)
	for at, want := range []string{"content", "CONtent", "CONtent", "CONtent!", "CONTent!"} {
		if got := j.Cut(at, storagetest.CutOptions{})["image"].Bytes(); string(got) != want {
			t.Errorf("after %d events %q, want %q", at, got, want)
		}
	}
	if got := j.Cut(4, storagetest.CutOptions{Drop: true})["image"].Bytes(); string(got) != "CONtent" {
		t.Errorf("durable is %q", got)
	}
}

// TestClone: what is changed on one side does not show on the other.
func TestClone(t *testing.T) {
	const page = storagetest.PageSize
	a := storagetest.NewMemFile(bytes.Repeat([]byte{1}, 3*page), storagetest.Range{Offset: page, Length: page})
	b := a.Clone()
	c := b.Clone()
	put(t, a, []byte{2}, 5)
	must(t, b.Zero(t.Context(), 2*page, page, true))
	must(t, c.Truncate(t.Context(), page))
	want := bytes.Repeat([]byte{1}, 3*page)
	clear(want[page : 2*page])
	wantA, wantB := bytes.Clone(want), bytes.Clone(want)
	wantA[5] = 2
	clear(wantB[2*page:])
	for name, f := range map[string]struct {
		file *storagetest.MemFile
		want []byte
	}{"a": {a, wantA}, "b": {b, wantB}, "c": {c, want[:page]}} {
		if !bytes.Equal(f.file.Bytes(), f.want) {
			t.Errorf("%s has another's content", name)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	must(t, a.WriteFile(path))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, wantA) {
		t.Errorf("WriteFile: %v", err)
	}
}

// TestNoSpaceAfter cuts the write that goes beyond.
func TestNoSpaceAfter(t *testing.T) {
	m := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: storagetest.NoSpaceAfter(150)})
	for i, want := range []int{100, 50, 0, 0} {
		n, err := m.WriteAt(t.Context(), make([]byte, 100), 0)
		if n != want || (err != nil) != (n < 100) || err != nil && !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("write %d = %d, %v", i, n, err)
		}
	}
}

func BenchmarkCut(b *testing.B) {
	j := storagetest.NewJournal()
	f := j.File("image", make([]byte, 10<<20))
	for k := range int64(2000) {
		if _, err := f.WriteAt(b.Context(), make([]byte, 4096), k*37%2500*4096); err != nil {
			b.Fatal(err)
		}
		if k%20 == 0 {
			if err := f.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	at := 0
	for b.Loop() {
		j.Cut(at, storagetest.CutOptions{Seed: uint64(at), Drop: true, Tear: true})
		at = (at + 1) % j.Len()
	}
}
