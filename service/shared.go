package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// A fileKey says which file something is, in whatever state; or which graph: then
// the file is what it stands on, where that counts.
type fileKey struct {
	dev, ino uint64
	device   bool
	graph    string // the name of its image; "" for a file
}

func keyOf(id file.Identity) fileKey {
	return fileKey{dev: id.Dev, ino: id.Ino, device: id.Device}
}

// A tableKey says what is open how.
type tableKey struct {
	file   fileKey
	direct bool // past the page cache
}

// A fileTable holds the files that a service has open, each of them once,
// whatever names lead to it: one descriptor, one lock, one writer. Two
// descriptors of ours would lock each other out. Only who reads past the page
// cache has another one than who does not, and has none while either writes.
// It holds the graphs of images likewise, each once: for the image, and for those
// that it backs.
type fileTable struct {
	openGraph func(ctx context.Context, src *source) (*openGraph, error)

	mu      sync.Mutex // protects all below, and what is in it; not held during I/O
	open    map[tableKey]*sharedFile
	closing bool // what is kept is kept no longer
}

// A sharedFile is an open file, or an open graph. Its fields are guarded by
// fileTable.mu, but for file and graph, which do not change while who looks at
// them has a reference.
type sharedFile struct {
	key    tableKey
	file   *file.File    // nil: it is a graph
	graph  *openGraph    // nil: it is a file
	busy   chan struct{} // closed when it has been opened, or closed; nil between
	refs   int           // of open images, of graphs, and of who changes the file itself
	below  int           // those of them that are graphs, and images that have it as backing or data file
	peeks  int           // who looks into a graph, and is in nobody's way
	writer any           // who writes to it, or is about to; nil: nobody
	named  int           // images being created that name it as their backing
	spent  bool          // a write through it has failed: it does for reading only
}

// maxTries is how often a name is looked up anew because what it leads to has
// been replaced meanwhile.
const maxTries = 8

// get opens the source, or shares it if it is open. What somebody writes to
// fails with storage.ErrConflict. below: it is a backing or data file, or a
// graph's.
func (t *fileTable) get(ctx context.Context, src *source, below bool) (*sharedFile, error) {
	for tries := 0; tries < maxTries; {
		id, err := src.identify()
		if err != nil {
			return nil, err
		}
		key := src.key(id)
		t.mu.Lock()
		f := t.open[key]
		switch {
		case t.written(key):
			t.mu.Unlock()
			return nil, fmt.Errorf("%w: %s is being written to as another image", storage.ErrConflict, src.node)
		case f == nil:
			f = &sharedFile{key: key, busy: make(chan struct{})}
			f.count(below, 1)
			t.open[key] = f
			t.mu.Unlock()
			if same, err := t.load(ctx, src, f); same || err != nil {
				return f, err
			}
			tries++
		case f.busy != nil:
			busy := f.busy
			t.mu.Unlock()
			if err := wait(ctx, busy); err != nil {
				return nil, err
			}
		case f.graph != nil && f.graph.outdated(id):
			delete(t.open, key)
			unused := t.unused(f)
			t.mu.Unlock()
			if unused { // but kept
				_ = t.shut(f) // nobody writes to it
			}
		default:
			f.count(below, 1)
			t.mu.Unlock()
			return f, nil
		}
	}
	return nil, fmt.Errorf("%w: %s is replaced again and again", storage.ErrBusy, src.node)
}

func (f *sharedFile) count(below bool, by int) {
	f.refs += by
	if below {
		f.below += by
	}
}

// twin is the same file, open the other way; nil if it is not. t.mu must be held.
func (t *fileTable) twin(key tableKey) *sharedFile {
	if key.file.graph != "" {
		return nil
	}
	key.direct = !key.direct
	return t.open[key]
}

// written reports whether somebody writes to the file. t.mu must be held.
func (t *fileTable) written(key tableKey) bool {
	f, twin := t.open[key], t.twin(key)
	return f != nil && f.writer != nil || twin != nil && twin.writer != nil
}

