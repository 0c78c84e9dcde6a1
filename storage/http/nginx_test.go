package http_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
	"github.com/extentd/extentd/storage/storagetest"
)

const nginxConfig = `
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 64; }
http {
	access_log off;
	types { application/octet-stream raw; text/plain txt; }
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	gzip on;
	server {
		listen 127.0.0.1:%d;
		root files;
		location /noetag/ { alias files/; etag off; }
		location /noranges/ { alias files/; max_ranges 0; }
		location /moved/ { return 302 /noetag/disk.raw; }
		location /denied/ { deny all; }
	}
}
`

// startNginx serves a directory, and returns both.
func startNginx(t *testing.T) (dir, url string) {
	t.Helper()
	const nginx = "/usr/sbin/nginx"
	if _, err := os.Stat(nginx); err != nil {
		t.Fatalf("%v: apt-get install nginx-light", err)
	}
	prefix := t.TempDir()
	dir = filepath.Join(prefix, "files")
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // for the worker
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	config := filepath.Join(prefix, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, port), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(nginx, "-p", prefix, "-c", config, "-e", "stderr")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("nginx: %s", log.String())
		}
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for range 200 {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			return dir, "http://" + address
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("nginx does not listen")
	return "", ""
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // for the worker
		t.Fatal(err)
	}
}

func TestConformanceOfNginx(t *testing.T) {
	dir, url := startNginx(t)
	files := 0
	storagetest.TestFile(t, 1, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
		files++
		name := fmt.Sprintf("disk%d.raw", files)
		writeFile(t, filepath.Join(dir, name), content)
		return openFile(t, local(url+"/"+name))
	})
}

func TestNginx(t *testing.T) {
	dir, url := startNginx(t)
	content := random(t, 1<<20)
	path := filepath.Join(dir, "disk.raw")
	writeFile(t, path, content)
	writeFile(t, filepath.Join(dir, "disk.txt"), content) // gzip is for this type
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"/disk.raw": nil, "/disk.txt": nil, "/noetag/disk.raw": nil, "/moved/x": nil,
		"/none.raw": storage.ErrNotFound, "/denied/disk.raw": storage.ErrRefused, "/noranges/disk.raw": storage.ErrUnsupported,
	} {
		f, err := http.Open(t.Context(), local(url+name))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err != nil {
			continue
		}
		p := make([]byte, len(content))
		if n, err := f.ReadAt(t.Context(), p, 0); n != len(p) || err != nil || !bytes.Equal(p, content) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		_ = f.Close()
	}
}

// Replaced by another file of the same size, or cut: an error.
func TestNginxFileReplaced(t *testing.T) {
	dir, url := startNginx(t)
	content := random(t, 1<<16)
	path := filepath.Join(dir, "disk.raw")
	for _, folder := range []string{"/", "/noetag/", "/moved/"} {
		for name, replacement := range map[string][]byte{"same size": random(t, 1<<16), "cut": content[:1000], "empty": nil} {
			t.Run(strings.Trim(folder, "/")+" "+name, func(t *testing.T) {
				writeFile(t, path, content)
				old := time.Now().Add(-time.Hour)
				if err := os.Chtimes(path, old, old); err != nil {
					t.Fatal(err)
				}
				f := openFile(t, local(url+folder+"disk.raw"))
				p := make([]byte, 100)
				if _, err := f.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, content[5000:5100]) {
					t.Fatal(err)
				}
				writeFile(t, path+".new", replacement)
				if err := os.Rename(path+".new", path); err != nil {
					t.Fatal(err)
				}
				if n, err := f.ReadAt(t.Context(), p, 6000); n != 0 || !errors.Is(err, storage.ErrChanged) {
					t.Errorf("%d, %v", n, err)
				}
			})
		}
	}
}
