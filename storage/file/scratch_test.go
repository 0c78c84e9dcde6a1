package file_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

const magic = "extentd scratch\n"

// expectVoid: a scratch file is its magic, and zeros.
func expectVoid(t *testing.T, f *file.File) {
	t.Helper()
	got := make([]byte, 2*file.ScratchHeader)
	n, err := f.ReadAt(t.Context(), got, 0)
	want := append([]byte(magic), make([]byte, file.ScratchHeader-len(magic))...)
	if err != io.EOF || !bytes.Equal(got[:n], want) { //nolint:errorlint // must be bare
		t.Errorf("a scratch file begins with %d bytes, %q..., %v", n, got[:32], err)
	}
}

// use writes to a scratch file as its user does.
func use(t *testing.T, f *file.File) {
	t.Helper()
	p := bytes.Repeat([]byte{7}, 100)
	_, err := f.WriteAt(t.Context(), p, 64<<10)
	must(t, err)
	got := make([]byte, 100)
	if _, err := f.ReadAt(t.Context(), got, 64<<10); err != nil || !bytes.Equal(got, p) {
		t.Errorf("what was written is not read: %v", err)
	}
}

func TestScratch(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "overlay")
			for round := range 2 {
				f, err := file.OpenScratch(t.Context(), path, magic)
				must(t, err)
				info, err := os.Stat(path)
				must(t, err)
				if round == 0 && info.Mode() != 0o600 {
					t.Errorf("permissions are %v", info.Mode())
				}
				expectVoid(t, f)
				use(t, f)
				_, err = file.OpenScratch(t.Context(), path, magic)
				check(t, "the second OpenScratch", err, storage.ErrBusy, dir)
				_, err = file.Open(t.Context(), path, file.Options{})
				check(t, "Open", err, storage.ErrBusy, dir)
				must(t, f.Close())
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("after Close there is still something of the name: %v", err)
				}
				write(t, path, append([]byte(magic), 5, 5, 5)) // as a crash leaves it
			}
		})
	}
}

// TestScratchAfterCrash: what may be left of one serves, and is emptied.
func TestScratchAfterCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlay")
	for _, left := range []string{"", magic, magic + strings.Repeat("x", 100), magic + strings.Repeat("y", 1<<20)} {
		write(t, path, []byte(left))
		f, err := file.OpenScratch(t.Context(), path, magic)
		must(t, err)
		expectVoid(t, f)
		must(t, f.Close())
	}
}

// TestScratchSparesOthers: a typo destroys nobody's file.
func TestScratchSparesOthers(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{
		"disk.raw": strings.Repeat("disk", 5000), "zeros.raw": string(make([]byte, 1<<20)), "short": magic[:5], "one": "x",
		"other kind": "extentd scratch.", "late": " " + magic, "linked": magic,
	} {
		write(t, at(name), []byte(content))
	}
	must(t, os.Symlink("linked", at("link")))
	must(t, os.Symlink("nowhere", at("dangling")))
	must(t, os.Mkdir(at("directory"), 0o700))
	must(t, syscall.Mkfifo(at("fifo"), 0o600))
	before := tree(t, dir)
	for name, want := range map[string]error{
		"disk.raw": storage.ErrExists, "zeros.raw": storage.ErrExists, "short": storage.ErrExists, "one": storage.ErrExists,
		"other kind": storage.ErrExists, "late": storage.ErrExists,
		"link": storage.ErrRefused, "dangling": storage.ErrRefused, "directory": storage.ErrRefused, "fifo": storage.ErrRefused,
		"missing/overlay": storage.ErrNotFound, "directory/": storage.ErrRefused, "..": storage.ErrRefused,
	} {
		_, err := file.OpenScratch(t.Context(), dir+"/"+name, magic)
		check(t, name, err, want, dir)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("there was\n%s\nand now is\n%s", before, after)
	}
}

// tree is what lies in a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Name() + " " + e.Type().String())
		if e.Type().IsRegular() {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			must(t, err)
			b.WriteString(" " + string(content))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestScratchName: only the name that leads to the file is removed.
func TestScratchName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlay")
	f, err := file.OpenScratch(t.Context(), path, magic)
	must(t, err)
	must(t, os.Remove(path))
	write(t, path, []byte("somebody else's"))
	must(t, f.Close())
	if got, err := os.ReadFile(path); err != nil || string(got) != "somebody else's" {
		t.Errorf("another file of that name is %q, %v", got, err)
	}
	must(t, os.Remove(path))

	f, err = file.OpenScratch(t.Context(), path, magic)
	must(t, err)
	must(t, os.Remove(path))
	must(t, f.Close())
	if err := f.Close(); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second Close = %v, want %v", err, storage.ErrClosed)
	}
}

// TestScratchRace: however they meet, each has a file that is its own.
func TestScratchRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlay")
	done := make(chan error)
	const workers = 4
	for k := range workers {
		go func() {
			done <- func() error {
				for range 200 {
					f, err := file.OpenScratch(t.Context(), path, magic)
					if errors.Is(err, storage.ErrBusy) {
						continue
					}
					if err != nil {
						return err
					}
					p, got := bytes.Repeat([]byte{byte(k)}, 16), make([]byte, 16)
					_, err = f.WriteAt(t.Context(), p, 64<<10)
					if _, e := f.ReadAt(t.Context(), got, 64<<10); err != nil || e != nil || !bytes.Equal(got, p) {
						return errors.Join(errors.New("another writes to the file"), err, e)
					}
					if err := f.Close(); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name is left behind: %v", err)
	}
}

func TestTempScratch(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			for _, open := range []func() (*file.File, error){
				func() (*file.File, error) { return file.TempScratch(t.Context(), dir, magic) },
				func() (*file.File, error) { return file.NamedTempScratch(t.Context(), dir, magic) },
			} {
				f, err := open()
				must(t, err)
				expectVoid(t, f)
				use(t, f)
				must(t, f.Flush(t.Context()))
				if left := tree(t, dir); left != "" {
					t.Errorf("it has a name: %s", left)
				}
				must(t, f.Close())
			}
		})
	}
	f, err := file.TempScratch(t.Context(), "", magic)
	must(t, err)
	must(t, f.Close())
}

func TestScratchArguments(t *testing.T) {
	dir := t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name  string
		ctx   context.Context
		magic string
		want  error
	}{
		{"no magic", t.Context(), "", storage.ErrInvalid},
		{"long magic", t.Context(), strings.Repeat("x", 65), storage.ErrInvalid},
		{"cancelled", cancelled, magic, context.Canceled},
	} {
		_, err := file.OpenScratch(c.ctx, filepath.Join(dir, "overlay"), c.magic)
		check(t, c.name, err, c.want, dir)
		_, err = file.TempScratch(c.ctx, dir, c.magic)
		check(t, c.name, err, c.want, dir)
	}
	_, err := file.TempScratch(t.Context(), filepath.Join(dir, "missing"), magic)
	check(t, "no directory", err, storage.ErrNotFound, dir)
	if left := tree(t, dir); left != "" {
		t.Errorf("something is left behind: %s", left)
	}
}
