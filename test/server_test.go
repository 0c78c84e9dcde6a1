package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A server is a running extentd.
type server struct {
	t      testing.TB
	url    string   // without a slash at the end
	nbd    []string // URIs, in the order of --nbd
	cmd    *exec.Cmd
	client *http.Client
	stderr *output
	exited chan error // the result of Wait
}

// output collects what a process prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// serve starts a server of a directory, and stops it at the end of the test.
func serve(t testing.TB, dir string, flags ...string) *server {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", dir, flags...)
}

// serveRacy starts a server that looks for its own data races.
func serveRacy(t testing.TB, dir string, flags ...string) *server {
	t.Helper()
	return start(t, exec.Command(racy, serveArgs("127.0.0.1:0", dir, flags...)...))
}

func serveAt(t testing.TB, address, dir string, flags ...string) *server {
	t.Helper()
	return start(t, exec.Command(program, serveArgs(address, dir, flags...)...))
}

func serveArgs(address, dir string, flags ...string) []string {
	return append(append([]string{"serve", "--listen", address}, flags...), dir)
}

// start starts a server that a command describes, and stops it at the end of
// the test.
func start(t testing.TB, cmd *exec.Cmd) *server {
	t.Helper()
	s := &server{
		t: t, cmd: cmd, stderr: &output{}, exited: make(chan error, 1),
		client: &http.Client{
			Timeout:   2 * time.Minute,
			Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16},
		},
	}
	s.cmd.Stderr = s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		// Stdout is read to its end before Wait, as StdoutPipe demands.
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			if said, found := strings.CutPrefix(scanner.Text(), "listening on "); found {
				select {
				case line <- strings.TrimSpace(said):
				default:
				}
			}
		}
		close(line)
		s.exited <- s.cmd.Wait()
	}()
	t.Cleanup(s.stop)
	select {
	case said := <-line:
		uris := strings.Fields(said)
		if len(uris) > 0 {
			s.url, s.nbd = uris[0], uris[1:]
		}
		if path, isUnix := strings.CutPrefix(s.url, "unix:"); isUnix {
			s.url = "http://localhost"
			s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}
		}
		if s.url == "" {
			t.Fatalf("%s did not start:\n%s", strings.Join(s.cmd.Args, " "), s.stderr)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s is not listening after 20 s:\n%s", strings.Join(s.cmd.Args, " "), s.stderr)
	}
	return s
}

// stop sends SIGTERM and waits for a clean exit. Later calls do nothing.
func (s *server) stop() {
	s.t.Helper()
	s.client.CloseIdleConnections()
	if s.exited == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.exited:
		if err != nil {
			s.t.Errorf("extentd after SIGTERM: %v\n%s", err, s.stderr)
		}
	case <-time.After(15 * time.Second):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // prints the goroutines
		time.Sleep(200 * time.Millisecond)
		_ = s.cmd.Process.Kill()
		s.t.Errorf("extentd still runs 15 s after SIGTERM (%v):\n%s", <-s.exited, s.stderr)
	}
	s.exited = nil
	s.checkLog()
}

// kill ends the process as a crash would.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	if err := <-s.exited; err == nil {
		s.t.Error("extentd exited before it was killed")
	}
	s.exited = nil
	s.checkLog()
}

func (s *server) checkLog() {
	if log := s.stderr.String(); strings.Contains(log, "panic") || strings.Contains(log, "DATA RACE") {
		s.t.Errorf("the server's log:\n%s", log)
	}
	if s.t.Failed() && s.stderr.String() != "" {
		s.t.Logf("the server's log:\n%s", s.stderr)
	}
}

// awaitClosed waits until the process has a file closed.
func (s *server) awaitClosed(path string) error {
	for deadline := time.Now().Add(10 * time.Second); slices.Contains(s.openFiles(), path); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still open after 10 s", path)
		}
	}
	return nil
}

// peakMemory is the most memory that the process had resident, bytes.
func (s *server) peakMemory() int64 {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n * kib
		}
	}
	s.t.Fatal("no VmHWM in the process's status")
	return 0
}

// openFiles are the paths of what the process has open.
func (s *server) openFiles() []string {
	dir := fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		if path, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// verb runs a local verb of the binary in a directory.
func verb(t testing.TB, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
