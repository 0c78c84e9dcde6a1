package test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// nginx serves a directory for as long as the test runs.
func nginx(t testing.TB, dir string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	prefix := t.TempDir()
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	access_log off; sendfile on;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	server { listen %[2]s; root %[3]s; }
}`, prefix, address, dir)
	path := filepath.Join(prefix, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", prefix, "-c", path)
	errs := &output{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			return "http://" + address
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx does not start: %v\n%s", err, errs)
		}
	}
}

// TestRemoteImage: a qcow2 image that nginx serves, read through http and cache,
// is the local one: content and map.
func TestRemoteImage(t *testing.T) {
	k := kindNamed(t, "v3")
	dir := t.TempDir()
	s := serveConfig(t, dir, fmt.Sprintf(`
images:
  - name: remote
    format: qcow2
    node: {http: {url: "%s/%s", allow_private: true}}
    filters: [{cache: {path: f.cache, size: 1MiB}}, {readahead: {}}, {retry: {}}]
  - name: small
    format: qcow2
    node: {http: {url: "%[1]s/%s", allow_private: true}}
    filters: [{cache: {path: small.cache, size: 64KiB, block_size: 4KiB}}]
`, nginx(t, served), k.file), "--debug")
	local := serve(t, served)
	for _, name := range []string{"remote", "small"} {
		for range 2 {
			checkWhole(t, s, name, k)
		}
		sameMap(t, name, spansOfExtents(s.stream(t, name)), spansOfExtents(local.stream(t, k.file)))
		if c := s.counters(t, name, "cache"); c["misses"] == 0 || c["hits"] == 0 || c["errors"] != 0 {
			t.Errorf("%s: the cache counts %v", name, c)
		}
		if err := s.put(name, 0, make([]byte, 512), false); !isRefusal(err, http.StatusForbidden, "read-only") {
			t.Errorf("a write to %s: %v", name, err)
		}
	}
}

// checkWhole reads all of an image, as a whole and in ranges.
func checkWhole(t *testing.T, s *server, name string, k *kind) {
	t.Helper()
	want := k.read(t, 0, k.size)
	_, got := s.expect(t, http.StatusOK, imagePath(name, "/data"))
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("%s: byte %d differs", name, i)
	}
	random := source(t.Name())
	for range 50 {
		off := random.Int64N(k.size)
		n := 1 + random.Int64N(min(k.size-off, 200*kib))
		got, err := s.read(name, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if i := firstDifference(got, want[off:off+n]); i >= 0 {
			t.Fatalf("%s: byte %d differs", name, off+int64(i))
		}
	}
}

// A troubled server serves a directory, and fails in every way that a network
// has: now and then it closes the connection half-way through a body, answers
// that it is busy, or takes its time.
type troubled struct {
	files http.Handler
	mu    sync.Mutex // protects random and trouble
	rand  *rand.Rand
	count int
	calm  bool
}

func (s *troubled) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	kind, after := s.rand.IntN(5), s.rand.IntN(8000)
	if s.calm || r.Method == http.MethodHead {
		kind = 4
	}
	if kind < 4 {
		s.count++
	}
	s.mu.Unlock()
	switch kind {
	case 0:
		http.Error(w, "busy", http.StatusServiceUnavailable)
	case 1:
		panic(http.ErrAbortHandler) // the connection closes without an answer
	case 2:
		s.files.ServeHTTP(&dying{ResponseWriter: w, left: after}, r)
	case 3:
		time.Sleep(time.Duration(after) * time.Microsecond)
		s.files.ServeHTTP(w, r)
	default:
		s.files.ServeHTTP(w, r)
	}
}

// dying ends the connection after some bytes of the body.
type dying struct {
	http.ResponseWriter
	left int
}

func (w *dying) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// tagged adds the validator that http.FileServer has not.
func tagged(files http.Handler, tag string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", tag)
		files.ServeHTTP(w, r)
	})
}

// TestTroubledServer: through a server that dies half-way an image reads as it
// is, with retry; without it there may be errors, but never wrong bytes.
func TestTroubledServer(t *testing.T) {
	k := kindNamed(t, "v3")
	far := &troubled{files: tagged(http.FileServer(http.Dir(served)), `"one"`), rand: source(t.Name()), calm: true}
	web := httptest.NewServer(far)
	web.Config.ErrorLog = nil
	t.Cleanup(web.Close)
	node := fmt.Sprintf(`{http: {url: "%s/%s", allow_private: true}}`, web.URL, k.file)
	retry := `{retry: {retries: 40, delay: 1ms, max_delay: 10ms}}`
	s := serveConfig(t, t.TempDir(), fmt.Sprintf(`
