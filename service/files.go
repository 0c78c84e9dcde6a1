package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
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

// An openFile is a file of an open image, and what it was when it was opened.
type openFile struct {
	source
	shared   *sharedFile
	file     *file.File // of shared
	node     *storage.Node
	identity file.Identity
}

// addFirst opens the first of the files that is there and may be opened.
func (c *chain) addFirst(ctx context.Context, found []source) (*openFile, error) {
	var first error
	for i := range found {
		f, err := c.addFile(ctx, &found[i])
		if err == nil {
			return f, nil
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

// addFile opens a file, which must not be in the chain yet.
func (c *chain) addFile(ctx context.Context, src *source) (*openFile, error) {
	below := len(c.files) > 0
	f, err := c.s.files.get(ctx, src, below)
	if errors.Is(err, storage.ErrConflict) { // with an image that may be idle
		c.s.evictWriter(src)
		f, err = c.s.files.get(ctx, src, below)
	}
	if err != nil {
		return nil, err
	}
	id, err := settled(ctx, f.file)
	if err != nil {
		return nil, errors.Join(err, c.s.files.put(f, below))
	}
	for i := range c.files {
		if c.files[i].shared == f {
			return nil, errors.Join(fmt.Errorf("%w: the chain of files loops", storage.ErrBackingUnavailable), c.s.files.put(f, below))
		}
	}
	node := storage.NewNode(src.node, f.file, storage.NodeOptions{Check: c.s.opt.Check})
	c.files = append(c.files, openFile{source: *src, shared: f, file: f.file, node: node, identity: id})
	return &c.files[len(c.files)-1], nil
}

// addData opens the external data file of the image at src, which names it.
func (c *chain) addData(ctx context.Context, src *source, name string) (*storage.Node, error) {
	if src.spec != nil && src.spec.DataFile != "" {
		path := src.spec.DataFile
		name = filepath.Base(path)
		bound := source{node: name, format: formatData, path: path, host: path}
		return c.openData(ctx, name, []source{bound})
	}
	found, err := c.s.follow(src, name, formatData)
	if err != nil {
		return nil, fmt.Errorf("data file %q: %w", name, unavailable(err))
	}
	return c.openData(ctx, name, found)
}

func (c *chain) openData(ctx context.Context, name string, found []source) (*storage.Node, error) {
	f, err := c.addFirst(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("data file %q: %w", name, unavailable(err))
	}
	return f.node, nil
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

// unavailable is what a child that cannot be opened is to its parent: one that
// is missing is unavailable, because what the client asked for was found.
func unavailable(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("%w: no such file", storage.ErrBackingUnavailable)
	}
	return err
}
