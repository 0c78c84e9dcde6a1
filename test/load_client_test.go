package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A slowClient is a connection to a server that does as little as it can.
type slowClient struct {
	*net.TCPConn
	r *bufio.Reader
}

// dialSlow connects to the server. Its system takes no more than a few KiB that
// nobody reads.
func dialSlow(t testing.TB, s *server) *slowClient {
	t.Helper()
	dialer := net.Dialer{Timeout: 20 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) }); e != nil {
			return e
		}
		return err
	}}
	c, err := dialer.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &slowClient{TCPConn: c.(*net.TCPConn), r: bufio.NewReaderSize(c, 64)}
}

func (s *server) address() string { return strings.TrimPrefix(s.url, "http://") }

func (c *slowClient) say(t testing.TB, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		t.Fatal(err)
	}
}

// status reads the first line of an answer, and its code.
func (c *slowClient) status(t testing.TB, within time.Duration) int {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	line, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("no answer: %q, %v", line, err)
	}
	_, rest, _ := strings.Cut(line, " ")
	code, err := strconv.Atoi(rest[:min(3, len(rest))])
	if err != nil {
		t.Fatalf("an answer of %q", line)
	}
	return code
}

// drip sends a byte now and then, until the server has had enough; and says how
// long that took.
func (c *slowClient) drip(every, most time.Duration) (time.Duration, bool) {
	start := time.Now()
	for time.Since(start) < most {
		if _, err := c.Write([]byte("x")); err != nil {
			return time.Since(start), true
		}
		_ = c.SetReadDeadline(time.Now().Add(every))
		if _, err := io.Copy(io.Discard, c.r); err == nil { // its end
			return time.Since(start), true
		} else if !isTimeout(err) {
			return time.Since(start), true
		}
	}
	return most, false
}

// sip reads a byte now and then, until the body is cut off, and says how long that
// took.
func (c *slowClient) sip(every, most time.Duration) (time.Duration, bool) {
	start := time.Now()
	for time.Since(start) < most {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return time.Since(start), !isTimeout(err)
		}
		time.Sleep(every)
		if c.dead() {
			return time.Since(start), true
		}
	}
	return most, false
}

// dead reports whether the server has reset the connection, although there is
// something left to read.
func (c *slowClient) dead() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	code := 0
	_ = raw.Control(func(fd uintptr) { code, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR) })
	return err != nil || code != 0
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// allowFiles raises the number of files that the test may have open.
func allowFiles(t testing.TB, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur, limit.Max = max(n, limit.Cur), max(n, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("%d files are needed: ulimit -n %d: %v", n, n, err)
	}
}

// memory is a line of the server's /proc/PID/status, in bytes: VmHWM is the most
// that was in memory at a time, VmRSS what is.
func (s *server) memory(line string) int64 {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(l, line+":"); found {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n << 10
		}
	}
	s.t.Fatalf("no %s in %s", line, text)
	return 0
}

// each calls f for 0 to n-1 at once, and waits.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// answer is the status of a request, and when to come again.
func (s *server) answer(method, path, body string, header ...string) (status int, retry string) {
	s.t.Helper()
	var r io.Reader = http.NoBody
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.url+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Retry-After")
}