images:
  - {name: patient, format: qcow2, node: %[1]s, filters: [%[2]s]}
  - {name: cached, format: qcow2, node: %[1]s, filters: [%[2]s, {cache: {path: f.cache, size: 512KiB}}]}
  - {name: ahead, format: qcow2, node: %[1]s, filters: [{delay: {read: 1ms}}, %[2]s, {readahead: {size: 256KiB}}]}
  - {name: injected, format: qcow2, node: %[1]s, filters: [%[2]s, {error: {rate: 0.3, operations: [read]}}, %[2]s]}
  - {name: impatient, format: qcow2, node: %[1]s}
`, node, retry), "--debug")
	for _, name := range []string{"patient", "cached", "ahead", "injected", "impatient"} { // opening has no retry above it
		s.getJSON(t, new(image), imagePath(name, ""))
	}
	far.mu.Lock()
	far.calm = false
	far.mu.Unlock()
	for _, name := range []string{"patient", "cached", "ahead", "injected"} {
		checkWhole(t, s, name, k)
	}
	if c := s.counters(t, "patient", "retry"); c["retries"] == 0 || c["given_up"] != 0 {
		t.Errorf("retry counts %v", c)
	}
	failed := 0
	want := k.read(t, 0, k.size)
	random := source(t.Name() + "impatient")
	for range 100 {
		off := random.Int64N(k.size)
		n := 1 + random.Int64N(min(k.size-off, 200*kib))
		resp := s.get(t, imagePath("impatient", "/data"), "Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusPartialContent {
			checkProblem(t, resp.Header, got, resp.StatusCode, "io-error")
			failed++
			continue
		}
		if err != nil {
			failed++
		} else if int64(len(got)) != n {
			t.Fatalf("%d bytes of %d end cleanly", len(got), n)
		}
		if !bytes.Equal(got, want[off:off+int64(len(got))]) {
			t.Fatalf("wrong bytes in %d at %d", n, off)
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
	t.Logf("%d troubles, %d reads failed", far.count, failed)
}

// TestReplacedOnTheServer: who reads a file that is replaced gets an error, and
// then the new one, and never some of each.
func TestReplacedOnTheServer(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	contents := [][]byte{bytes.Repeat([]byte{1}, int(2*mib)), bytes.Repeat([]byte{2}, int(2*mib)), bytes.Repeat([]byte{3}, int(mib))}
	put := func(p []byte) {
		t.Helper()
		if err := os.WriteFile(path+".new", p, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put(contents[0])
	s := serveConfig(t, dir, fmt.Sprintf(`
images:
  - name: disk
    format: raw
    node: {http: {url: "%s/disk.raw", allow_private: true}}
    filters: [{retry: {delay: 1ms}}]
`, nginx(t, dir)))
	etag := ""
	for round, content := range contents {
		if round > 0 {
			time.Sleep(1100 * time.Millisecond) // nginx tells files of one size apart by the second
			put(content)
			a, err := s.send(http.MethodGet, imagePath("disk", "/data"), nil, "Range", "bytes=4096-8191")
			if err != nil || a.status < 400 {
				t.Fatalf("a read of what was replaced: status %d, %v", a.status, err)
			}
		}
		header, got := s.expect(t, http.StatusOK, imagePath("disk", "/data"))
		if !bytes.Equal(got, content) {
			t.Fatalf("round %d: other content, of %d bytes", round, len(got))
		}
		if tag := header.Get("ETag"); tag == etag {
			t.Errorf("the ETag is still %s", tag)
		} else {
			etag = tag
		}
	}
}
