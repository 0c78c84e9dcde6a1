package service

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// A fileKey says which file something is, in whatever state.
type fileKey struct {
	dev, ino uint64
	device   bool
}

func keyOf(id file.Identity) fileKey {
	return fileKey{dev: id.Dev, ino: id.Ino, device: id.Device}
}

// A fileTable holds the files that a service has open, each of them once,
// whatever names lead to it: one descriptor, one lock, one writer. Two
// descriptors of ours would lock each other out.
type fileTable struct {
	mu   sync.Mutex // protects all below, and what is in it; not held during I/O
	open map[fileKey]*sharedFile
}

// A sharedFile is an open file. Its fields are guarded by fileTable.mu, but for
// file, which does not change while who looks at it has a reference.
type sharedFile struct {
	key    fileKey
	file   *file.File
	busy   chan struct{} // closed when it has been opened, or closed; nil between
	refs   int           // of open images, and of who changes the file itself
	below  int           // those of them that are images that have it as backing or data file
	writer any           // who writes to it, or is about to; nil: nobody
	named  int           // images being created that name it as their backing
	spent  bool          // a write through it has failed: it does for reading only
}

// maxTries is how often a name is looked up anew because what it leads to has
// been replaced meanwhile.
const maxTries = 8

// get opens the file, or shares it if it is open. One that somebody writes to
// fails with storage.ErrConflict. below: it is a backing or data file.
func (t *fileTable) get(ctx context.Context, src *source, below bool) (*sharedFile, error) {
	for tries := 0; tries < maxTries; {
		id, err := src.identify()
		if err != nil {
			return nil, err
		}
		key := keyOf(id)
		t.mu.Lock()
		f := t.open[key]
		switch {
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
		default:
			defer t.mu.Unlock()
			if f.writer != nil {
				return nil, fmt.Errorf("%w: %s is being written to as another image", storage.ErrConflict, src.node)
			}
			f.count(below, 1)
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

// load opens the file for all who wait for it. The name may lead elsewhere by
// now: then it is not the same.
func (t *fileTable) load(ctx context.Context, src *source, f *sharedFile) (same bool, err error) {
	opened, err := src.open(ctx)
	if err == nil {
		var id file.Identity
		id, err = opened.Identity()
		if same = err == nil && keyOf(id) == f.key; !same {
			_ = opened.Close() // it was never used
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if same {
		f.file = opened
	} else {
		delete(t.open, f.key)
	}
	close(f.busy)
	f.busy = nil
	return same, err
}

// put gives a reference back. The last one closes the file; who opens it
// meanwhile waits, so that it does not meet the lock.
func (t *fileTable) put(f *sharedFile, below bool) error {
	t.mu.Lock()
	if f.count(below, -1); f.refs > 0 {
		t.mu.Unlock()
		return nil
	}
	f.busy = make(chan struct{})
	t.mu.Unlock()
	err := f.file.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, f.key)
	close(f.busy)
	return err
}

// claim makes writer the one that writes to the files, in which it has a
// reference each. It says of which file another has one too.
func (t *fileTable) claim(writer any, files []*sharedFile) (shared *sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range files {
		if f.refs > 1 || f.named > 0 || f.writer != nil {
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
	if f.below > 0 || f.named > 0 {
		return nil, fmt.Errorf("%w: another image needs the file", storage.ErrConflict)
	}
	switch f.writer {
	case nil:
	case own:
		return func() {}, nil
	default:
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
	if f.writer != nil {
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

// spend says that a write through the files has failed.
func (t *fileTable) spend(files []*sharedFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range files {
		f.spent = true
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
