package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pastSettling is longer than the server keeps connections that nobody uses.
const pastSettling = time.Second

// TestDrainUpload: a request whose body is on its way when the server is told to
// stop is read to its end, and answered.
func TestDrainUpload(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.create(".qcow2", mib)
	s := serve(t, m.dir)
	body, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPut, s.url+imagePath(file, "/data"), body)
	must(t, err)
	req.ContentLength = mib
	done := make(chan error, 1)
	go func() {
		resp, err := s.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNoContent {
				err = fmt.Errorf("the answer is %s", resp.Status)
			}
		}
		done <- err
	}()
	half := bytes.Repeat([]byte{7}, int(mib/2))
	_, err = w.Write(half)
	must(t, err)
	s.terminate(t)
	time.Sleep(pastSettling)
	_, err = w.Write(half)
	must(t, err)
	must(t, w.Close())
	must(t, <-done)
	s.ended(t, 20*time.Second)
	m.checkClean(t, file)
	m.run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1M", file)
}

// TestDrainNext: a client that learned nothing of the end, since its answer had
// begun before, may send one more request when that is through.
func TestDrainNext(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	const size = 64 * mib // more than fits into the connection
	file := m.raw(".raw", size)
	s := serve(t, m.dir)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	from := bufio.NewReader(c)
	ask := func(path string) *http.Response {
		t.Helper()
		_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		must(t, err)
		resp, err := http.ReadResponse(from, nil)
		must(t, err)
		return resp
	}
	resp := ask(imagePath(file, "/data"))
	defer resp.Body.Close()
	s.terminate(t)
	time.Sleep(pastSettling)
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size || resp.Close {
		t.Errorf("%d bytes: %v", n, err)
	}
	next := ask("/healthz")
	defer next.Body.Close()
	if next.StatusCode != http.StatusOK || !next.Close {
		t.Errorf("%s, and the connection is to be closed: %v", next.Status, next.Close)
	}
	_, err = io.Copy(io.Discard, next.Body)
	must(t, err)
	if rest, err := io.ReadAll(from); err != nil || len(rest) > 0 {
		t.Errorf("after it: %q, %v", rest, err)
	}
	s.ended(t, 20*time.Second)
}

// TestDrainTwice: a second signal ends it at once.
func TestDrainTwice(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--drain-delay", "10m")
	s.terminate(t)
	must(t, eventually(func() error {
		resp, err := s.client.Get(s.url + "/readyz")
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
			return fmt.Errorf("readyz: %s, and the connection is to be closed: %v", resp.Status, resp.Close)
		}
		return nil
	}))
	s.terminate(t)
	select {
	case err := <-s.exited:
		exit, ok := err.(*exec.ExitError) //nolint:errorlint // of Wait, never wrapped
		if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("it ended with %v", err)
		}
		s.exited = nil
	case <-time.After(10 * time.Second):
		t.Error("it still runs 10 s after the second signal")
	}
}

// TestDrainGrace: a client that takes no bytes is cut off when the grace is over,
// and the image is closed cleanly all the same.
func TestDrainGrace(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.create(".qcow2", 64*mib)
	m.io(file, "write -P 7 0 64M")
	s := serve(t, m.dir, "--grace", "300ms")
	resp := s.get(t, imagePath(file, "/data"))
	defer resp.Body.Close()
	must(t, s.put(file, 0, []byte("written"), false))
	s.terminate(t)
	s.ended(t, 15*time.Second)
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes, and no error", n)
	}
	m.checkClean(t, file)
}
