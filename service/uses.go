package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// Names are what an image stores of its children, "" for none.
type Names struct {
	Backing, BackingFormat, DataFile string
}

// errUsed is what a look for users of files ends with when it has found one.
var errUsed = errors.New("used")

// claim makes the image the one that writes to its files, if no other image
// needs one of them: none that is open, and none of those that are served.
func (s *Service) claim(ctx context.Context, h *Handle, files []*sharedFile) error {
	// First without a claim, which who opens an image over this one would meet;
	// then again, for one that has come meanwhile.
	if err := s.checkUnused(ctx, files, files[0].key); err != nil {
		return err
	}
	if s.files.claim(h.image, files) != nil {
		s.evictUsers(h.image, files)
		if f := s.files.claim(h.image, files); f != nil {
			return fmt.Errorf("%w: %s is in use as another image or a part of one", storage.ErrConflict, h.nodeOf(f))
		}
	}
	if err := s.checkUnused(ctx, files, files[0].key); err != nil {
		s.files.release(h.image, files)
		return err
	}
	return nil
}

// nodeOf is what the image calls a file.
func (i *image) nodeOf(f *sharedFile) string {
	for n := range i.chain.files {
		if i.chain.files[n].shared == f {
			return i.chain.files[n].source.node
		}
	}
	return "its file"
}

// evictUsers closes the images that have one of the files open, and that nobody
// uses.
func (s *Service) evictUsers(but *image, files []*sharedFile) {
	s.evictWhere(func(i *image) bool {
		return i != but && slices.ContainsFunc(i.chain.files, func(f openFile) bool { return slices.Contains(files, f.shared) })
	})
}

// evictWriter closes the image that writes to the file, if nobody uses it.
func (s *Service) evictWriter(src *source) {
	id, err := src.identify()
	if err != nil {
		return
	}
	s.evictWhere(func(i *image) bool {
		return i.writing.Load() && slices.ContainsFunc(i.written(), func(f *sharedFile) bool { return f.key == keyOf(id) })
	})
}

// evictWhere closes those of the images that nobody uses.
func (s *Service) evictWhere(is func(i *image) bool) {
	var idle []*Handle
	s.mu.Lock()
	for name, h := range s.open {
		if h.refs.Load() == 1 && is(h.image) {
			delete(s.open, name)
			idle = append(idle, h)
		}
	}
	s.mu.Unlock()
	for _, h := range idle {
		h.Release()
	}
}

// checkUnused looks into all images that are served, but those in the file self,
// for one that has one of the files as backing or data file. It fails with
// storage.ErrConflict if there is one. An image that cannot be read needs
// nothing.
func (s *Service) checkUnused(ctx context.Context, files []*sharedFile, self fileKey) error {
	l := look{s: s, self: self, files: make(map[fileKey]bool, len(files))}
	for _, f := range files {
		l.files[f.key] = true
	}
	for name := range s.images {
		if err := l.image(ctx, name); err != nil {
			return err
		}
	}
	if s.opt.Dir == "" {
		return nil
	}
	var failed error
	_, err := s.roots[0].dir.Names(ctx, func(name string) bool { // none is wanted: memory does not grow with the directory
		if failed == nil && ValidName(name) {
			failed = l.image(ctx, name)
		}
		return false
	})
	return errors.Join(failed, err)
}

// A look is for images that have one of the files as backing or data file.
type look struct {
	s     *Service
	files map[fileKey]bool
	self  fileKey
}

// image looks into one image. An error is a context's, or says that it uses one.
func (l *look) image(ctx context.Context, name string) error {
	src, err := l.s.find(name)
	if err != nil {
		return nil //nolint:nilerr // not an image
	}
	for range maxLayers {
		next, err := l.layer(ctx, &src)
		if errors.Is(err, errUsed) {
			return fmt.Errorf("%w: image %q needs its file", storage.ErrConflict, name)
		}
		if err != nil || next == nil {
			return err
		}
		src = *next
	}
	return nil
}

// layer looks at what the file at src names. It returns what backs it, if that
// is no image of its own.
func (l *look) layer(ctx context.Context, src *source) (*source, error) {
	driver := l.s.opt.Formats[src.format]
	if err := ctx.Err(); err != nil || !driver.Children {
		return nil, err
	}
	id, err := src.identify()
	if err != nil || keyOf(id) == l.self && src.spec == nil {
		return nil, nil //nolint:nilerr // what is not there needs nothing
	}
	names := l.s.peeks.names(ctx, driver, src, id)
	data, backing := l.s.children(src, names)
	if _, used := l.first(data); used && keyOf(id) != l.self {
		return nil, errUsed
	}
	below, used := l.first(backing)
	if used {
		return nil, errUsed
	}
	if below == nil || l.s.isServed(below) {
		return nil, nil
	}
	return below, nil
}

// first is the first of the files that is there.
func (l *look) first(found []source) (below *source, used bool) {
	for i := range found {
		if id, err := found[i].identify(); err == nil {
			return &found[i], l.files[keyOf(id)]
		}
	}
	return nil, false
}

// children are the files that the data file and the backing of the layer at src
// may be.
func (s *Service) children(src *source, names Names) (data, backing []source) {
	var bound ImageSpec
	if src.spec != nil {
		bound = *src.spec
	}
	switch {
	case bound.DataFile != "":
		data = []source{{node: filepath.Base(bound.DataFile), format: formatData, path: bound.DataFile, host: bound.DataFile}}
	case names.DataFile != "":
		data, _ = s.follow(src, names.DataFile, formatData)
	}
	switch {
	case bound.Backing != "":
		if b, err := s.find(bound.Backing); err == nil {
			backing = []source{b}
		}
	case names.Backing != "":
		format := names.BackingFormat
		if format == "" {
			format = FormatOf(names.Backing, s.opt.Formats)
		}
		backing, _ = s.follow(src, names.Backing, format)
	}
	return data, backing
}

// isServed reports whether the file is an image under its own name, so that it
// is looked into anyway.
func (s *Service) isServed(src *source) bool {
	if src.spec != nil {
		return true
	}
	own, err := s.find(src.path)
	return err == nil && own.spec == nil && own.root == src.root
}

// mostPeeks is how many files' names are kept.
const mostPeeks = 8192

// A peekCache keeps what images store of their children, for as long as their
// files do not change.
type peekCache struct {
	mu    sync.Mutex
	known map[peekKey]Names // guarded by mu
}

type peekKey struct {
	id     file.Identity
	format string
}

// names are what the image in the file stores. One that cannot be read stores
// none. No lock of the file is taken.
func (p *peekCache) names(ctx context.Context, d Driver, src *source, id file.Identity) Names {
	if d.Peek == nil {
		return Names{}
	}
	key := peekKey{id, src.format}
	p.mu.Lock()
	names, hit := p.known[key]
	p.mu.Unlock()
	if hit {
		return names
	}
	names, err := peek(ctx, d, src)
	if err != nil || id.Device || time.Since(id.Changed()) < settle { // it may change without showing it
		return names
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || len(p.known) >= mostPeeks {
		p.known = make(map[peekKey]Names)
	}
	p.known[key] = names
	return names
}

func peek(ctx context.Context, d Driver, src *source) (Names, error) {
	f, err := src.openWith(ctx, file.Options{Lock: file.LockNone})
	if err != nil {
		return Names{}, err
	}
	node := storage.NewNode(src.node, f, storage.NodeOptions{})
	names, err := d.Peek(ctx, node)
	return names, errors.Join(err, node.Close())
}
