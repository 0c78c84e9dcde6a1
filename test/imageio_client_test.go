//go:build imageio

package test

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// imageioPython is the interpreter of a virtual environment that has the package
// ovirt-imageio. It is apart from the other tests because building the package takes
// a C compiler and the headers of Python.
const imageioPython = "../.bin/imageio/bin/python"

// imageioClient runs a function of test/imageio/client.py.
func imageioClient(t *testing.T, m *maker, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(imageioPython); err != nil {
		t.Fatalf("%v: python3 -m venv .bin/imageio && .bin/imageio/bin/pip install ovirt-imageio", err)
	}
	m.log = append(m.log, "python test/imageio/client.py "+args[0])
	if out, err := exec.Command(imageioPython, append([]string{"imageio/client.py"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args[0], err, out)
	}
}

// TestImageioClient: the client library of the peer uploads, downloads, and downloads
// what has changed, and QEMU finds what it should.
func TestImageioClient(t *testing.T) {
	t.Parallel()
	dir, own := t.TempDir(), t.TempDir()
	m := newMaker(t, dir, "disk")
	local := newMaker(t, own, "source")
	size := 6*mib + 512
	source := local.create(".qcow2", size)
	local.io(source, local.write(0, mib), "write -z 1M 2M", local.write(3*mib+5, mib), local.write(6*mib, 512))
	s := serve(t, dir, "--dialect", "imageio", "--idle", "50ms")
	url := func(verbs ...string) string { return s.url + "/images/" + mintOpen(t, s, "disk.qcow2", verbs...) }
	same := func(a, b string) {
		t.Helper()
		must(t, s.awaitClosed(m.path("disk.qcow2")))
		if out, err := m.try("qemu-img", "compare", a, b); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	m.create(".qcow2", size)
	m.io("disk.qcow2", m.write(0, size)) // what is zero in the source must become so
	imageioClient(t, m, "upload", own, url("write"))
	same("disk.qcow2", local.path(source))
	imageioClient(t, m, "single", own, url("map", "read", "write"))
	imageioClient(t, m, "download", own, url("read"))
	same("disk.qcow2", filepath.Join(own, "full.qcow2"))
	same("disk.qcow2", filepath.Join(own, "full.raw"))

	m.run("qemu-img", "bitmap", "--add", "--enable", "disk.qcow2", "checkpoint")
	m.io("disk.qcow2", m.write(5*mib, 70*kib), "write -z 0 128k")
	must(t, s.put("disk.qcow2", 2*mib+7, []byte("ours"), true))
	imageioClient(t, m, "incremental", own, url("read"))
	same("disk.qcow2", filepath.Join(own, "incremental.qcow2"))
}
