package test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestConcurrentReads reads from 16 connections at once, in ranges that share
// clusters, tables and layers.
func TestConcurrentReads(t *testing.T) {
	var under []*kind
	var contents [][]byte
	for _, name := range []string{"v3", "raw", "five-layers", "zlib-rewritten", "zstd", "extended-backing", "data-file"} {
		k := kindNamed(t, name)
		under = append(under, k)
		contents = append(contents, k.read(t, 0, k.size))
	}
	s := serve(t, served)
	var wg sync.WaitGroup
	for worker := range 16 {
		random := rand.New(rand.NewPCG(*seed, uint64(worker)))
		wg.Go(func() {
			for range 60 {
				i := random.IntN(len(under))
				k := under[i]
				off := random.Int64N(k.size)
				length := 1 + random.Int64N(min(k.size-off, 200_000))
				if err := readRange(s, k.file, off, length, contents[i][off:off+length]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func readRange(s *server, file string, off, length int64, want []byte) error {
	req, err := http.NewRequest(http.MethodGet, s.url+"/v1/images/"+file+"/data", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %d bytes at %d: %w", file, length, off, err)
	}
	if i := firstDifference(got, want); i >= 0 {
		return fmt.Errorf("%s: %d bytes at %d: %s, byte %d differs", file, length, off, resp.Status, i)
	}
	return nil
}

// TestIdle: an image that nobody reads is closed, whether its last download
// ended or was given up, and has the same tags when it is opened again.
func TestIdle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "disk")
	base := m.raw("-base.raw", 32*mib)
	m.io(base, m.write(0, 32*mib))
	file := m.overlay(".qcow2", base, 64*mib)
	m.scatter(file, 64*mib, 64*kib, 20)
	s := serve(t, dir, "--idle", "300ms")
	resp := s.get(t, "/v1/images/"+file+"/data")
	etag := resp.Header.Get("ETag")
	if _, err := io.CopyN(io.Discard, resp.Body, mib); err != nil {
		t.Fatal(err)
	}
	open := func() bool {
		return slices.ContainsFunc(s.openFiles(), func(path string) bool { return strings.HasPrefix(path, dir+"/") })
	}
	time.Sleep(time.Second)
	if !open() {
		t.Error("the image was closed under a download")
	}
	resp.Body.Close()
	for deadline := time.Now().Add(10 * time.Second); open(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still open 10 s after the download was given up: %v", s.openFiles())
		}
	}
	m.run("qemu-io", "-f", "qcow2", "-c", "read 0 512", file)
	if header, _ := s.expect(t, http.StatusPartialContent, "/v1/images/"+file+"/data", "Range", "bytes=0-9"); header.Get("ETag") != etag {
		t.Errorf("ETag %s after an idle close, want %s", header.Get("ETag"), etag)
	}
}

// TestSlowClients: who sends a header slowly is cut off, who reads slowly is
// not.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "disk")
	file := m.raw(".raw", 64*mib)
	m.io(file, m.write(0, 64*mib))
	s := serve(t, dir)
	resp := s.get(t, "/v1/images/"+file+"/data")
	defer resp.Body.Close()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_ = conn.SetReadDeadline(begin.Add(60 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("a client that never ends its header is still connected after %v: %v", time.Since(begin), err)
	}
	t.Logf("cut off after %v", time.Since(begin).Round(time.Second))
	n, err := io.Copy(io.Discard, resp.Body)
	if n != 64*mib || err != nil {
		t.Errorf("a download that paused got %d bytes: %v", n, err)
	}
}