// load opens the source for all who wait for it. The name may lead elsewhere by
// now: then it is not the same.
func (t *fileTable) load(ctx context.Context, src *source, f *sharedFile) (same bool, err error) {
	var opened *file.File
	var graph *openGraph
	if src.graph != nil {
		graph, err = t.openGraph(ctx, src)
		same = err == nil
	} else if opened, err = src.open(ctx); err == nil {
		var id file.Identity
		id, err = opened.Identity()
		if same = err == nil && keyOf(id) == f.key.file; !same {
			_ = opened.Close() // it was never used
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if same {
		f.file, f.graph = opened, graph
	} else {
		delete(t.open, f.key)
	}
	close(f.busy)
	f.busy = nil
	return same, err
}

// put gives a reference back. The last one closes what it was of, unless that is
// kept; who opens it meanwhile waits, so that it does not meet the lock.
func (t *fileTable) put(f *sharedFile, below bool) error {
	t.mu.Lock()
	f.count(below, -1)
	return t.settle(f)
}

// settle closes what nobody uses any more, unless it is kept. t.mu must be held,
// and is no longer afterwards.
func (t *fileTable) settle(f *sharedFile) error {
	kept := f.graph != nil && f.graph.keeps() && t.open[f.key] == f && !t.closing
	unused := !kept && t.unused(f)
	t.mu.Unlock()
	if !unused {
		return nil
	}
	return t.shut(f)
}

// unused reports whether the caller is to close f, since nobody uses it. t.mu
// must be held.
func (t *fileTable) unused(f *sharedFile) bool {
	if f.refs > 0 || f.peeks > 0 || f.busy != nil {
		return false
	}
	f.busy = make(chan struct{})
	return true
}

// shut closes what was found to be unused.
func (t *fileTable) shut(f *sharedFile) error {
	var err error
	if f.graph != nil {
		err = f.graph.close(t)
	} else {
		err = f.file.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[f.key] == f {
		delete(t.open, f.key)
	}
	close(f.busy)
	f.busy = nil
	return err
}

// close closes the graphs that were kept. Those that are in use are closed after
// that.
func (t *fileTable) close() error {
	var kept []*sharedFile
	t.mu.Lock()
	t.closing = true
	for _, f := range t.open {
		if f.graph != nil && t.unused(f) {
			kept = append(kept, f)
		}
	}
	t.mu.Unlock()
	var errs []error
	for _, f := range kept {
		if err := t.shut(f); err != nil {
			errs = append(errs, fmt.Errorf("image %q: %w", f.key.file.graph, err))
		}
	}
	return errors.Join(errs...)
}

// peek is the graph of an image if it is open, to be looked into until done is
// called; nil if it is not.
func (t *fileTable) peek(image string) (g *openGraph, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.open[tableKey{file: fileKey{graph: image}}]
	if f == nil || f.busy != nil {
		return nil, nil
	}
	f.peeks++
	return f.graph, func() {
		t.mu.Lock()
		f.peeks--
		_ = t.settle(f) // nothing was written
	}
}

// wrote says what the file of a graph is like after what was written to it.
func (t *fileTable) wrote(g *openGraph, id file.Identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g.identity = id
}

// claim makes writer the one that writes to the files, in which it has a
// reference each. It says of which file another has one too.
func (t *fileTable) claim(writer any, files []*sharedFile) (shared *sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range files {
		if f.refs > 1 || f.named > 0 || f.writer != nil || t.twin(f.key) != nil {
			return f
		}
	}
	for _, f := range files {
		f.writer = writer
	}
	return nil
}

// release ends what claim began. It may be called again.
func (t *fileTable) release(writer any, files []*sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range files {
		if f.writer == writer {
			f.writer = nil
		}
	}
}

// seal keeps everybody from opening the file as something new, and from writing
// to it, but for the image that it is open as. It fails if another image needs
// the file.
func (t *fileTable) seal(f *sharedFile, own *image) (release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	twin := t.twin(f.key)
	if f.below > 0 || f.named > 0 || twin != nil && (twin.below > 0 || twin.named > 0) {
		return nil, fmt.Errorf("%w: another image needs the file", storage.ErrConflict)
	}
	switch {
	case own != nil && f.writer == own:
		return func() {}, nil
	case t.written(f.key):
		return nil, fmt.Errorf("%w: the file is being written to", storage.ErrConflict)
	}
	f.writer = new(sharedFile) // nobody else's
	mark := f.writer
	return func() { t.release(mark, []*sharedFile{f}) }, nil
}

// name keeps everybody from writing to a file, unless somebody does: an image is
// being created that has it as its backing.
func (t *fileTable) name(f *sharedFile) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written(f.key) {
		return false
	}
	f.named++
	return true
}

// unname ends what name began.
func (t *fileTable) unname(f *sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.named--
}

// spend says that a write through the files has failed. A graph is opened anew
// then, unless it is precious.
func (t *fileTable) spend(files []*sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range files {
		if f.graph != nil {
			f.graph.stale.Store(true)
		} else {
			f.spent = true
		}
	}
}

// spent reports whether one of the files must be opened anew to be written to.
func (t *fileTable) spent(files []*sharedFile) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(files, func(f *sharedFile) bool { return f.spent })
}

// wait waits for a channel to be closed.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
