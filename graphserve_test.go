package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writeConfig writes a configuration file, and two disks of 1 MiB beside it whose
// sectors say where they are, and goes elsewhere.
func writeConfig(t *testing.T, text string) (path string, disk []byte) {
	t.Helper()
	dir := t.TempDir()
	for i := range 2048 {
		disk = append(disk, fmt.Sprintf("%-512d", i)...)
	}
	for name, content := range map[string][]byte{"disk.raw": disk, "second.raw": disk, "x.yaml": []byte(text)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	return filepath.Join(dir, "x.yaml"), disk
}

// do sends a request, perhaps with a range or the place of its body, and returns
// the status and the body.
func (r *running) do(t *testing.T, method, path, where, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+"/v1/images/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case method == http.MethodPut:
		req.Header.Set("Content-Range", where)
	case where != "":
		req.Header.Set("Range", where)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(got)
}

// graph is the graph of an image's top layer, and what its filters count, by kind.
func (r *running) graph(t *testing.T, image string) (kinds, nodes []string, counters map[string]int64, minimum map[string]int64) {
	t.Helper()
	status, body := r.do(t, http.MethodGet, image, "", "")
	var info struct {
		Layers []struct{ Graph []nodeInfo }
	}
	if err := json.Unmarshal([]byte(body), &info); err != nil || status != http.StatusOK || len(info.Layers) == 0 {
		t.Fatalf("%s: status %d, %v: %s", image, status, err, body)
	}
	counters, minimum = make(map[string]int64), make(map[string]int64)
	for _, n := range info.Layers[0].Graph {
		kinds, nodes = append(kinds, n.Kind), append(nodes, n.Node)
		minimum[n.Kind] = n.Limits.Minimum
		for name, v := range n.Counters {
			counters[n.Kind+"."+name] = v
		}
	}
	return kinds, nodes, counters, minimum
}

func (r *running) expect(t *testing.T, method, path, where, body string, status int, want string) {
	t.Helper()
	if got, answer := r.do(t, method, path, where, body); got != status || !strings.HasPrefix(answer, want) {
		t.Errorf("%s %s %s: status %d, %.300q, want %d, %.100q", method, path, where, got, answer, status, want)
	}
}

// TestMisaligned: without blocksize a request that breaks the minimum is refused,
// and nothing below is asked; with it, it works, and costs whole blocks.
func TestMisaligned(t *testing.T) {
	path, disk := writeConfig(t, `
images:
  - name: strict
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{stats: {}}, {policy: {minimum: 4KiB}}, {offset: {offset: 64KiB, length: 64KiB}}]
  - name: lax
    format: raw
    node: {file: {path: second.raw}}
    filters: [{stats: {}}, {policy: {minimum: 4KiB}}, {offset: {offset: 64KiB, length: 64KiB}}, {blocksize: {}}]
`)
	r := startServe(t, "--debug", "--config", path)
	kinds, nodes, _, minimum := r.graph(t, "lax")
	if want := []string{"file", "stats", "policy", "offset", "blocksize"}; !slices.Equal(kinds, want) {
		t.Errorf("the graph is %v, want %v", kinds, want)
	}
	if want := "blocksize(offset(policy(stats(second.raw))))"; nodes[len(nodes)-1] != want || nodes[0] != "second.raw" {
		t.Errorf("the nodes are %v, want up to %s", nodes, want)
	}
	if diff := cmp.Diff(map[string]int64{"file": 1, "stats": 1, "policy": 4096, "offset": 4096, "blocksize": 1}, minimum); diff != "" {
		t.Error(diff)
	}

	asked := func(image, what string) int64 {
		_, _, counters, _ := r.graph(t, image)
		v, counts := counters["stats."+what]
		if !counts {
			t.Errorf("%s does not count %s: %v", image, what, counters)
		}
		return v
	}
	for _, where := range []string{"bytes=1-100", "bytes=0-100", "bytes=4095-8190", "bytes=512-1023"} {
		r.expect(t, http.MethodGet, "strict/data", where, "", http.StatusBadRequest, `{"type":"/problems/misaligned"`)
	}
	r.expect(t, http.MethodPut, "strict/data", "bytes 512-515/*", "abcd", http.StatusBadRequest, `{"type":"/problems/misaligned"`)
	for _, what := range []string{"read_operations", "write_operations", "extents_operations", "zero_operations"} {
		if n := asked("strict", what); n != 0 {
			t.Errorf("%s below: %d", what, n)
		}
	}
	window := disk[64<<10 : 128<<10]
	r.expect(t, http.MethodGet, "strict/data", "bytes=4096-8191", "", http.StatusPartialContent, string(window[4096:8192]))
	if n, bytes := asked("strict", "read_operations"), asked("strict", "read_bytes"); n != 1 || bytes != 4096 {
		t.Errorf("an aligned read takes %d reads of %d bytes", n, bytes)
	}

	r.expect(t, http.MethodGet, "lax/data", "bytes=5000-5099", "", http.StatusPartialContent, string(window[5000:5100]))
	if n, bytes := asked("lax", "read_operations"), asked("lax", "read_bytes"); n != 1 || bytes != 4096 {
		t.Errorf("a read of 100 bytes takes %d reads of %d bytes", n, bytes)
	}
	r.expect(t, http.MethodPut, "lax/data?flush=true", "bytes 5000-5003/*", "abcd", http.StatusNoContent, "")
	if n, bytes := asked("lax", "write_operations"), asked("lax", "write_bytes"); n != 1 || bytes != 4096 {
		t.Errorf("a write of 4 bytes takes %d writes of %d bytes", n, bytes)
	}
	copy(window[5000:], "abcd")
	r.expect(t, http.MethodGet, "lax/data", "", "", http.StatusOK, string(window))
	r.ended(t)
	if got, err := os.ReadFile(filepath.Join(filepath.Dir(path), "second.raw")); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("the file is not what was written: %v", err)
	}
}

