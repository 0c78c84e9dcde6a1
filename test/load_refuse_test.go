package test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTooManyConnections: one too many is told, and others go on; probes have room
// of their own; and there is room again when somebody leaves.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "disk.raw", 1<<20)
	s := serve(t, dir, "--max-connections", "8", "--admin-listen", "127.0.0.1:0")
	if status, _ := s.answer(http.MethodGet, "/v1/images", ""); status != http.StatusOK { // and stays connected
		t.Fatalf("status %d", status)
	}
	var held []*slowClient
	for range 7 {
		held = append(held, dialSlow(t, s))
	}
	c := dialSlow(t, s)
	c.say(t, "GET /v1/images HTTP/1.1\r\nHost: localhost\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(late))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "/problems/busy") {
		t.Errorf("%s, %v: %s", resp.Status, err, text)
	}
	if status, _ := s.answer(http.MethodGet, "/v1/images/disk.raw", ""); status != http.StatusOK {
		t.Errorf("who is connected gets %d", status)
	}
	if resp, err := http.Get(s.adminURL(t) + "/readyz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the probe: %v", err)
	} else {
		resp.Body.Close()
	}
	_ = held[0].Close()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c := dialSlow(t, s)
		c.say(t, "GET /v1/images HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if c.status(t, late) == http.StatusOK {
			break
		}
		if time.Since(start) > late {
			t.Fatal("there is no room again")
		}
	}
}

// adminURL is where probes are answered, from the log.
func (s *server) adminURL(t testing.TB) string {
	t.Helper()
	_, rest, found := strings.Cut(s.stderr.String(), `"admin":"`)
	if !found {
		t.Fatalf("no admin address in %s", s.stderr)
	}
	url, _, _ := strings.Cut(rest, `"`)
	return url
}

// TestRate: who makes more requests than it may is told when to come again, and
// is answered then; probes are not counted.
func TestRate(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--rate", "0.5", "--burst", "3")
	limited := 0
	for range 6 {
		status, retry := s.answer(http.MethodGet, "/v1/images", "")
		if status == http.StatusOK {
			continue
		}
		limited++
		if seconds, err := strconv.Atoi(retry); status != http.StatusTooManyRequests || err != nil || seconds < 1 || seconds > 2 {
			t.Errorf("status %d, Retry-After %q", status, retry)
		}
	}
	if limited == 0 {
		t.Error("nothing was limited")
	}
	for range 10 {
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			if status, _ := s.answer(http.MethodGet, path, ""); status != http.StatusOK {
				t.Errorf("%s: status %d", path, status)
			}
		}
	}
	time.Sleep(2 * time.Second) // as it was told
	if status, _ := s.answer(http.MethodGet, "/v1/images", ""); status != http.StatusOK {
		t.Errorf("status %d after waiting", status)
	}
}

// TestTooManyOpen: when all images that may be open are in use, another one is
// refused after a while, and those who have theirs go on.
func TestTooManyOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "one.raw", 64<<20)
	bigRaw(t, dir, "two.raw", 1<<20)
	s := serve(t, dir, "--max-open", "1")
	c := dialSlow(t, s)
	c.say(t, "GET /v1/images/one.raw/data HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if status := c.status(t, late); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	status, retry := s.answer(http.MethodGet, "/v1/images/two.raw", "")
	if status != http.StatusServiceUnavailable || retry == "" {
		t.Errorf("status %d, Retry-After %q", status, retry)
	}
	if status, _ := s.answer(http.MethodGet, "/v1/images/one.raw", ""); status != http.StatusOK {
		t.Errorf("the open one: status %d", status)
	}
	_ = c.Close()
	for start := time.Now(); time.Since(start) < late; {
		if status, _ = s.answer(http.MethodGet, "/v1/images/two.raw", ""); status == http.StatusOK {
			return
		}
	}
	t.Errorf("status %d when the other is no longer in use", status)
}

// TestOversized: whatever is too large is refused by what it announces, or as soon
// as it is.
func TestOversized(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "disk.raw", 1<<20)
	s := serve(t, dir)
	before := s.memory("VmRSS")
	long := strings.Repeat("x", 1<<20)
	var ranges strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&ranges, ",%d-%d", i, 1<<20-1)
	}
	for _, test := range []struct {
		name, request string
		want          int
	}{
		{"header", "GET /v1/images HTTP/1.1\r\nHost: localhost\r\nX-Long: " + long, http.StatusRequestHeaderFieldsTooLarge},
		{"path", "GET /" + long, http.StatusRequestHeaderFieldsTooLarge},
		{"many headers", "GET /v1/images HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("A: b\r\n", 1<<17), http.StatusRequestHeaderFieldsTooLarge},
		{"json", "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000000000\r\n\r\n{", http.StatusRequestEntityTooLarge},
		{"chunked json", "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat(fmt.Sprintf("%x\r\n%s\r\n", 1<<16, long[:1<<16]), 40), http.StatusRequestEntityTooLarge},
		{"chunk extension", "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1;" + long, http.StatusBadRequest},
		{"body", "PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000000000000\r\n\r\nx", http.StatusBadRequest},
		{"ranges", "GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1" + ranges.String() + "\r\n\r\n", http.StatusRequestedRangeNotSatisfiable},
		{"overlapping ranges", "GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-" + strings.Repeat(",0-", 63) + "\r\n\r\n", http.StatusRequestedRangeNotSatisfiable},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dialSlow(t, s)
			go func() { _, _ = io.WriteString(c, test.request) }() // it may not be taken to its end
			if status := c.status(t, late); status != test.want {
				t.Errorf("status %d, want %d", status, test.want)
			}
		})
	}
	if grown := s.memory("VmHWM") - before; grown > 64<<20 {
		t.Errorf("the server took %d MiB for that", grown>>20)
	}
	if status, _ := s.answer(http.MethodGet, "/v1/images", ""); status != http.StatusOK {
		t.Errorf("then: status %d", status)
	}
}
