package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A running is `extentd serve` in this process.
type running struct {
	url    string
	stop   context.CancelFunc // as SIGTERM does
	code   chan int
	rest   chan string // what it printed after its first line
	stderr *lockedBuffer
	client *http.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startServe runs it and waits for its line.
func startServe(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{
		stop: cancel, code: make(chan int, 1), rest: make(chan string, 1), stderr: &lockedBuffer{},
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	stdout, w := io.Pipe()
	go func() {
		r.code <- run(ctx, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...), w, r.stderr)
		w.Close()
	}()
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	if err != nil {
		cancel()
		t.Fatalf("it does not start: %v\n%s", err, r.stderr)
	}
	go func() {
		rest, _ := io.ReadAll(lines)
		r.rest <- string(rest)
	}()
	if !regexp.MustCompile(`^listening on http://127\.0\.0\.1:[1-9][0-9]*\n$`).MatchString(line) {
		t.Errorf("the line is %q", line)
	}
	r.url = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	t.Cleanup(func() { r.ended(t) })
	return r
}

// ended stops it, waits, and checks how it ended.
func (r *running) ended(t *testing.T) {
	t.Helper()
	r.stop()
	if r.code == nil {
		return
	}
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d\n%s", code, r.stderr)
	}
	if rest := <-r.rest; rest != "" {
		t.Errorf("printed besides the line: %q", rest)
	}
	r.code = nil
}

func (r *running) get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := r.client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), bytes.Repeat([]byte("extentd."), 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startServe(t, "--debug", "--log-level", "debug", dir)
	if status, body := r.get(t, r.url+"/v1/images/disk.raw/data"); status != http.StatusOK || body != strings.Repeat("extentd.", 1024) {
		t.Errorf("status %d and %d bytes", status, len(body))
	}
	if status, body := r.get(t, r.url+"/v1/images"); status != http.StatusOK || !strings.Contains(body, `"disk.raw"`) {
		t.Errorf("status %d: %s", status, body)
	}
	if status, body := r.get(t, r.url+"/openapi.yaml"); status != http.StatusOK || body != string(openAPI) {
		t.Errorf("status %d and %d bytes of openapi.yaml", status, len(body))
	}
	if out, errs, code := extentd(t, "health", "--listen", strings.TrimPrefix(r.url, "http://")); code != 0 || out != "" || errs != "" {
		t.Errorf("health: exit code %d, %q, %q", code, out, errs)
	}
	t.Setenv("EXTENTD_LISTEN", strings.TrimPrefix(r.url, "http://"))
	if _, errs, code := extentd(t, "health"); code != 0 {
		t.Errorf("health by the environment: exit code %d, %q", code, errs)
	}
	r.ended(t)
	for line := range strings.Lines(r.stderr.String()) {
		if !strings.HasPrefix(line, `{"time":`) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
}

func TestServeSpeaksHTTP2(t *testing.T) {
	r := startServe(t, t.TempDir())
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &p}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(r.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%s, %s", resp.Proto, resp.Status)
	}
}

func TestAdminListener(t *testing.T) {
	dir := t.TempDir()
	r := startServe(t, "--admin-listen", "127.0.0.1:0", dir)
	found := regexp.MustCompile(`"admin":"(http://[^"]+)"`).FindStringSubmatch(r.stderr.String())
	if found == nil {
		t.Fatalf("the log does not say where:\n%s", r.stderr)
	}
	admin := found[1]
	for path, want := range map[string]int{
		"/healthz": http.StatusOK, "/readyz": http.StatusOK, "/metrics": http.StatusOK,
		"/v1/images": http.StatusNotFound, "/openapi.yaml": http.StatusNotFound, "/": http.StatusNotFound,
	} {
		if status, _ := r.get(t, admin+path); status != want {
			t.Errorf("%s: status %d, want %d", path, status, want)
		}
	}
}

// TestDrain: a download that is under way ends, new requests are refused, and
// probes hear of it.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 20
	f, err := os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r := startServe(t, "--admin-listen", "127.0.0.1:0", dir)
	admin := regexp.MustCompile(`"admin":"(http://[^"]+)"`).FindStringSubmatch(r.stderr.String())[1]
	resp, err := r.client.Get(r.url + "/v1/images/disk.raw/data")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.stop()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		again, err := r.client.Get(r.url + "/healthz")
		if err != nil {
			break
		}
		again.Body.Close()
		if time.Now().After(deadline) {
			t.Fatal("still accepting requests")
		}
	}
	if status, _ := r.get(t, admin+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("readyz: status %d", status)
	}
	if status, _ := r.get(t, admin+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: status %d", status)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
		t.Errorf("%d bytes: %v", n, err)
	}
	r.ended(t)
}

// TestCut: a download that does not end is cut off, and its client sees it.
func TestCut(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "disk.raw"), 64<<20); err != nil {
		t.Fatal(err)
	}
	config := Config{Dir: dir, Listen: "127.0.0.1:0", FollowBacking: "root", LogLevel: "info", TLS: ListenConfig{Grace: 50 * time.Millisecond}}
	s, err := NewServer(t.Context(), config, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(s.URL() + "/v1/images/disk.raw/data")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes, and no error", n)
	}
}

// TestServeReadOnlyDirectory: nothing is written to what is served.
func TestServeNothingWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, make([]byte, 4096), 0o444); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	r := startServe(t, dir)
	r.get(t, r.url+"/v1/images/disk.raw/extents")
	r.ended(t)
	after, err := os.Stat(path)
	if err != nil || after.ModTime() != before.ModTime() {
		t.Errorf("%v, %v", after, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
