package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// TestCrowd: 1,000 clients that say nothing, 500 that take bytes one by one, and
// 500 that send them so, are a nuisance to nobody, and the server stays within its
// memory.
func TestCrowd(t *testing.T) {
	allowFiles(t, 8192)
	dir := t.TempDir()
	const budget = 256 << 20
	bigRaw(t, dir, "disk.raw", 64<<20)
	bigRaw(t, dir, "target.raw", 64<<20)
	holey(t, dir, "holes.raw", 256<<20)
	m := newMaker(t, dir, t.Name())
	m.run("qemu-img", "convert", "-c", "-O", "qcow2", "disk.raw", "packed.qcow2")
	m.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=2M", "disk.raw", "large.qcow2")
	s := serve(t, dir, "--max-memory", "256MiB", "--stall", "20s")
	slow := []string{
		"GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/images/packed.qcow2/data HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/images/large.qcow2/data HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/images/holes.raw/extents HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n",
	}
	for range 1000 {
		dialSlow(t, s)
	}
	var clients []*slowClient
	for i := range 1000 {
		c := dialSlow(t, s)
		if i%2 == 0 {
			c.say(t, "%s", slow[i/2%len(slow)])
		} else {
			c.say(t, "PUT /v1/images/target.raw/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\nupload", 64<<20)
		}
		clients = append(clients, c)
	}
	ended := make(chan struct{})
	var done atomic.Bool
	go func() {
		defer close(ended)
		for !done.Load() {
			for i, c := range clients {
				if i%2 == 0 {
					_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
					_, _ = c.Read(make([]byte, 1))
				} else {
					_, _ = c.Write([]byte("u"))
				}
			}
		}
	}()
	requests, slowest := s.others(t, 8*time.Second)
	most, now := s.memory("VmHWM"), s.memory("VmRSS")
	done.Store(true)
	<-ended
	t.Logf("%d requests of others meanwhile, the slowest took %v; at most %d MiB in memory, now %d", requests, slowest, most>>20, now>>20)
	if most > budget {
		t.Errorf("the server had %d MiB in memory, and may have %d", most>>20, int64(budget)>>20)
	}
	if requests < 20 {
		t.Errorf("others made %d requests", requests)
	}
	for _, c := range clients {
		_ = c.Close()
	}
}

// others reads and writes for a while as clients do, and fails for every request
// that fails.
func (s *server) others(t *testing.T, long time.Duration) (requests int64, slowest time.Duration) {
	t.Helper()
	var count atomic.Int64
	var longest [4]time.Duration // of each client
	start := time.Now()
	body := bytes.Repeat([]byte("other"), 64<<10/5+1)[:64<<10]
	each(len(longest), func(i int) {
		for n := 0; time.Since(start) < long; n++ {
			begun := time.Now()
			method, image, length := http.MethodGet, "disk.raw", []int{4 << 10, 64 << 10, 1 << 20}[n%3]
			if n%2 == 1 {
				image = "packed.qcow2"
			}
			var r io.Reader = http.NoBody
			if i == 0 {
				method, image, length, r = http.MethodPut, "disk.raw", len(body), bytes.NewReader(body)
			}
			off := (n * 65536) % (60 << 20)
			req, err := http.NewRequest(method, s.url+"/v1/images/"+image+"/data", r)
			if err != nil {
				t.Error(err)
				return
			}
			span := fmt.Sprintf("%d-%d", off, off+length-1)
			req.Header.Set("Range", "bytes="+span)
			if method == http.MethodPut {
				req.Header.Del("Range")
				req.Header.Set("Content-Range", fmt.Sprintf("bytes %s/%d", span, 64<<20))
			}
			resp, err := s.client.Do(req)
			if err != nil {
				t.Errorf("%s %s of %d bytes: %v", method, image, length, err)
				return
			}
			got, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode/100 != 2 || method == http.MethodGet && got != int64(length) {
				t.Errorf("%s %s: %s, %d bytes of %d: %v", method, image, resp.Status, got, length, err)
			}
			count.Add(1)
			longest[i] = max(longest[i], time.Since(begun))
		}
	})
	return count.Load(), slices.Max(longest[:])
}
