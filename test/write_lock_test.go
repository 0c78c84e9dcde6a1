package test

import (
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestWriteLocks: while QEMU has an image open, we may write to it when a second
// QEMU may, and the first does not.
func TestWriteLocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	refused, allowed := 0, 0
	for _, file := range []string{m.create("-alone.qcow2", mib), m.raw("-alone.raw", mib), m.create("-data.qcow2", mib, "data_file=x-data.raw")} {
		for _, flags := range [][]string{nil, {"-r"}, {"-U", "-r"}} {
			s := serve(t, dir, "--idle", "100ms")
			must(t, s.put(file, 0, make([]byte, 512), true))
			must(t, s.awaitClosed(m.path(file)))
			h := hold(t, m, file, flags...)
			_, want := m.try("qemu-io", "-f", formatOf(file), "-c", "write 0 512", file)
			for what, err := range map[string]error{
				"write":  s.put(file, 0, make([]byte, 512), true),
				"zero":   s.zero(file, 0, 512, false),
				"trim":   s.trim(file, 0, 64*kib),
				"resize": s.resize(file, 2*mib, false),
			} {
				busy := isRefusal(err, http.StatusConflict, "image-busy")
				// qemu-io lets others write to a raw file that it writes
				// to, as no machine does: we do not.
				alone := want != nil || flags == nil
				if busy != alone || err != nil && !busy {
					t.Errorf("%s while qemu-io %v has %s open: %v; of a second qemu-io: %v", what, flags, file, err, want)
				}
			}
			if want != nil {
				refused++
			} else {
				allowed++
			}
			h.release()
			must(t, s.put(file, 0, make([]byte, 512), true))
			s.stop()
			if formatOf(file) == "qcow2" {
				m.checkClean(t, file)
			}
		}
	}
	if refused == 0 || allowed == 0 {
		t.Errorf("QEMU was refused %d times and allowed %d times, which tests little", refused, allowed)
	}
}

// TestQemuNBDHolds: the same with a process that runs on, as a virtual machine
// does.
func TestQemuNBDHolds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.create(".qcow2", mib)
	s := serve(t, dir, "--idle", "100ms")
	socket := filepath.Join(dir, "nbd")
	nbd := exec.Command("qemu-nbd", "-t", "-f", "qcow2", "-k", socket, m.path(file))
	if err := nbd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nbd.Process.Kill(); _ = nbd.Wait() }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("qemu-nbd does not listen")
		}
	}
	mustRefuse(t, s.put(file, 0, make([]byte, 512), true), http.StatusConflict, "image-busy")
	mustRefuse(t, s.update(file, []object{target(0, 64*kib, "zero")}), http.StatusConflict, "image-busy")
	_, err := s.allocate(file, object{"length": 64 * kib})
	mustRefuse(t, err, http.StatusConflict, "image-busy")
	_, err = s.check(file, "all")
	mustRefuse(t, err, http.StatusConflict, "image-busy")
	a, err := s.send(http.MethodDelete, imagePath(file, ""), nil)
	mustRefuse(t, accepted("DELETE", a, err, http.StatusNoContent), http.StatusConflict, "image-busy")
	_ = nbd.Process.Kill()
	_ = nbd.Wait()
	must(t, s.put(file, 0, make([]byte, 512), true))
}

// TestLocksOfWriter: while we have written to an image, QEMU may do to it no more
// than while a QEMU has it open for writing, and to qcow2 no less; and everything
// once it is idle.
func TestLocksOfWriter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	for _, file := range []string{m.create("-alone.qcow2", mib), m.raw("-alone.raw", mib), m.create("-data.qcow2", mib, "data_file=x-data.raw")} {
		attempts := [][]string{
			{"qemu-io", "-f", formatOf(file), "-c", "write 0 512", file},
			{"qemu-io", "-f", formatOf(file), "-r", "-c", "read 0 512", file},
			{"qemu-io", "-f", formatOf(file), "-r", "-U", "-c", "read 0 512", file},
			{"qemu-img", "info", "-f", formatOf(file), file},
			{"qemu-img", "resize", "-f", formatOf(file), file, "2M"},
		}
		if formatOf(file) == "qcow2" {
			attempts = append(attempts, []string{"qemu-img", "check", "-f", "qcow2", file}, []string{"qemu-img", "snapshot", "-c", "s", file})
		}
		h := hold(t, m, file)
		want := make([]error, len(attempts))
		for i, args := range attempts {
			_, want[i] = m.try(args[0], args[1:]...)
		}
		h.release()
		s := serve(t, dir, "--idle", "1s")
		for i, args := range attempts {
			must(t, s.put(file, 0, make([]byte, 512), true)) // keeps it open
			_, got := m.try(args[0], args[1:]...)
			// qemu-io lets others write to a raw file; we do not.
			if (got == nil) != (want[i] == nil) && (got == nil || formatOf(file) != "raw") {
				t.Errorf("%v while we write: %v; while a QEMU does: %v", args, got, want[i])
			}
		}
		must(t, s.awaitClosed(m.path(file)))
		m.run("qemu-io", "-f", formatOf(file), "-c", "write 0 512", file)
		must(t, s.put(file, 512, make([]byte, 512), true))
		s.stop()
	}
}

// TestTwoServers: two servers read one image; one writes when no other has it
// open.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	for _, file := range []string{m.create(".qcow2", mib), m.raw(".raw", mib)} {
		one := serve(t, dir, "--idle", "1s", "--state", t.TempDir())
		other := serve(t, dir, "--idle", "1s", "--state", t.TempDir())
		for _, s := range []*server{one, other} {
			_, err := s.read(file, 0, 512)
			must(t, err)
		}
		mustRefuse(t, one.put(file, 0, make([]byte, 512), false), http.StatusConflict, "image-busy")
		must(t, other.awaitClosed(m.path(file)))
		must(t, one.put(file, 0, make([]byte, 512), false))
		_, err := other.read(file, 0, 512)
		if !isRefusal(err, http.StatusConflict, "image-busy") {
			t.Errorf("a read while another server writes: %v", err)
		}
		must(t, one.awaitClosed(m.path(file)))
		must(t, other.put(file, 0, make([]byte, 512), false))
		one.stop()
		other.stop()
	}
}

// TestChildrenInUse: what another image has below it is neither written,
// resized nor deleted.
func TestChildrenInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	base := m.create("-base.qcow2", mib)
	m.overlay("-over.qcow2", base, mib)
	m.create("-data.qcow2", mib, "data_file=x-data.raw")
	s := serve(t, dir)
	for over, below := range map[string]string{"x-over.qcow2": base, "x-data.qcow2": "x-data.raw"} {
		must(t, s.put(over, 0, []byte("top"), true))
		for what, err := range map[string]error{
			"write":  s.put(below, 0, []byte("below"), false),
			"zero":   s.zero(below, 0, 512, false),
			"resize": s.resize(below, 2*mib, false),
		} {
			if !isRefusal(err, http.StatusConflict, "conflict") {
				t.Errorf("%s of %s: %v, want 409 conflict", what, below, err)
			}
		}
		a, err := s.send(http.MethodDelete, imagePath(below, ""), nil)
		mustRefuse(t, accepted("DELETE", a, err, http.StatusNoContent), http.StatusConflict, "conflict")
	}
}
