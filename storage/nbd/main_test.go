package nbd_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends, and waits until it can be connected to.
func start(t testing.TB, socket, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: apt-get install nbdkit qemu-utils", err)
	}
	cmd := exec.Command(name, args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return cmd
		}
		select {
		case <-ended:
			t.Fatalf("%s %q: %s", name, args, output.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// directory is one whose name is short enough for sockets.
func directory(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

func unixURI(socket, export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.PathEscape(socket)
}

// nbdkit runs one and returns the URI of its export.
func nbdkit(t testing.TB, args ...string) string {
	t.Helper()
	socket := filepath.Join(directory(t), "s")
	start(t, socket, "nbdkit", append([]string{"-f", "--unix", socket}, args...)...)
	return unixURI(socket, "")
}

// qemuNBD serves a raw file and returns the URI.
func qemuNBD(t testing.TB, file string, args ...string) string {
	t.Helper()
	socket := filepath.Join(directory(t), "s")
	start(t, socket, "qemu-nbd", append(args, "-t", "-e", "20", "-k", socket, "--format=raw", file)...)
	return unixURI(socket, "")
}

// options wait for no long time.
func options(uri string) nbd.Options {
	return nbd.Options{URI: uri, DialTimeout: 5 * time.Second, Timeout: 20 * time.Second, Reconnect: 5 * time.Second}
}

func openFile(t testing.TB, opt nbd.Options) *nbd.File {
	t.Helper()
	f, err := nbd.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// random is content without zeros.
func random(t testing.TB, n int) []byte {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("content of seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p[:min(n, 61<<10+7)] { // no block is as long
		p[i] = byte(1 + r.IntN(255))
	}
	for done := 61<<10 + 7; done < n; {
		done += copy(p[done:], p[:done])
	}
	return p
}

func is(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
