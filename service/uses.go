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
	if err := s.checkUnused(ctx, files, files[0].key.file); err != nil {
		return err
	}
	if s.files.claim(h.image, files) != nil {
		s.evictUsers(h.image, files)
		if f := s.files.claim(h.image, files); f != nil {
			return fmt.Errorf("%w: %s is in use as another image or a part of one", storage.ErrConflict, h.nodeOf(f))
		}
	}
	if err := s.checkUnused(ctx, files, files[0].key.file); err != nil {
		s.files.release(h.image, files)
		return err
	}
	return nil
}

// nodeOf is what the image calls a file.
func (i *image) nodeOf(f *sharedFile) string {
	for _, b := range i.chain.bases {
		if b.uses([]*sharedFile{f}) {
			return b.source.node
		}
	}
	return "its file"
}

// evictUsers closes the images that have one of the files open, in whichever
// way, and that nobody uses.
func (s *Service) evictUsers(but *image, files []*sharedFile) {
	is := func(key fileKey) bool {
		return slices.ContainsFunc(files, func(f *sharedFile) bool { return f.key.file == key })
	}
	s.evictWhere(func(i *image) bool {
		return i != but && slices.ContainsFunc(i.chain.bases, func(b *base) bool {
			return is(b.shared.key.file) || b.file != nil && is(b.file.key.file)
		})
	})
}

// evictWriter closes the image that writes to what the source leads to, if nobody
// uses it.
func (s *Service) evictWriter(src *source) {
	var keys []fileKey
	if src.graph != nil {
		keys = append(keys, fileKey{graph: src.spec.Name})
	}
	if src.path != "" {
		if id, err := src.locate(); err == nil {
			keys = append(keys, keyOf(id))
		}
	}
	s.evictWhere(func(i *image) bool {
		return i.writing.Load() && slices.ContainsFunc(i.written(), func(f *sharedFile) bool { return slices.Contains(keys, f.key.file) })
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

// checkUnused looks into all images that are served, but those in the file, or on
// the graph, self, for one that has one of the files as backing or data file. It fails with
// storage.ErrConflict if there is one. An image that cannot be read needs
// nothing.
func (s *Service) checkUnused(ctx context.Context, files []*sharedFile, self fileKey) error {
	l := look{s: s, self: self, files: make(map[fileKey]bool, len(files))}
	for _, f := range files {
		l.files[f.key.file] = true
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
	self := src.key(id).file == l.self
	if err != nil || self && src.spec == nil {
		return nil, nil //nolint:nilerr // what is not there needs nothing
	}
	names := l.s.namesIn(ctx, driver, src)
	data, backing := l.s.children(src, names)
	if _, used := l.first(data); used && !self {
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
		src := &found[i]
		if src.graph != nil && l.files[fileKey{graph: src.spec.Name}] {
			return src, true
		}
		if src.path == "" {
			return src, false
		}
		if id, err := src.locate(); err == nil {
			return src, l.files[keyOf(id)]
		}
	}
	return nil, false
}

// checkGraphs looks for an image that stands on the file with a graph.
func (s *Service) checkGraphs(key fileKey) error {
	for name, spec := range s.images {
		if spec.Graph == nil || spec.Path == "" {
			continue
		}
		if id, err := file.Stat(spec.Path); err == nil && keyOf(id) == key {
			return fmt.Errorf("%w: image %q stands on its file", storage.ErrConflict, name)
		}
	}
	return nil
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
	id            file.Identity
	format, graph string
}

// namesIn are what the image at src stores. One that cannot be read stores none,
// and names that lead nowhere are none. No lock of the file is taken.
func (s *Service) namesIn(ctx context.Context, d Driver, src *source) Names {
	if d.Peek == nil || src.path == "" {
		return Names{}
	}
	id, err := src.locate()
	if err != nil {
		return Names{}
	}
	key := peekKey{id: id, format: src.format}
	if src.graph != nil {
		key.graph = src.spec.Name
	}
	p := &s.peeks
	p.mu.Lock()
	names, hit := p.known[key]
	p.mu.Unlock()
	if hit {
		return names
	}
	names, err = s.peek(ctx, d, src)
	changes := id.Device || src.graph != nil && src.graph.holds()
	if err != nil || changes || time.Since(id.Changed()) < settle { // it may change without showing it
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

func (s *Service) peek(ctx context.Context, d Driver, src *source) (Names, error) {
	if src.graph != nil {
		if g, done := s.files.peek(src.spec.Name); g != nil {
			defer done()
			return d.Peek(ctx, g.top())
		}
	}
	f, err := src.openWith(ctx, file.Options{Lock: file.LockNone})
	if err != nil {
		return Names{}, err
	}
	nodes := []openNode{{storage.NewNode(src.node, f, storage.NodeOptions{}), kindFile}}
	if src.graph != nil {
		nodes, err = src.graph.glance(ctx, nodes)
	}
	if err == nil {
		nodes, err = s.unaligned(ctx, src.format, nodes)
	}
	top := nodes[len(nodes)-1]
	if err != nil {
		return Names{}, errors.Join(err, top.Close())
	}
	names, err := d.Peek(ctx, top.Node)
	return names, errors.Join(err, top.Close())
}

// glance puts on top of nodes what of the graph changes bytes while nothing has
// been written to it: not what keeps something or stands in for something.
func (g *Graph) glance(ctx context.Context, nodes []openNode) ([]openNode, error) {
	for i := range g.Filters {
		f := &g.Filters[i]
		if f.Keep || f.Overlay {
			continue
		}
		next := nodes[len(nodes)-1].Node
		opened, err := f.Open(ctx, next)
		if err != nil {
			return nodes, missing(filterName(f.Kind, next), err)
		}
		nodes = append(nodes, newFilterNode(f.Kind, opened, next, false))
	}
	return nodes, nil
}
