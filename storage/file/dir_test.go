package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

func openDir(t *testing.T, path string) *file.Dir {
	t.Helper()
	d, err := file.OpenDir(path)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// TestConfinement: every way out is refused, and every way that stays inside is
// followed.
func TestConfinement(t *testing.T) {
	top := t.TempDir()
	at := func(name string) string { return filepath.Join(top, name) }
	must(t, os.MkdirAll(at("served/sub"), 0o700))
	must(t, os.MkdirAll(at("served.secret"), 0o700)) // begins as the directory does
	write(t, at("secret"), []byte("secret"))
	write(t, at("served.secret/file"), []byte("secret"))
	write(t, at("served/inside"), []byte("inside"))
	write(t, at("served/sub/inside"), []byte("inside"))
	must(t, os.Symlink(at("served"), at("alias")))
	for name, target := range map[string]string{
		"out relative":         "../secret",
		"out absolute":         at("secret"),
		"out neighbour":        at("served.secret/file"),
		"out directory":        "..",
		"out chain":            "out relative",
		"out by in":            "sub/../../secret",
		"out absolute dots":    at("served/../secret"),
		"sub/out":              "../../secret",
		"in relative":          "sub/inside",
		"sub/in up":            "../inside",
		"in directory":         "sub",
		"in absolute":          at("served/sub/inside"),
		"in chain":             "in absolute",
		"in absolute to chain": at("served/in chain"),
		"in absolute alias":    at("alias/inside"),
		"in absolute then out": at("served/out relative"),
		"loop a":               at("served/loop b"),
		"loop b":               at("served/loop a"),
	} {
		must(t, os.Symlink(target, at("served/"+name)))
	}
	for _, dir := range []string{"served", "alias", "served/sub/.."} {
		t.Run(dir, func(t *testing.T) {
			d := openDir(t, at(dir))
			for _, c := range []struct {
				name string
				want error
			}{
				{"inside", nil},
				{"./inside", nil},
				{"sub/inside", nil},
				{"sub/../inside", nil},
				{"in relative", nil},
				{"sub/in up", nil},
				{"in directory/inside", nil},
				{"in absolute", nil},
				{"in chain", nil},
				{"in absolute to chain", nil},
				{"out relative", storage.ErrRefused},
				{"out absolute", storage.ErrRefused},
				{"out neighbour", storage.ErrRefused},
				{"out directory/secret", storage.ErrRefused},
				{"out chain", storage.ErrRefused},
				{"out by in", storage.ErrRefused},
				{"out absolute dots", storage.ErrRefused},
				{"sub/out", storage.ErrRefused},
				{"in absolute then out", storage.ErrRefused},
				{"loop a", storage.ErrRefused},
				{"../secret", storage.ErrRefused},
				{"../served/inside", storage.ErrRefused},
				{"sub/../../secret", storage.ErrRefused},
				{at("served/inside"), storage.ErrRefused},
				{"/etc/passwd", storage.ErrRefused},
			} {
				t.Run(c.name, func(t *testing.T) {
					f, err := d.Open(t.Context(), c.name, file.Options{})
					if err == nil {
						defer f.Close()
						p := make([]byte, 6)
						if _, err := f.ReadAt(t.Context(), p, 0); err != nil || string(p) != "inside" {
							t.Errorf("content is %q, %v", p, err)
						}
					}
					if !errors.Is(err, c.want) {
						t.Errorf("Open = %v, want %v", err, c.want)
					}
					if _, err := d.Identity(c.name); !errors.Is(err, c.want) {
						t.Errorf("Identity = %v, want %v", err, c.want)
					}
				})
			}
		})
	}
}

func TestRel(t *testing.T) {
	top := t.TempDir()
	must(t, os.Mkdir(filepath.Join(top, "served"), 0o700))
	must(t, os.Symlink("served", filepath.Join(top, "alias")))
	d := openDir(t, filepath.Join(top, "alias"))
	for _, c := range []struct {
		name string
		want string
		ok   bool
	}{
		{"served/a", "a", true},
		{"alias/a", "a", true},
		{"alias/sub/a", "sub/a", true},
		{"alias/sub/../a", "a", true},
		{"alias/..a", "..a", true},
		{"alias", "", false},
		{"alias/", "", false},
		{"alias/..", "", false},
		{"alias/../a", "", false},
		{"aliased", "", false},
		{"a", "", false},
		{"", "", false},
	} {
		if got, ok := d.Rel(top + "/" + c.name); got != c.want || ok != c.ok {
			t.Errorf("Rel(%s) = %q, %v, want %q, %v", c.name, got, ok, c.want, c.ok)
		}
	}
	for _, name := range []string{"", "a", "./a", "alias/a"} {
		if got, ok := d.Rel(name); ok {
			t.Errorf("Rel(%q) = %q: a relative name has no place in the directory", name, got)
		}
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	var want []string
	for i := range 600 { // more than are read at a time
		name := fmt.Sprintf("%03d.raw", (i*7)%600)
		write(t, at(name), nil)
	}
	for i := range 600 {
		want = append(want, fmt.Sprintf("%03d.raw", i))
	}
	write(t, at("no.txt"), nil)
	must(t, os.Mkdir(at("x-directory.raw"), 0o700))
	must(t, syscall.Mkfifo(at("x-fifo.raw"), 0o600))
	for name, target := range map[string]string{
		"y-link.raw": "000.raw", "y-absolute.raw": at("001.raw"),
		"x-dangling.raw": "nowhere", "x-out.raw": "/etc/passwd", "x-null.raw": "/dev/null",
		"x-to-fifo.raw": "x-fifo.raw", "x-to-directory.raw": "x-directory.raw",
	} {
		must(t, os.Symlink(target, at(name)))
	}
	want = append(want, "y-absolute.raw", "y-link.raw")
	d := openDir(t, dir)

	got, err := d.Names(t.Context(), func(name string) bool { return strings.HasSuffix(name, ".raw") })
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if all, err := d.Names(t.Context(), nil); err != nil || len(all) != len(want)+1 {
		t.Errorf("%d names, %v", len(all), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Names(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Names = %v, want %v", err, context.Canceled)
	}
}

func TestOpenDir(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), nil)
	_, err := file.OpenDir(filepath.Join(dir, "missing"))
	check(t, "OpenDir", err, storage.ErrNotFound, dir)
	if _, err := file.OpenDir(filepath.Join(dir, "file")); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("OpenDir of a file = %v", err)
	}
	d, err := file.OpenDir(dir)
	must(t, err)
	f, err := d.Open(t.Context(), "file", file.Options{})
	must(t, err)
	must(t, d.Close())
	if _, err := f.Size(t.Context()); err != nil {
		t.Errorf("closing the directory closed its file: %v", err)
	}
	must(t, f.Close())
	if _, err := d.Open(t.Context(), "file", file.Options{}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Open = %v, want %v", err, storage.ErrClosed)
	}
	if _, err := d.Names(t.Context(), nil); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Names = %v, want %v", err, storage.ErrClosed)
	}
}