// TestScratchImages: memory keeps what it is given for as long as the server
// runs, however idle it is, zeros keep nothing, and neither needs a directory.
func TestScratchImages(t *testing.T) {
	path, disk := writeConfig(t, `
idle: 20ms
images:
  - {name: "null", format: raw, node: {null: {size: 2EiB}}}
  - {name: memory, format: raw, node: {mem: {size: 1TiB, max: 64KiB}}}
  - {name: over, format: raw, node: {file: {path: disk.raw}}, filters: [{cow: {}}]}
`)
	r := startServe(t, "--debug", "--config", path)
	r.expect(t, http.MethodPut, "null/data", "bytes 4096-4099/*", "abcd", http.StatusNoContent, "")
	r.expect(t, http.MethodGet, "null/data", "bytes=4096-4099", "", http.StatusPartialContent, "\x00\x00\x00\x00")
	r.expect(t, http.MethodGet, "null/data", "bytes=-2", "", http.StatusPartialContent, "\x00\x00")
	r.expect(t, http.MethodPut, "memory/data", "bytes 1099511627770-1099511627773/*", "abcd", http.StatusNoContent, "")
	r.expect(t, http.MethodPut, "memory/data", "bytes 0-131071/*", strings.Repeat("x", 128<<10), http.StatusInsufficientStorage, `{"type":"/problems/no-space"`)
	r.expect(t, http.MethodPut, "over/data?flush=true", "bytes 1-4/*", "abcd", http.StatusNoContent, "")
	time.Sleep(200 * time.Millisecond) // several times as long as what is idle stays open
	r.expect(t, http.MethodGet, "memory/data", "bytes=1099511627769-1099511627774", "", http.StatusPartialContent, "\x00abcd\x00")
	r.expect(t, http.MethodGet, "over/data", "bytes=0-5", "", http.StatusPartialContent, "0abcd ")
	if status, body := r.get(t, r.url+"/v1/images"); status != http.StatusOK || strings.Count(body, `"generation"`) != 3 {
		t.Errorf("status %d: %s", status, body)
	}
	r.ended(t)
	if got, err := os.ReadFile(filepath.Join(filepath.Dir(path), "disk.raw")); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("what was written over it reached the file: %v", err)
	}
}

// TestAllTogether: the images of a directory, of flags and of the configuration.
func TestAllTogether(t *testing.T) {
	path, disk := writeConfig(t, `
dir: served
images:
  - {name: window.raw, node: {file: {path: disk.raw}}, filters: [{offset: {offset: 1KiB, length: 512}}, {readonly: {}}]}
  - {name: outside, format: raw, node: {file: {path: second.raw}}, filters: [{offset: {offset: 1MiB, length: 512}}]}
`)
	if err := os.Mkdir("served", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("served/own.raw", []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startServe(t, "--config", path, "--image", "flag=served/own.raw")
	r.expect(t, http.MethodGet, "own.raw/data", "", "", http.StatusOK, "own")
	r.expect(t, http.MethodGet, "flag/data", "", "", http.StatusOK, "own")
	r.expect(t, http.MethodGet, "window.raw/data", "", "", http.StatusOK, string(disk[1024:1536]))
	r.expect(t, http.MethodGet, "outside/data", "", "", http.StatusUnprocessableEntity, `{"type":"/problems/unsupported-feature"`)
	r.expect(t, http.MethodPut, "window.raw/data", "bytes 0-2/*", "abc", http.StatusForbidden, `{"type":"/problems/read-only"`)
	if status, body := r.get(t, r.url+"/v1/images"); status != http.StatusOK || strings.Count(body, `"generation"`) != 3 {
		t.Errorf("status %d: %s", status, body)
	}
	if _, errs, code := extentd(t, "serve", "--listen", "127.0.0.1:0", "--config", path, "--image", "window.raw=served/own.raw"); code != 1 || !strings.Contains(errs, "window.raw") {
		t.Errorf("a name that is given twice: exit code %d, %s", code, errs)
	}
}
