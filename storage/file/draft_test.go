package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// entries are the names in a directory, the hidden ones too.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// drafts are both ways of creating a file in a directory.
func drafts(t *testing.T, dir string) map[string]func(name string) (*file.Draft, error) {
	t.Helper()
	d := openDir(t, dir)
	return map[string]func(name string) (*file.Draft, error){
		"dir":  func(name string) (*file.Draft, error) { return d.Create(t.Context(), name) },
		"host": func(name string) (*file.Draft, error) { return file.Create(t.Context(), filepath.Join(dir, name)) },
	}
}

func TestDraft(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	for way, create := range drafts(t, dir) {
		for _, name := range []string{"image." + way, "sub/image." + way, strings.Repeat("n", 250) + "." + way} {
			t.Run(way+" "+name[:5], func(t *testing.T) {
				d, err := create(name)
				must(t, err)
				must(t, d.Discard()) // leaves nothing
				d, err = create(name)
				must(t, err)
				path := filepath.Join(dir, name)
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("before it is published: %v", err)
				}
				hidden, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*.tmp"))
				if err != nil || len(hidden) != 1 {
					t.Fatalf("drafts are %v, %v", hidden, err)
				}
				if diff := cmp.Diff([]int64{100, 101, 103, 201, 203}, locked(t, hidden[0])); diff != "" {
					t.Error(diff)
				}
				_, err = d.File().WriteAt(t.Context(), []byte("content"), 0)
				must(t, err)
				must(t, d.Publish(t.Context()))
				must(t, d.Discard())
				if diff := cmp.Diff([]int64{100, 101, 103, 201, 203}, locked(t, path)); diff != "" {
					t.Errorf("once published: %s", diff)
				}
				_, err = d.File().WriteAt(t.Context(), []byte("C"), 0)
				must(t, err)
				must(t, d.File().Close())
				if got, err := os.ReadFile(path); err != nil || string(got) != "Content" {
					t.Errorf("content is %q, %v", got, err)
				}
				info, err := os.Stat(path)
				must(t, err)
				umask := syscall.Umask(0)
				syscall.Umask(umask)
				if want := os.FileMode(0o644 &^ umask); info.Mode() != want || info.Sys().(*syscall.Stat_t).Nlink != 1 {
					t.Errorf("%v, want %v and one name", info.Mode(), want)
				}
				must(t, os.Remove(path))
			})
		}
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Errorf("left are %v", got)
	}
}

// TestDraftRefuses: what is there is never replaced, and a refusal leaves
// nothing behind.
func TestDraftRefuses(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "served")
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o700))
	write(t, filepath.Join(dir, "there"), []byte("there"))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	must(t, os.Symlink("..", filepath.Join(dir, "up")))
	before := entries(t, dir)
	for way, create := range drafts(t, dir) {
		for _, c := range []struct {
			name string
			want error
		}{
			{"there", storage.ErrExists},
			{"sub", storage.ErrExists},
			{"dangling", storage.ErrExists},
			{"no/file", storage.ErrNotFound},
			{"there/file", storage.ErrRefused},
			{strings.Repeat("n", 256), storage.ErrNotFound},
			{"../file", storage.ErrRefused},
			{"up/file", storage.ErrRefused},
			{"..", storage.ErrRefused},
			{".", storage.ErrRefused},
			{"sub/", storage.ErrRefused},
			{"", storage.ErrRefused},
		} {
			outside := strings.Contains(c.name, "up") || strings.HasPrefix(c.name, "..")
			if way == "host" && (outside || strings.HasSuffix(c.name, "/") || len(c.name) < 2) {
				continue // the operator may
			}
			d, err := create(c.name)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: create %q = %v, want %v", way, c.name, err, c.want)
			} else if strings.Contains(err.Error(), top) {
				t.Errorf("%v: a path of the host", err)
			}
			if err == nil {
				must(t, d.Discard())
			}
		}
	}
	if diff := cmp.Diff(before, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
	if left := entries(t, top); len(left) != 1 {
		t.Errorf("outside are %v", left)
	}
}

