package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRemote: a file that a server with a certificate of its own gives to who
// knows a secret, as it is, cached, and not at all.
func TestRemote(t *testing.T) {
	const secret = "Bearer open-sesame"
	content := bytes.Repeat([]byte("extentd."), 32<<10)
	far := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != secret {
			http.Error(w, "who are you?", http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "f.raw", time.Time{}, bytes.NewReader(content))
	}))
	far.Config.ErrorLog = log.New(io.Discard, "", 0) // of a client that does not trust it
	far.StartTLS()
	defer far.Close()
	at := func(keys string) string {
		return fmt.Sprintf(`{http: {url: "%s/d/f.raw?token=hidden", %s}}`, far.URL, keys)
	}
	path, _ := writeConfig(t, `
images:
  - name: cached
    format: raw
    node: `+at(`allow_private: true, ca: ca.pem, headers: {authorization: "`+secret+`"}`)+`
    filters: [{stats: {}}, {cache: {path: f.cache, size: 1MiB, block_size: 128KiB}}, {retry: {}}]
  - {name: stranger, format: raw, node: `+at(`allow_private: true, ca: ca.pem`)+`}
  - {name: private, format: raw, node: `+at(`ca: ca.pem`)+`}
  - {name: no-ca, format: raw, node: `+at(`allow_private: true, ca: none.pem`)+`}
  - {name: empty-ca, format: raw, node: `+at(`allow_private: true, ca: x.yaml`)+`}
  - {name: unknown-ca, format: raw, node: `+at(`allow_private: true`)+`}
  - {name: second, format: raw, node: {null: {size: 1MiB}}, filters: [{cache: {path: disk.raw, size: 1MiB}}]}
`)
	dir := filepath.Dir(path)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: far.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startServe(t, "--debug", "--log-level", "debug", "--config", path)
	for range 2 {
		r.expect(t, http.MethodGet, "cached/data", "", "", http.StatusOK, string(content))
	}
	_, nodes, counters, _ := r.graph(t, "cached")
	if want := "retry(cache(stats(" + strings.TrimPrefix(far.URL, "https://") + "/f.raw)))"; nodes[len(nodes)-1] != want {
		t.Errorf("the nodes are %v, want up to %s", nodes, want)
	}
	if n := counters["stats.read_bytes"]; n != int64(len(content)) {
		t.Errorf("%d bytes were asked for, of %d", n, len(content))
	}
	if _, err := os.Stat(filepath.Join(dir, "f.cache")); err != nil {
		t.Error(err)
	}
	if out, errs, code := extentd(t, "map", "--config", path, "cached"); code != 0 || !strings.Contains(out, "retry(cache(") {
		t.Errorf("map beside the server: exit code %d, %s\n%s", code, errs, out)
	}
	r.expect(t, http.MethodPut, "cached/data", "bytes 0-2/*", "abc", http.StatusForbidden, `{"type":"/problems/read-only"`)
	for image, want := range map[string]int{
		"stranger": http.StatusUnprocessableEntity, "private": http.StatusUnprocessableEntity, "no-ca": http.StatusInternalServerError,
		"empty-ca": http.StatusInternalServerError, "unknown-ca": http.StatusUnprocessableEntity, "second": http.StatusConflict,
	} {
		r.expect(t, http.MethodGet, image+"/data", "", "", want, `{"type":"/problems/`)
	}
	r.ended(t)
	if text := r.stderr.String(); strings.Contains(text, "sesame") || strings.Contains(text, "hidden") {
		t.Errorf("the log tells secrets:\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, "f.cache")); err == nil {
		t.Error("the cache is left behind")
	}
}

// hasDirect reports whether the file system of a file has direct I/O.
func hasDirect(t *testing.T, path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Logf("no direct I/O here: %v", err)
		return false
	}
	f.Close()
	return true
}

// TestQcow2AboveBlocks: the driver of qcow2 asks for any offset, also where the
// node has a minimum.
func TestQcow2AboveBlocks(t *testing.T) {
	path, disk := writeConfig(t, `
images:
  - {name: blocks, node: {file: {path: image.qcow2}}, filters: [{policy: {minimum: 4KiB}}]}
  - {name: direct, node: {file: {path: copy.qcow2, direct: true}}}
`)
	dir := filepath.Dir(path)
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dir+"/disk.raw", dir+"/image.qcow2")
	qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dir+"/disk.raw", dir+"/copy.qcow2")
	r := startServe(t, "--debug", "--config", path)
	for _, image := range []string{"blocks", "direct"} {
		if image == "direct" && !hasDirect(t, dir+"/copy.qcow2") {
			r.expect(t, http.MethodGet, image+"/data", "", "", http.StatusUnprocessableEntity, `{"type":"/problems/unsupported-feature"`)
			qemu(t, "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", dir+"/image.qcow2", dir+"/copy.qcow2")
			continue
		}
		r.expect(t, http.MethodPut, image+"/data?flush=true", "bytes 77777-77781/*", "abcde", http.StatusNoContent, "")
		copy(disk[77777:], "abcde")
		r.expect(t, http.MethodGet, image+"/data", "", "", http.StatusOK, string(disk))
	}
	r.ended(t)
	for _, file := range []string{"image.qcow2", "copy.qcow2"} {
		qemu(t, "qemu-img", "check", "-q", dir+"/"+file)
		qemu(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", dir+"/"+file, "out.raw")
		if got, err := os.ReadFile("out.raw"); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("%s is not what was written: %v", file, err)
		}
	}
}
