package service_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// listAll follows the pages to the end and checks that none is too long.
func listAll(t *testing.T, svc *service.Service, limit int) []service.Entry {
	t.Helper()
	var all []service.Entry
	for cursor := ""; ; {
		page, err := svc.List(t.Context(), cursor, limit, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Entries) > limit {
			t.Fatalf("a page of %d", len(page.Entries))
		}
		all = append(all, page.Entries...)
		if page.Next == "" {
			return all
		}
		cursor = page.Next
	}
}

func names(entries []service.Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

func TestListPages(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 23 {
		name := fmt.Sprintf("disk-%d.raw", i)
		write(t, filepath.Join(dir, name), pattern(1, 100+i))
		want = append(want, name)
	}
	write(t, filepath.Join(dir, "README"), nil)
	write(t, filepath.Join(dir, "notes.txt"), nil)
	write(t, filepath.Join(dir, ".hidden.raw"), nil)
	write(t, filepath.Join(dir, "sub", "inner.raw"), nil)
	extra := filepath.Join(t.TempDir(), "elsewhere.img")
	write(t, extra, pattern(1, 7))
	slices.Sort(want)
	want = append(want, "extra")
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{
		{Name: "extra", Path: extra},
		{Name: "disk-3.raw", Path: extra}, // hides the one in the directory
	}})
	for _, limit := range []int{1, 7, 24, 100} {
		got := listAll(t, svc, limit)
		if diff := cmp.Diff(want, names(got)); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
		for _, e := range got {
			if e.Err != nil || e.Info == nil || e.Info.Name != e.Name || e.Format != "raw" {
				t.Errorf("%+v", e)
			} else if e.Name == "disk-3.raw" && e.Info.Size != 7 {
				t.Error("the image in the directory is not hidden")
			}
		}
	}
	if n := openFiles(t, dir); n != 0 {
		t.Errorf("listing left %d files open", n)
	}
}

func TestListIsSortedInLargeDirectories(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 1400 {
		name := fmt.Sprintf("%x.gated", i*7919%1409)
		write(t, filepath.Join(dir, name), nil)
		want = append(want, name)
	}
	slices.Sort(want)
	broken := errors.New("broken")
	svc := start(t, service.Options{Dir: dir, Formats: map[string]service.Driver{
		"gated": gatedDriver(func(context.Context) error { return broken }),
	}})
	time.Sleep(20 * time.Millisecond) // so that no file is young
	got := listAll(t, svc, 100)
	if diff := cmp.Diff(want, names(got)); diff != "" {
		t.Error(diff)
	}
}

func TestListWithProblems(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "good.raw"), pattern(1, 100))
	write(t, filepath.Join(dir, "empty.qcow2"), nil)
	write(t, filepath.Join(dir, "empty.raw"), nil)
	write(t, filepath.Join(dir, "garbage.qcow2"), pattern(1, 70000))
	for _, name := range []string{"fifo.raw", "fifo.qcow2"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "directory.raw"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	outside := filepath.Join(t.TempDir(), "outside.raw")
	write(t, outside, pattern(1, 10))
	for name, target := range map[string]string{"out.raw": outside, "in.raw": "good.raw", "dangling.raw": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{{Name: "lost", Path: filepath.Join(dir, "lost.raw")}}})
	got := map[string]error{}
	for _, e := range listAll(t, svc, 100) {
		if (e.Err == nil) != (e.Info != nil) {
			t.Errorf("%+v", e)
		}
		got[e.Name] = e.Err
	}
	for name, want := range map[string]error{
		"good.raw": nil, "in.raw": nil, "empty.raw": nil,
		"empty.qcow2": storage.ErrCorrupt, "garbage.qcow2": storage.ErrCorrupt,
		"fifo.raw": storage.ErrRefused, "fifo.qcow2": storage.ErrRefused, "directory.raw": storage.ErrRefused,
		"socket.raw": storage.ErrRefused, "out.raw": storage.ErrRefused, "lost": storage.ErrNotFound,
	} {
		err, listed := got[name]
		if !listed || !errors.Is(err, want) {
			t.Errorf("%s: listed is %v, with %v, want %v", name, listed, err, want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("listed besides: %v", got)
	}
}

func TestListCursors(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.raw", "b.raw", "c.raw"} {
		write(t, filepath.Join(dir, name), nil)
	}
	svc := start(t, service.Options{Dir: dir})
	for _, cursor := range []string{"!", "a.raw", "Li4", "AA", "YS5yYXc="} {
		if _, err := svc.List(t.Context(), cursor, 1, nil); !errors.Is(err, service.ErrCursor) {
			t.Errorf("%q: %v", cursor, err)
		}
	}
	page, err := svc.List(t.Context(), "", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	// What comes and goes between two pages disturbs nothing else.
	if err := os.Remove(filepath.Join(dir, "a.raw")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "aa.raw"), nil)
	page, err = svc.List(t.Context(), page.Next, 10, nil)
	if diff := cmp.Diff([]string{"aa.raw", "b.raw", "c.raw"}, names(page.Entries)); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	if _, err := svc.List(t.Context(), "", 0, nil); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("limit 0: %v", err)
	}
}
