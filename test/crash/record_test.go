package crash_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A recording is a workload on an image, with every event of its files.
type recording struct {
	kind    *kind
	journal *storagetest.Journal
	history *history
	workers []*worker
}

func (r *recording) log() string {
	var b strings.Builder
	for i, w := range r.workers {
		fmt.Fprintf(&b, "worker %d:\n%s\n", i, strings.Join(w.log, "\n"))
	}
	return b.String()
}

// newRecording opens the image of a kind over journaled files. Workers share
// the disk among them.
func newRecording(t *testing.T, k *kind, name string, workers int, hook storagetest.Hook) (*recording, *disk) {
	t.Helper()
	r := &recording{kind: k, journal: storagetest.NewJournal()}
	files := map[string]storage.File{}
	for file, content := range k.load(t) {
		opt := storagetest.MemOptions{Hook: hook}
		if source(name).IntN(2) == 0 {
			opt.Litter = 0xdb
		}
		files[file] = r.journal.FileWith(file, content, opt)
	}
	d, err := openDisk(t.Context(), files)
	must(t, err)
	initial, err := readAll(t.Context(), d)
	must(t, err)
	r.history = newHistory(initial)
	share := d.Size() / int64(workers) / k.cluster * k.cluster
	for i := range int64(workers) {
		r.workers = append(r.workers, &worker{
			kind: k, disk: d, history: r.history, random: source(fmt.Sprint(name, " worker ", i)),
			at: r.journal.Len, lo: i * share, hi: (i + 1) * share, stamp: uint64(i) << 32,
		})
	}
	if workers == 1 {
		r.workers[0].hi = d.Size()
	}
	return r, d
}

// record runs a workload to its end and closes the image.
func record(t *testing.T, k *kind, name string, workers, steps int) *recording {
	t.Helper()
	r, d := newRecording(t, k, name, workers, nil)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s, -seed %d:\n%s", name, *seed, r.log())
		}
	})
	must(t, d.startWriting(t.Context()))
	var wg sync.WaitGroup
	for _, w := range r.workers {
		wg.Go(func() {
			for range steps / workers {
				if err := w.step(t.Context()); err != nil {
					t.Errorf("%v: %s", err, w.log[len(w.log)-1])
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	got, err := readAll(t.Context(), d)
	must(t, err)
	// What is read back before any crash is the last of everything.
	now := r.history.now()
	last := &history{initial: r.history.initial, changes: r.history.changes, flushes: []flushing{{called: now}}}
	if err := last.check(got, r.journal.Len()); err != nil {
		t.Fatalf("before any crash: %v", err)
	}
	must(t, d.close())
	r.history.flushed(now, r.journal.Len())
	return r
}

func readAll(ctx context.Context, d *disk) ([]byte, error) {
	p := make([]byte, d.Size())
	if len(p) == 0 {
		return p, nil
	}
	return p, d.ReadAt(ctx, p, 0)
}

// asFiles are a crash's files for opening.
func asFiles(cut map[string]*storagetest.MemFile) map[string]storage.File {
	files := make(map[string]storage.File, len(cut))
	for name, f := range cut {
		files[name] = f
	}
	return files
}
