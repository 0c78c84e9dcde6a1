package test

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestSocket: HTTP over a unix socket, which only those reach whom its mode lets.
func TestSocket(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	m.io(file, "write -P 7 0 1M")
	want := readFile(t, m.path(file))
	path, admin, nbd := nbdSocket(), nbdSocket(), nbdSocket()
	s := serveAt(t, "unix:"+path, m.dir, "--socket-mode", "0606", "--admin-listen", "unix:"+admin, "--nbd", "unix:"+nbd)
	for _, socket := range []string{path, admin, nbd} {
		info, err := os.Stat(socket)
		must(t, err)
		if info.Mode() != fs.ModeSocket|0o606 {
			t.Errorf("the mode is %v", info.Mode())
		}
	}
	for _, protocol := range []string{"--http1.1", "--http2-prior-knowledge"} {
		got := curl(t, s, imagePath(file, "/data"), "--unix-socket", path, protocol)
		if i := firstDifference(got.body, want); got.status != http.StatusOK || i >= 0 {
			t.Errorf("%s: status %d, byte %d differs", protocol, got.status, i)
		}
	}
	if got := curl(t, s, "/v1/images", "--unix-socket", path, "-H", "Host: any.example"); got.status != http.StatusOK {
		t.Errorf("no web page reaches a socket, yet for another host the status is %d", got.status)
	}
	must(t, s.put(file, 0, []byte("through a socket"), true))
	for _, socket := range []string{path, admin} {
		if _, errs, code := verb(t, m.dir, "health", "--listen", "unix:"+socket); code != 0 {
			t.Errorf("health: exit code %d: %s", code, errs)
		}
	}
	second := exec.Command(program, "serve", "--listen", "unix:"+path, m.dir)
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "address already in use") {
		t.Errorf("a second server at the socket: %v\n%s", err, out)
	}
	s.kill()
	s = serveAt(t, "unix:"+path, m.dir) // in place of what the killed one has left
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("the mode is %v", info.Mode())
	}
	s.expect(t, http.StatusOK, imagePath(file, "/data"))
	s.stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
