package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// formatData stands for the format of an external data file in generations. It
// has no driver.
const formatData = "data"

// settle is how old the last change of a file must be before the file is
// opened: a later change then has a later time, even where the clock of the
// file system advances by the tick of a slow kernel timer.
const settle = 12 * time.Millisecond

// A base is what a layer of an open image, or its external data file, stands on: a
// file, or a graph.
type base struct {
	source
	shared   *sharedFile
	file     *sharedFile   // at the bottom: shared, or the graph's; nil: there is none
	nodes    []openNode    // from the node upwards
	identity file.Identity // of the file, when the image was opened
}

// node is what the bytes are reached through.
func (b *base) node() *storage.Node { return b.nodes[len(b.nodes)-1].Node }

// files are what is written to with the base.
func (b *base) files() []*sharedFile {
	files := []*sharedFile{b.shared}
	if b.graph != nil && b.file != nil && b.graph.through() {
		files = append(files, b.file)
	}
	return files
}

// uses reports whether the base has one of the files.
func (b *base) uses(files []*sharedFile) bool {
	return slices.Contains(files, b.shared) || b.file != nil && slices.Contains(files, b.file)
}

// account is where allocations in the base are booked.
func (b *base) account() fileKey {
	key := keyOf(b.identity)
	if b.graph != nil {
		if !b.graph.through() {
			key = fileKey{}
		}
		key.graph = b.spec.Name
	}
	return key
}

// addFirst opens the first of the sources that is there and may be opened.
func (c *chain) addFirst(ctx context.Context, found []source) (*base, error) {
	var first error
	for i := range found {
		b, err := c.addBase(ctx, &found[i])
		if err == nil {
			return b, nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrRefused) {
			break
		}
	}
	return nil, first
}

// addBase opens a source, which must not be in the chain yet.
func (c *chain) addBase(ctx context.Context, src *source) (*base, error) {
	below := len(c.bases) > 0
	f, err := c.s.files.get(ctx, src, below)
	if errors.Is(err, storage.ErrConflict) { // with an image that may be idle
		c.s.evictWriter(src)
		f, err = c.s.files.get(ctx, src, below)
	}
	if err != nil {
		return nil, err
	}
	b := &base{source: *src, shared: f, file: f}
	if f.graph != nil {
		b.file = f.graph.file
	}
	if err := c.fill(ctx, b); err != nil {
		return nil, errors.Join(err, c.s.files.put(f, below))
	}
	c.bases = append(c.bases, b)
	return b, nil
}

// fill looks at what was opened, and makes nodes of a file.
func (c *chain) fill(ctx context.Context, b *base) error {
	for _, other := range c.bases {
		if other.shared == b.shared {
			return fmt.Errorf("%w: the chain of files loops", storage.ErrBackingUnavailable)
		}
	}
	if b.file != nil {
		var err error
		if b.identity, err = settled(ctx, b.file.file); err != nil {
			return err
		}
	}
	if g := b.shared.graph; g != nil {
		b.nodes = g.nodes
		return nil
	}
	var f storage.File = b.file.file
	if c.s.opt.Formats[b.format].Unaligned { // so that what closes it does not
		f = borrowed{b.file.file}
	}
	bottom, err := c.s.bottom(b.source.node, f)
	if err != nil {
		return err
	}
	b.nodes, err = c.s.unaligned(ctx, b.format, []openNode{{bottom, kindFile}})
	return err
}

// close closes what the image has over a file for itself.
func (b *base) close() error {
	if b.shared.graph != nil || len(b.nodes) < 2 {
		return nil
	}
	return b.node().Close()
}

// addData opens the external data file of the image at src, which names it.
func (c *chain) addData(ctx context.Context, src *source, name string) (*base, error) {
	if src.spec != nil && src.spec.DataFile != "" {
		path := src.spec.DataFile
		name = filepath.Base(path)
		bound := source{node: name, format: formatData, path: path, host: path}
		return c.openData(ctx, name, []source{bound})
	}
	if src.host == "" {
		return nil, fmt.Errorf("data file %q: %w", name, unnamed(src))
	}
	found, err := c.s.follow(src, name, formatData)
	if err != nil {
		return nil, fmt.Errorf("data file %q: %w", name, unavailable(err))
	}
	return c.openData(ctx, name, found)
}

func (c *chain) openData(ctx context.Context, name string, found []source) (*base, error) {
	b, err := c.addFirst(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("data file %q: %w", name, unavailable(err))
	}
	return b, nil
}

// settled waits until the last change of the file lies in the past, and returns
// its identity as of then.
func settled(ctx context.Context, f *file.File) (file.Identity, error) {
	id, err := f.Identity()
	if err != nil {
		return id, err
	}
	age := time.Since(id.Changed())
	if age >= settle {
		return id, nil
	}
	timer := time.NewTimer(min(settle, settle-age)) // a time to come may be another clock's
	defer timer.Stop()
	select {
	case <-timer.C:
		return f.Identity()
	case <-ctx.Done():
		return id, ctx.Err()
	}
}

// unnamed refuses names stored in an image that does not lie in a file.
func unnamed(src *source) error {
	return fmt.Errorf("%w: names stored on %s lead nowhere: they must be bound to images", storage.ErrBackingUnavailable, src.node)
}

// unavailable is what a child that cannot be opened is to its parent: one that
// is missing is unavailable, because what the client asked for was found.
func unavailable(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("%w: no such file", storage.ErrBackingUnavailable)
	}
	return err
}