// TestDraftsRace: of several with one name one is published.
func TestDraftsRace(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	var drafts []*file.Draft // all of them before one is published: then there is a file of the name
	for range 8 {
		draft, err := d.Create(t.Context(), "image")
		must(t, err)
		drafts = append(drafts, draft)
	}
	var published atomic.Int64
	var wg sync.WaitGroup
	for k, draft := range drafts {
		wg.Go(func() {
			defer draft.File().Close()
			if _, err := draft.File().WriteAt(t.Context(), []byte{byte('0' + k)}, 0); err != nil {
				t.Error(err)
			}
			err := draft.Publish(t.Context())
			if err == nil {
				published.Add(1)
			} else if !errors.Is(err, storage.ErrExists) {
				t.Error(err)
			}
			if err := draft.Discard(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff([]string{"image"}, entries(t, dir)); diff != "" || published.Load() != 1 {
		t.Errorf("%d are published: %s", published.Load(), diff)
	}
}

// TestStaleDraft: what a crash leaves is not listed, and in nobody's way.
func TestStaleDraft(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	stale, err := d.Create(t.Context(), "image")
	must(t, err)
	must(t, stale.File().Close())
	names, err := d.Names(t.Context(), nil)
	if err != nil || len(names) != 0 {
		t.Errorf("listed are %v, %v", names, err)
	}
	if err := stale.Publish(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Publish of a closed file = %v", err)
	}
	again, err := d.Create(t.Context(), "image")
	must(t, err)
	must(t, again.Publish(t.Context()))
	must(t, again.File().Close())
	if err := again.Publish(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second Publish = %v", err)
	}
	must(t, stale.Discard())
	if diff := cmp.Diff([]string{"image"}, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestDraftCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	d, err := file.Create(ctx, filepath.Join(dir, "image"))
	must(t, err)
	cancel()
	if err := d.Publish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish = %v", err)
	}
	must(t, d.Discard())
	if _, err := file.Create(ctx, filepath.Join(dir, "image")); !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v", err)
	}
	if left := entries(t, dir); left != nil {
		t.Errorf("left are %v", left)
	}
}

func TestDraftNotAllowed(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o555))
	d := openDir(t, dir)
	unprivileged(t, func() {
		if _, err := d.Create(t.Context(), "image"); !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("Create = %v, want %v", err, storage.ErrReadOnly)
		}
	})
	must(t, os.Chmod(dir, 0o755))
}

func TestRemove(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "served")
	must(t, os.MkdirAll(filepath.Join(dir, "empty"), 0o700))
	write(t, filepath.Join(top, "outside"), []byte("outside"))
	write(t, filepath.Join(dir, "file"), []byte("inside"))
	must(t, os.Symlink("file", filepath.Join(dir, "link")))
	must(t, os.Symlink("../outside", filepath.Join(dir, "out")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	d := openDir(t, dir)
	f, err := d.Open(t.Context(), "file", file.Options{})
	must(t, err)
	defer f.Close()
	for _, c := range []struct {
		name string
		want error
	}{
		{"link", nil},
		{"out", nil},
		{"file", nil},
		{"file", storage.ErrNotFound},
		{"empty", storage.ErrRefused},
		{"fifo", storage.ErrRefused},
		{"../outside", storage.ErrRefused},
		{"..", storage.ErrRefused},
		{"", storage.ErrRefused},
	} {
		if err := d.Remove(t.Context(), c.name); !errors.Is(err, c.want) {
			t.Errorf("Remove(%q) = %v, want %v", c.name, err, c.want)
		}
		if c.name == "link" && len(entries(t, dir)) != 4 {
			t.Error("more than the link is removed")
		}
	}
	if diff := cmp.Diff([]string{"empty", "fifo"}, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"outside", "served"}, entries(t, top)); diff != "" {
		t.Error(diff)
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 6), 0); err != nil {
		t.Errorf("read of what is removed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Remove(ctx, "fifo"); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove = %v", err)
	}
}
