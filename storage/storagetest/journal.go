package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
)

// A Journal records what is done to one or several files, in one order, and says
// what is left of them when the power fails in between.
//
// Its model: the journal is a sequence of events, each of one file: writes,
// zeros, trims, truncates, and flushes that have succeeded. What failed is no
// event; of a write that failed half way, the half is. A flush covers the events
// of its own file that had happened when it was called: what happens while it is
// under way is not promised. A cut at position n is a crash when the events
// before n had been issued. Of these, those that a flush before n covers have
// happened. Each of the others of that file may have happened or not,
// independently, whatever lay between them, and those that did happened in their
// order; a write may also have happened in part, by sectors of 512 bytes. The
// size of a file is what the events that happened make of it. What was trimmed
// reads as zeros, or as the option Litter says.
//
// That is weaker than what file systems do, as it should be: they keep the order
// of truncates, say. It does not go as far as damage to what was durable.
//
// Safe for concurrent use.
type Journal struct {
	mu     sync.Mutex // protects all below
	events []event
	files  map[string]*history
}

// An event is a change of a file that was recorded.
type event struct {
	change
	of *history
}

// A history is what a journal knows of one file.
type history struct {
	initial *MemFile
	flushes []flushed
	// base is the file when all its events before next had happened: a cut
	// begins there, unless it needs an earlier state.
	base *MemFile
	next int
}

// A flushed is a flush that has succeeded at a position, and all before covers
// is durable by that.
type flushed struct{ at, covers int }

// A JournalFile is a file whose changes are recorded. What makes content for
// tests (Put, Punch, SetSize) is not, and is not to be used.
type JournalFile struct {
	*MemFile
	journal *Journal
	of      *history
}

// NewJournal returns an empty journal.
func NewJournal() *Journal { return &Journal{files: map[string]*history{}} }

// File returns a file with that content, which is durable. The name is the
// journal's alone, and new to it.
func (j *Journal) File(name string, content []byte) *JournalFile {
	return j.FileWith(name, content, MemOptions{})
}

// FileWith is File with options. The hook sees each operation before it is
// recorded, and what it fails is not.
func (j *Journal) FileWith(name string, content []byte, opt MemOptions) *JournalFile {
	m := NewMemFileWith(opt)
	m.Put(content, 0)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.files[name] != nil {
		panic(fmt.Sprintf("storagetest: the journal has a file %q already", name))
	}
	h := &history{initial: m.Clone()}
	h.base = h.initial.Clone()
	j.files[name] = h
	return j.open(m, h)
}

// Reopen returns another file with the content that the one of that name has
// now, whether it was closed or not. From then on only one of them is to be
// changed.
func (j *Journal) Reopen(name string, opt MemOptions) *JournalFile {
	now := j.Cut(j.Len(), CutOptions{})[name]
	m := NewMemFileWith(opt)
	m.size, m.pages = now.size, now.pages
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.open(m, j.files[name])
}

func (j *Journal) open(m *MemFile, h *history) *JournalFile {
	m.record = func(c change) {
		if c.kind != OpFlush {
			j.add(event{c, h})
		}
	}
	return &JournalFile{MemFile: m, journal: j, of: h}
}

// add appends an event. Data is copied.
func (j *Journal) add(e event) {
	e.data = bytes.Clone(e.data)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

// Flush makes durable what has happened by now.
func (f *JournalFile) Flush(ctx context.Context) error {
	covers := f.journal.Len()
	if err := f.MemFile.Flush(ctx); err != nil {
		return err
	}
	j := f.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if k := len(f.of.flushes); k > 0 { // one that was called later may have been faster
		covers = max(covers, f.of.flushes[k-1].covers)
	}
	f.of.flushes = append(f.of.flushes, flushed{len(j.events), covers})
	j.events = append(j.events, event{change{kind: OpFlush}, f.of})
	return nil
}

// Len is how many events there are: the position now. What a test knows to be
// durable now must be there in every cut at this position or later.
func (j *Journal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.events)
}
