package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// unpack makes the root file system of the image in a directory, and says what
// is there.
func unpack(t *testing.T) (root string) {
	t.Helper()
	root = filepath.Join(shared(t), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries(t, imageFor(t, runtime.GOARCH)) {
		path := filepath.Join(root, filepath.FromSlash(e.header.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if e.header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, e.text, e.header.FileInfo().Mode().Perm())
		}
		if err == nil && os.Getuid() == 0 {
			err = os.Lchown(path, e.header.Uid, e.header.Gid)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// shared is a temporary directory that other users get through.
func shared(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for up := dir; up != os.TempDir() && len(up) > 1; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// volume is a directory that the image's user may write to.
func volume(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(shared(t), "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// snapshot is every file below root, with its mode, date and size.
func snapshot(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, path, info.Mode(), info.Size(), info.ModTime().Format(time.RFC3339Nano))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// ask does a request, and returns the body of an answer that has the status.
func (c *container) ask(t *testing.T, status int, method, path string, body []byte, header ...string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d\n%s", method, path, resp.Status, status, text)
	}
	return text
}

// The image is used as a container runtime would: as its user, all read-only but
// the data directory.
func TestUse(t *testing.T) {
	root, data := unpack(t), volume(t)
	before := snapshot(t, root)
	c := start(t, root, data, "--listen", "127.0.0.1:0")

	const image = "/v1/images/disk.qcow2"
	c.ask(t, http.StatusCreated, http.MethodPost, "/v1/images",
		[]byte(`{"name":"disk.qcow2","format":"qcow2","size":67108864}`), "Content-Type", "application/json")
	text := bytes.Repeat([]byte("extentd "), 1<<14)
	c.ask(t, http.StatusNoContent, http.MethodPut, image+"/data?flush=true", text,
		"Content-Range", fmt.Sprintf("bytes 65536-%d/*", 65536+len(text)-1))
	if got := c.ask(t, http.StatusPartialContent, http.MethodGet, image+"/data", nil,
		"Range", fmt.Sprintf("bytes=65536-%d", 65536+len(text)-1)); !bytes.Equal(got, text) {
		t.Error("what is read is not what was written")
	}
	var extents struct {
		Extents []struct{ Start, Length int64 }
	}
	if err := json.Unmarshal(c.ask(t, http.StatusOK, http.MethodGet, image+"/extents", nil), &extents); err != nil || len(extents.Extents) == 0 {
		t.Errorf("the map: %v, %v", extents, err)
	}
	c.ask(t, http.StatusCreated, http.MethodPost, image+"/allocations",
		[]byte(`{"length":65536}`), "Content-Type", "application/json") // and state, then
	c.ask(t, http.StatusOK, http.MethodPost, image+"/check", []byte(`{}`), "Content-Type", "application/json")

	health := inside(root, data, "/extentd", "health", "--listen", strings.TrimPrefix(c.url, "http://"))
	if out, err := health.CombinedOutput(); err != nil {
		t.Errorf("extentd health: %v\n%s", err, out)
	}
	c.stop(t)

	if out, err := exec.Command("qemu-img", "check", filepath.Join(data, "disk.qcow2")).CombinedOutput(); err != nil &&
		!strings.Contains(string(out), "leaked") { // what is reserved
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
	if after := snapshot(t, root); after != before {
		t.Errorf("the root file system was\n%sand is\n%s", before, after)
	}
	if _, err := os.Stat(filepath.Join(data, ".extentd")); err != nil {
		t.Errorf("no state is kept: %v", err)
	}
}

// What TestUse shows would be worth nothing where everything can be written to.
func TestConfined(t *testing.T) {
	root, data := unpack(t), volume(t)
	for path, want := range map[string]string{
		"/disk.qcow2":        "read-only file system",
		"/etc/disk.qcow2":    "read-only file system",
		"/images/disk.qcow2": "",
	} {
		t.Run(path, func(t *testing.T) {
			out, err := inside(root, data, "/extentd", "create", "-f", "qcow2", path, "1M").CombinedOutput()
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(string(out), want)) {
				t.Errorf("extentd create: %v, want %q\n%s", err, want, out)
			}
		})
	}
	info, err := os.Stat(filepath.Join(data, "disk.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	want := uint32(owner)
	if os.Getuid() != 0 {
		want = uint32(os.Getuid())
	}
	if got := ownerOf(info); got != want {
		t.Errorf("a new file is of user %d, want %d", got, want)
	}
}
