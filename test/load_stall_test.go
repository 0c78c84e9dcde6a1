package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stallTime is what the servers of these tests get, and late when all that stalls
// must be over, on any machine.
const (
	stallTime = 2 * time.Second
	late      = 60 * time.Second
)

// bigRaw makes an image with so many bytes of data.
func bigRaw(t testing.TB, dir, name string, size int64) {
	t.Helper()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.Write(block[:min(int64(len(block)), size-off)]); err != nil {
			t.Fatal(err)
		}
	}
}

// holey makes an image of which every other block is a hole.
func holey(t testing.TB, dir, name string, size int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += 8 << 10 {
		if _, err := f.WriteAt([]byte(strings.Repeat("d", 4<<10)), off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSlowRequests: who sends a byte now and then is cut off, whatever it sends.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "disk.raw", 16<<20)
	s := serve(t, dir, "--stall", stallTime.String())
	const json = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	const put = "PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\n"
	for name, request := range map[string]string{
		"header":              "GET /v1/images HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
		"body":                put + "Content-Length: 16777216\r\n\r\n",
		"small body":          put + "Content-Length: 100\r\nContent-Range: bytes 0-99/16777216\r\n\r\n",
		"chunked body":        put + "Transfer-Encoding: chunked\r\n\r\n1000000\r\n",
		"chunk size":          put + "Transfer-Encoding: chunked\r\n\r\n",
		"json":                json + "Content-Length: 1000\r\n\r\n{",
		"chunked json":        json + "Transfer-Encoding: chunked\r\n\r\n100000\r\n{",
		"body that is unread": "PUT /v1/images/none.raw/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
		"body of a GET":       "GET /v1/images/disk.raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
		"body of a probe":     "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
		"body for nobody":     "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialSlow(t, s)
			c.say(t, "%s", request)
			took, over := c.drip(200*time.Millisecond, late)
			if !over {
				t.Errorf("still connected after %v", took)
			}
		})
	}
}

// TestSlowUploadIsTold: who still listens is told what was wrong, and nothing
// outside of what came is written.
func TestSlowUploadIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "disk.raw", 4<<20)
	before, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, dir, "--stall", stallTime.String())
	c := dialSlow(t, s)
	c.say(t, "PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nContent-Range: bytes 0-999/%d\r\n\r\nabc", 4<<20)
	_ = c.SetReadDeadline(time.Now().Add(late))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusBadRequest || !resp.Close || !strings.Contains(string(text), "comes too slowly") {
		t.Errorf("%s (close: %v), %v: %s", resp.Status, resp.Close, err, text)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "disk.raw")); err != nil || string(after) != string(before) {
		t.Errorf("the image has changed: %v", err)
	}
}

// TestSlowReaders: who takes a byte now and then is cut off, whatever it takes, and
// who takes what is asked of it is not.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bigRaw(t, dir, "disk.raw", 64<<20)
	m := newMaker(t, dir, t.Name())
	m.run("qemu-img", "convert", "-c", "-O", "qcow2", "disk.raw", "packed.qcow2")
	holey(t, dir, "holes.raw", 256<<20)
	s := serve(t, dir, "--stall", stallTime.String())
	for name, request := range map[string]string{
		"file":      "GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"memory":    "GET /v1/images/packed.qcow2/data HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"parts":     "GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-33554431,33554432-67108863\r\n\r\n",
		"map":       "GET /v1/images/holes.raw/extents HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n",
		"pipelined": strings.Repeat("GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-65535\r\n\r\n", 500),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialSlow(t, s)
			c.say(t, "%s", request)
			took, over := c.sip(100*time.Millisecond, late)
			if !over {
				t.Errorf("still connected after %v", took)
			}
		})
	}
	t.Run("fast enough", func(t *testing.T) {
		t.Parallel()
		c := dialSlow(t, s)
		c.say(t, "GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\n\r\n")
		for start := time.Now(); time.Since(start) < 4*stallTime; time.Sleep(stallTime / 16) {
			_ = c.SetReadDeadline(time.Now().Add(late))
			if _, err := io.CopyN(io.Discard, c, 32<<10); err != nil {
				t.Fatalf("cut off after %v: %v", time.Since(start), err)
			}
		}
	})
}

// TestSlowUploadGoesOn: an upload may take as long as it likes, if it gets on.
func TestSlowUploadGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const size = 1 << 20
	bigRaw(t, dir, "disk.raw", size)
	s := serve(t, dir, "--stall", stallTime.String())
	c, err := net.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		if _, err := c.Write([]byte(strings.Repeat("u", size/16))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stallTime / 4)
	}
	_ = c.SetReadDeadline(time.Now().Add(late))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("the answer is %s", resp.Status)
	}
}
