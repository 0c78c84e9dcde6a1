package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/extentd/extentd/storage"
)

// maxLinks is how many symbolic links are followed for one name.
const maxLinks = 40

// A Dir is a served directory. Its methods take names relative to it; neither
// "..", nor an absolute name, nor a link leads out of it. Safe for concurrent
// use.
type Dir struct {
	root  *os.Root
	paths [2]string // absolute: as given, and without links
}

// OpenDir opens the directory at a path of the host.
func OpenDir(path string) (*Dir, error) {
	d, err := openDir(path)
	if err != nil {
		return nil, fmt.Errorf("file: open directory %q: %w", filepath.Base(path), err)
	}
	return d, nil
}

func openDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, bare(err)
	}
	linkless, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, openError(err)
	}
	root, err := os.OpenRoot(linkless)
	if err != nil {
		return nil, bare(err)
	}
	return &Dir{root: root, paths: [2]string{abs, linkless}}, nil
}

// Open opens a file in the directory, as [Open] does. A name that leads out
// fails with [storage.ErrRefused].
func (d *Dir) Open(ctx context.Context, name string, opt Options) (*File, error) {
	f, err := open(ctx, d.root, name, opt)
	if target, ok := d.inside(name, err); ok {
		f, err = open(ctx, d.root, target, opt)
	}
	if err != nil {
		return nil, fmt.Errorf("file: open %q: %w", name, err)
	}
	return f, nil
}

// Identity is the identity of a file in the directory, which is not opened. It
// fails as Open does, but for locks.
func (d *Dir) Identity(name string) (Identity, error) {
	id, err := stat(d.root, name)
	if target, ok := d.inside(name, err); ok {
		id, err = stat(d.root, target)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("file: stat %q: %w", name, err)
	}
	return id, nil
}

// inside follows a name that was refused, in case it is a link to an absolute
// name in the directory: os.Root refuses all of those. What comes out is looked
// up in the root again, and nothing outside is touched.
func (d *Dir) inside(name string, err error) (string, bool) {
	if !errors.Is(err, storage.ErrRefused) {
		return "", false
	}
	for links := range maxLinks {
		target, err := d.root.Readlink(name)
		if err != nil {
			return name, links > 0
		}
		if filepath.IsAbs(target) {
			rel, ok := d.Rel(target)
			if !ok {
				return "", false
			}
			name = rel
		} else {
			name = filepath.Join(filepath.Dir(name), target)
		}
	}
	return "", false
}

// Rel is the name that an absolute path of the host has in the directory, and
// whether it has one. The path need not exist. Links in it are not followed,
// except that the directory itself may be named through some.
func (d *Dir) Rel(abs string) (string, bool) {
	if !filepath.IsAbs(abs) {
		return "", false
	}
	for _, path := range d.paths {
		rel, err := filepath.Rel(path, abs)
		if err == nil && rel != "." && filepath.IsLocal(rel) {
			return rel, true
		}
	}
	return "", false
}

// Names are the names of the regular files and block devices that lie directly
// in the directory, and of links to such inside it, sorted. Those that begin with
// a dot are left out: a [Draft] has such a name. want, where not nil, is asked
// first: what it does not want costs no system call.
func (d *Dir) Names(ctx context.Context, want func(name string) bool) ([]string, error) {
	names, err := d.names(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("file: list directory: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

func (d *Dir) names(ctx context.Context, want func(name string) bool) ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	var names []string
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") && (want == nil || want(e.Name())) && d.lists(e) {
				names = append(names, e.Name())
			}
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, bare(err)
		}
	}
}

func (d *Dir) lists(e os.DirEntry) bool {
	if e.Type()&os.ModeSymlink == 0 {
		return served(e.Type())
	}
	_, err := d.Identity(e.Name())
	return err == nil
}

// Close closes the directory. Files opened in it stay open.
func (d *Dir) Close() error { return bare(d.root.Close()) }
