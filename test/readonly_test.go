package test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// changes are all ways to change something, by what a test calls them.
func changes(s *server, file string) map[string]func() error {
	return map[string]func() error{
		"write":    func() error { return s.put(file, 0, make([]byte, 512), true) },
		"zero":     func() error { return s.zero(file, 0, 64*kib, false) },
		"anchor":   func() error { return s.zero(file, 0, 64*kib, true) },
		"trim":     func() error { return s.trim(file, 0, 64*kib) },
		"flush":    func() error { return s.flush(file) },
		"update":   func() error { return s.update(file, []object{target(0, 64*kib, "zero")}) },
		"grow":     func() error { return s.resize(file, 2*mib, false) },
		"shrink":   func() error { return s.resize(file, mib/2, true) },
		"repair":   func() error { _, err := s.check(file, "all"); return err },
		"allocate": func() error { _, err := s.allocate(file, object{"length": 64 * kib}); return err },
		"delete": func() error {
			a, err := s.send(http.MethodDelete, imagePath(file, ""), nil)
			return accepted("DELETE "+file, a, err, http.StatusNoContent)
		},
		"create": func() error {
			a, err := s.sendJSON(http.MethodPost, "/v1/images", object{"name": "new.qcow2", "format": "qcow2", "size": mib})
			return accepted("create", a, err, http.StatusCreated)
		},
	}
}

// TestReadOnly: a read-only server refuses all writing, and goes on reading; so
// does one that is given an image as read-only, for that image.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file, raw := m.create(".qcow2", mib), m.raw(".raw", mib)
	m.io(file, m.write(0, mib))
	before := readFile(t, m.path(file))
	s := serve(t, dir, "--read-only")
	for _, name := range []string{file, raw} {
		for what, change := range changes(s, name) {
			if what == "flush" || what == "repair" && name == raw {
				continue // changes nothing, or cannot be done to it at all
			}
			if err := change(); !isRefusal(err, http.StatusForbidden, "read-only") {
				t.Errorf("%s of %s: %v, want 403 read-only", what, name, err)
			}
		}
		var img image
		s.getJSON(t, &img, imagePath(name, ""))
		if !img.ReadOnly {
			t.Errorf("%s is not said to be read-only", name)
		}
	}
	if v, err := s.check(file, "none"); err != nil || v.Corruptions+v.Leaks != 0 {
		t.Errorf("a check that repairs nothing: %+v, %v", v, err)
	}
	if _, err := s.read(file, 0, mib); err != nil {
		t.Error(err)
	}
	s.stop()
	if i := firstDifference(readFile(t, m.path(file)), before); i >= 0 {
		t.Errorf("byte %d of the file has changed", i)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("a read-only server left %v (%v)", entries, err)
	}

	// The other flag, in a directory that holds the image of another name.
	bound := start(t, exec.Command(program, "serve", "--listen", "127.0.0.1:0",
		"--state", t.TempDir(), "--image", "bound="+m.path(file)+",format=qcow2,readonly"))
	for what, change := range changes(bound, "bound") {
		if what == "create" || what == "flush" {
			continue
		}
		if err := change(); !isRefusal(err, http.StatusForbidden, "read-only") {
			t.Errorf("%s of an image that is bound read-only: %v", what, err)
		}
	}
}

// TestNoPermission: a server whose user may read but not write serves what it
// can, and says of the rest that it is read-only.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "images")
	for d := root; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755)) // others may pass through
	}
	must(t, os.Mkdir(dir, 0o755))
	m := newMaker(t, dir, "x")
	file := m.create(".qcow2", mib)
	m.io(file, m.write(0, mib))
	must(t, os.Chmod(m.path(file), 0o444))
	must(t, os.Chmod(dir, 0o555))
	defer func() { _ = os.Chmod(dir, 0o755) }()
	binary := filepath.Join(root, "extentd")
	data, err := os.ReadFile(program)
	must(t, err)
	must(t, os.WriteFile(binary, data, 0o755))
	must(t, os.Chmod(root, 0o555))
	defer func() { _ = os.Chmod(root, 0o755) }()
	for _, flags := range [][]string{nil, {"--read-only"}} {
		cmd := exec.Command(binary, serveArgs("127.0.0.1:0", dir, flags...)...)
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		s := start(t, cmd)
		if _, err := s.read(file, 0, mib); err != nil {
			t.Error(err)
		}
		for what, change := range changes(s, file) {
			if what == "flush" {
				continue
			}
			if err := change(); !isRefusal(err, http.StatusForbidden, "read-only") {
				t.Errorf("%s with flags %v: %v, want 403 read-only", what, flags, err)
			}
		}
		s.stop()
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
