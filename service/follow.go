package service

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// Follow says which backing and data-file names that images store are followed.
type Follow int

const (
	// FollowRoot follows names of files inside the served directories and the
	// backing directories.
	FollowRoot Follow = iota
	// FollowDeny follows none. Explicit bindings still hold.
	FollowDeny
)

// ParseFollow reads "root" or "deny".
func ParseFollow(text string) (Follow, error) {
	switch text {
	case "root":
		return FollowRoot, nil
	case "deny":
		return FollowDeny, nil
	}
	return FollowRoot, fmt.Errorf("follow-backing is %q, must be root or deny", text)
}

// A root is a directory out of which no name leads.
type root struct {
	path string // absolute
	dir  *file.Dir
}

func (s *Service) openRoots() error {
	var dirs []string
	if s.opt.Dir != "" {
		dirs = append(dirs, s.opt.Dir)
	}
	for _, path := range append(dirs, s.opt.BackingDirs...) {
		abs, err := filepath.Abs(path)
		if err != nil {
			return fmt.Errorf("service: directory %s: %w", path, err)
		}
		dir, err := file.OpenDir(abs)
		if err != nil {
			return fmt.Errorf("service: directory %s: %w", path, err)
		}
		s.roots = append(s.roots, root{path: abs, dir: dir})
	}
	return nil
}

func (s *Service) closeRoots() error {
	var errs []error
	for _, r := range s.roots {
		errs = append(errs, r.dir.Close())
	}
	return errors.Join(errs...)
}

// follow finds the files that a name stored in an image may mean: one for each
// directory that the name leads into. The name is untrusted text.
func (s *Service) follow(from *source, name, format string) ([]source, error) {
	switch {
	case s.opt.FollowBacking == FollowDeny:
		return nil, fmt.Errorf("%w: names stored in images are not followed", storage.ErrRefused)
	case name == "" || strings.ContainsRune(name, 0):
		return nil, fmt.Errorf("%w: the name is no file's", storage.ErrRefused)
	case hasProtocol(name):
		return nil, fmt.Errorf("%w: the name has a protocol prefix", storage.ErrRefused)
	case strings.HasSuffix(name, "/"):
		return nil, fmt.Errorf("%w: the name is a directory's", storage.ErrRefused)
	}
	host := filepath.Clean(name)
	if !filepath.IsAbs(host) {
		host = filepath.Join(filepath.Dir(from.host), host)
	}
	var found []source
	for i := range s.roots {
		r := &s.roots[i]
		if rel, inside := r.dir.Rel(host); inside {
			found = append(found, source{node: filepath.ToSlash(rel), format: format, root: r, path: rel, host: host})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: the name leads out of the served directories", storage.ErrRefused)
	}
	return found, nil
}

// hasProtocol reports whether QEMU would take the name for something else than
// a path: a colon comes before the first slash.
func hasProtocol(name string) bool {
	i := strings.IndexAny(name, ":/")
	return i >= 0 && name[i] == ':'
}
