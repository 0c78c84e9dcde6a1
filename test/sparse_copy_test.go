package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// TestCopyChanges: an old copy becomes the image by what has changed since, or by what
// a bitmap marks, whatever it is a copy in.
func TestCopyChanges(t *testing.T) {
	t.Parallel()
	const size = 48*mib + 512
	m := newMaker(t, t.TempDir(), "changes")
	m.run("mkdir", "served")
	name := "served/" + m.file(".qcow2")
	m.run("qemu-img", "create", "-q", "-f", "qcow2", name, fmt.Sprint(size))
	m.scatter(name, size, 64*kib, 60, writes, zeroes)
	m.run("qemu-img", "bitmap", "--add", name, "b")
	m.run("qemu-img", "snapshot", "-c", "then", name)
	m.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "then.raw")
	m.scatter(name, size, 64*kib, 30, writes, zeroes)
	m.io(name, m.write(40*mib, mib), "write -z -u 41M 1M")
	s := serve(t, m.path("served"), "--nbd", "127.0.0.1:0")
	must(t, s.put(m.file(".qcow2"), 3*mib+5, []byte("by us"), true))
	must(t, s.zero(m.file(".qcow2"), 5*mib, 2*mib, false))
	must(t, s.flush(m.file(".qcow2")))
	from := s.url + "/" + m.file(".qcow2")
	for i, flag := range []string{"--since=then", "--dirty=b"} {
		for _, to := range []string{"raw", "qcow2", "http", "nbd"} {
			file := fmt.Sprintf("copy%d-%s.raw", i, to)
			target := file
			switch to {
			case "qcow2":
				file = strings.TrimSuffix(file, ".raw") + ".qcow2"
				target = file
			case "http":
				file, target = "served/"+file, s.url+"/"+file
			case "nbd": // in blocks of 4 KiB
			}
			m.run("qemu-img", "convert", "-f", "raw", "-O", formatOf(file), "then.raw", file)
			if to == "nbd" {
				target = otherServer(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=blocksize-policy", "file", m.path(file), "blocksize-minimum=512", "blocksize-error-policy=error")
			}
			r := copyImage(t, m.dir, "--verify", flag, from, target)
			if !r.Verified || r.Copied == 0 || r.Copied > size/2 || r.Checksum == "" {
				t.Errorf("%s to %s: %+v", flag, to, r)
			}
			m.run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", formatOf(file), name, file)
		}
	}
	m.run("cp", "then.raw", "other.raw")
	m.run("truncate", "-s", fmt.Sprint(size-512), "other.raw")
	refuseCopy(t, m.dir, "resize it first", "--since=then", from, "other.raw")
	refuseCopy(t, m.dir, "no such file", "--since=then", from, "missing.raw")
	refuseCopy(t, m.dir, "404", "--since=then", from, s.url+"/missing.raw")
	refuseCopy(t, m.dir, "404", "--since=never", from, "then.raw")
	refuseCopy(t, m.dir, "404", "--dirty=never", from, "then.raw")
	refuseCopy(t, m.dir, "only an image of an extentd", "--since=then", name, "then.raw")
	refuseCopy(t, m.dir, "exclude", "--since=then", "--dirty=b", from, "then.raw")
	refuseCopy(t, m.dir, "exclude", "--since=then", "--resume", from, "then.raw")
	refuseCopy(t, m.dir, "exclude", "--dirty=b", "--target-is-zero", from, "then.raw")
	refuseCopy(t, m.dir, "exclude", "--dirty=b", "-o", "cluster_size=4096", from, "then.raw")
	refuseCopy(t, m.dir, "422", "--since=then", s.url+"/copy0-http.raw", "then.raw")
}

// TestCopyVerifiedByServers: what is verified at a server is not read.
func TestCopyVerifiedByServers(t *testing.T) {
	t.Parallel()
	const size = 32 * mib
	m := newMaker(t, t.TempDir(), "verify")
	m.run("mkdir", "served")
	plain := m.raw(".raw", size)
	m.io(plain, m.write(0, 20*mib))
	m.run("cp", plain, "served/from.raw")
	s := serve(t, m.path("served"))
	u, err := url.Parse(s.url)
	must(t, err)
	var read, summed, old atomic.Int64
	reverse := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/data"):
			if old.Load() > 0 && r.URL.RawQuery != "" { // a server of before there was any of this
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"/problems/invalid-request","title":"x","status":400,"detail":"x","instance":"/","errors":[{"field":"only","rule":"unknown","detail":"x"}]}`)
				return
			}
			read.Add(1)
		case strings.HasSuffix(r.URL.Path, "/checksum"):
			if old.Load() > 0 {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"type":"/problems/not-found","title":"x","status":404,"detail":"x","instance":"/"}`)
				return
			}
			summed.Add(1)
		}
		reverse.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	want := checksumOf(readFile(t, m.path(plain)))
	r := copyImage(t, m.dir, "--verify", plain, proxy.URL+"/to.qcow2")
	if r.Checksum != want || !r.Verified || read.Load() != 0 || summed.Load() != 1 {
		t.Errorf("%+v, %d reads, %d checksums", r, read.Load(), summed.Load())
	}
	r = copyImage(t, m.dir, "--verify", proxy.URL+"/from.raw", "back.raw")
	if r.Checksum != want || summed.Load() != 2 {
		t.Errorf("%+v, %d checksums", r, summed.Load())
	}
	if n := read.Load(); n > 4 {
		t.Errorf("%d requests for %d MiB", n, size/mib)
	}
	old.Store(1)
	r = copyImage(t, m.dir, "--verify", proxy.URL+"/from.raw", proxy.URL+"/again.raw")
	if r.Checksum != want || !r.Verified {
		t.Errorf("%+v", r)
	}
	for _, file := range []string{"back.raw", "served/again.raw"} {
		if !bytes.Equal(readFile(t, m.path(plain)), readFile(t, m.path(file))) {
			t.Errorf("%s differs", file)
		}
	}
}
