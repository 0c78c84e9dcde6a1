package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// curl downloads a URL to nowhere, and fails unless it gets want bytes (any
// number if want is negative).
func curl(ctx context.Context, address string, want int64, headers ...string) error {
	args := []string{"-sS", "-f", "-o", "/dev/null", "-w", "%{size_download}"}
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	out, err := exec.CommandContext(ctx, "curl", append(args, address)...).Output()
	if err != nil {
		return fmt.Errorf("curl %s: %w", address, err)
	}
	if got := strings.TrimSpace(string(out)); want >= 0 && got != strconv.FormatInt(want, 10) {
		return fmt.Errorf("curl %s: %s bytes, want %d", address, got, want)
	}
	return nil
}

// drain downloads a URL over a bare socket with large reads and no look at what
// comes: the cheapest client there is, so that the server is what is measured.
// It fails unless it gets want bytes; any number if want is negative, for a body
// that is sent in chunks.
func drain(ctx context.Context, address string, want int64, headers ...string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", u.RequestURI(), u.Host)
	for _, h := range headers {
		request += h + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // reads nothing more: the connection is to be closed
	if resp.StatusCode/100 != 2 || want >= 0 && resp.ContentLength != want {
		return fmt.Errorf("%s: %s with %d bytes, want %d", address, resp.Status, resp.ContentLength, want)
	}
	got, last, err := count(conn, int64(r.Buffered()))
	switch {
	case err != nil:
		return err
	case want >= 0 && got != want:
		return fmt.Errorf("%s: %d bytes, want %d", address, got, want)
	case want < 0 && last != "0\r\n\r\n":
		return fmt.Errorf("%s: broken off", address)
	}
	return nil
}

// count reads to the end, and returns how much came, beside what was read
// before, and the last five bytes.
func count(r io.Reader, before int64) (n int64, last string, err error) {
	buf := make([]byte, 256<<10)
	var tail []byte
	for n = before; ; {
		got, err := r.Read(buf)
		n += int64(got)
		tail = append(tail, buf[max(0, got-5):got]...)
		tail = tail[max(0, len(tail)-5):]
		if errors.Is(err, io.EOF) {
			return n, string(tail), nil
		}
		if err != nil {
			return n, "", err
		}
	}
}

// wrkScript is Lua: each thread of wrk makes its requests before it starts, 4 KiB
// at random multiples of 4 KiB, and goes through them again and again.
const wrkScript = `
local requests, at = {}, 0
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end
function init(args)
  local method, size = args[1], tonumber(args[2])
  local header, format, body = "Range", "bytes=%d-%d", nil
  if method == "PUT" then
    header, format, body = "Content-Range", "bytes %d-%d/*", string.rep("not zeros ", 410):sub(1, 4096)
  end
  math.randomseed(42 + id)
  for i = 1, 20000 do
    local off = math.random(0, size / 4096 - 1) * 4096
    requests[i] = wrk.format(method, nil, {[header] = string.format(format, off, off + 4095)}, body)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
`

// ranges asks for random 4 KiB ranges, and returns how many it got a second.
func (s *setup) ranges(ctx context.Context, address string, size int64) (float64, error) {
	return s.wrk(ctx, http.MethodGet, address, size)
}

// puts writes random 4 KiB, and returns how many it got done a second.
func (s *setup) puts(ctx context.Context, address string, size int64) (float64, error) {
	return s.wrk(ctx, http.MethodPut, address, size)
}

// wrk makes requests over 16 connections.
func (s *setup) wrk(ctx context.Context, method, address string, size int64) (float64, error) {
	script := filepath.Join(s.dir, "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkScript), 0o644); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "wrk", "-t", "2", "-c", "16", "-d", fmt.Sprint(s.seconds(), "s"), "-s", script, address,
		"--", method, strconv.FormatInt(size, 10)).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

// seconds is how long what has no end runs.
func (s *setup) seconds() int {
	if s.small {
		return 1
	}
	return 4
}

func parseWrk(out string) (float64, error) {
	result := 0.0
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "Non-2xx") || strings.HasPrefix(line, "Socket errors") {
			return 0, fmt.Errorf("wrk: %s", line)
		}
		if rest, ok := strings.CutPrefix(line, "Requests/sec:"); ok {
			var err error
			if result, err = strconv.ParseFloat(strings.TrimSpace(rest), 64); err != nil {
				return 0, err
			}
		}
	}
	if result == 0 {
		return 0, fmt.Errorf("wrk says nothing:\n%s", out)
	}
	return result, nil
}
