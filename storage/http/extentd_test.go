package http_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
	"github.com/extentd/extentd/storage/storagetest"
)

// An extentd serves the images of a directory.
type extentd struct {
	dir  string
	url  string
	maps atomic.Int64 // requests for maps
}

func startExtentd(t *testing.T) *extentd {
	t.Helper()
	e := &extentd{dir: t.TempDir()}
	db := state.New(filepath.Join(e.dir, ".extentd"))
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	svc, err := service.New(service.Options{
		Dir: e.dir, State: db, Recheck: -1,
		Formats: map[string]service.Driver{"raw": service.RawDriver()},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := api.New(svc, api.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	s := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if strings.HasSuffix(r.URL.Path, "/extents") {
			e.maps.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	e.url = s.URL
	t.Cleanup(func() {
		s.Close()
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// write writes a raw image with holes, and returns its URL.
func (e *extentd) write(t *testing.T, name string, content []byte, holes ...storagetest.Range) string {
	t.Helper()
	f, err := os.Create(filepath.Join(e.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, h := range append(holes, storagetest.Range{Offset: int64(len(content))}) {
		if _, err := f.WriteAt(content[at:h.Offset], at); err != nil {
			t.Fatal(err)
		}
		at = h.Offset + h.Length
	}
	return e.url + "/v1/images/" + name + "/data"
}

func (e *extentd) put(t *testing.T, url string, p []byte, off int) {
	t.Helper()
	r, err := nethttp.NewRequestWithContext(t.Context(), nethttp.MethodPut, url, bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+len(p)-1))
	resp, err := nethttp.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer nethttp.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if resp.StatusCode != nethttp.StatusNoContent {
		t.Fatal(resp.Status)
	}
}

func TestConformanceOfExtentd(t *testing.T) {
	e := startExtentd(t)
	images := 0
	storagetest.TestFile(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
		images++
		return openFile(t, local(e.write(t, fmt.Sprintf("disk%d.raw", images), content, holes...)))
	})
	if e.maps.Load() == 0 {
		t.Error("nobody asked for a map")
	}
}

// The map is that of the file there, page after page.
func TestMapOfExtentd(t *testing.T) {
	const block, blocks = 64 << 10, 2600
	content := make([]byte, block*blocks)
	var holes []storagetest.Range
	var want []string
	for i := range int64(blocks) {
		if i%2 == 0 {
			holes = append(holes, storagetest.Range{Offset: i * block, Length: block})
			want = append(want, fmt.Sprintf("%d+%d: - Z - O", i*block, block))
			continue
		}
		copy(content[i*block:], bytes.Repeat([]byte{byte(i) | 1}, block))
		want = append(want, fmt.Sprintf("%d+%d: - - A O", i*block, block))
	}
	e := startExtentd(t)
	f := openFile(t, local(e.write(t, "disk.raw", content, holes...)))
	if diff := cmp.Diff(want, mapOf(t, f, 0, int64(len(content)))); diff != "" {
		t.Errorf("the map differs (does the file system of %s know holes?): %s", e.dir, diff[:min(len(diff), 2000)])
	}
	if n := e.maps.Load(); n != 3 {
		t.Errorf("%d requests for 2600 extents, 1000 at a time", n)
	}
}

// What is written over there is another version, for reads and for the map.
func TestExtentdIsWrittenTo(t *testing.T) {
	e := startExtentd(t)
	content := make([]byte, 1<<20)
	url := e.write(t, "disk.raw", content, storagetest.Range{Offset: 0, Length: 1 << 20})
	f := openFile(t, local(url))
	if diff := cmp.Diff([]string{"0+1048576: - Z - O"}, mapOf(t, f, 0, 1<<20)); diff != "" {
		t.Error(diff)
	}
	e.put(t, url, []byte("data"), 70_000)
	f.Forget()
	var l storage.ExtentList
	if err := f.Extents(t.Context(), 0, 1<<20, &l); !errors.Is(err, storage.ErrChanged) || l.Len() > 0 {
		t.Errorf("%v, %d extents", err, l.Len())
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, storage.ErrChanged) || n != 0 {
		t.Errorf("%v, %d bytes", err, n)
	}
	again := openFile(t, local(url))
	if again.Validator() == f.Validator() {
		t.Errorf("both have the validator %q", f.Validator())
	}
	p := make([]byte, 4)
	if _, err := again.ReadAt(t.Context(), p, 70_000); err != nil || string(p) != "data" {
		t.Errorf("%q, %v", p, err)
	}
	if text := strings.Join(mapOf(t, again, 0, 1<<20), "\n"); !strings.Contains(text, "- - A O") {
		t.Error(text)
	}
}

func TestExtentdHasNoSuchImage(t *testing.T) {
	e := startExtentd(t)
	if _, err := http.Open(t.Context(), local(e.url+"/v1/images/no.raw/data")); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}
