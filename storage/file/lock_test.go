package file_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// images makes a.raw, a.qcow2, the overlays raw.qcow2 and qcow2.qcow2 over them,
// and data.qcow2 with its data file data.raw; each 1 MiB of data.
func images(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	create := func(arg ...string) {
		cmd := exec.CommandContext(t.Context(), find(t, "qemu-img"), append([]string{"create", "-q", "-f"}, arg...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, out)
		}
	}
	create("raw", "a.raw", "1M")
	create("qcow2", "a.qcow2", "1M")
	create("qcow2", "-b", "a.raw", "-F", "raw", "raw.qcow2")
	create("qcow2", "-b", "a.qcow2", "-F", "qcow2", "qcow2.qcow2")
	create("qcow2", "-o", "data_file=data.raw", "data.qcow2", "1M")
	return dir
}

// start runs qemu-io or qemu-nbd until the test ends, and returns once it has
// the image open.
func start(t *testing.T, dir, name string, arg ...string) (stop func()) {
	t.Helper()
	var socket string
	if name == "qemu-nbd" { // wants an absolute path, and the kernel a short one
		short, err := os.MkdirTemp("", "nbd")
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(short) })
		socket = filepath.Join(short, "s")
		arg = append([]string{"-k", socket}, arg...)
	}
	cmd := exec.CommandContext(t.Context(), find(t, name), arg...)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = stdin.Close()
			if socket != "" {
				_ = cmd.Process.Signal(os.Interrupt)
			}
			_, _ = io.Copy(io.Discard, stdout)
			_ = cmd.Wait() // interrupted
		}
	}
	t.Cleanup(stop)
	if socket != "" {
		for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			conn, err := net.Dial("unix", socket)
			if err == nil { // it listens first, and greets once it has the image
				must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
				_, err = io.ReadFull(conn, make([]byte, len("NBDMAGIC")))
				must(t, err)
				must(t, conn.Close())
				return stop
			}
			if time.Since(begin) > 10*time.Second {
				stop()
				t.Fatalf("%s: %v: %s", cmd, err, stderr.String())
			}
		}
	}
	_, err = io.WriteString(stdin, "length\n")
	must(t, err)
	if _, err := bufio.NewReader(stdout).ReadString('M'); err != nil { // "1 MiB"
		stop()
		t.Fatalf("%s: %v: %s", cmd, err, stderr.String())
	}
	return stop
}

// locked are the bytes of a file that are locked, as the kernel lists them.
func locked(t *testing.T, path string) []int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	inode := strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
	table, err := os.ReadFile("/proc/locks")
	must(t, err)
	var bytes []int64
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		// 1: OFDLCK ADVISORY READ -1 fe:00:INODE 100 101
		if len(f) != 8 || f[1] != "OFDLCK" || !strings.HasSuffix(f[5], ":"+inode) {
			continue
		}
		first, err := strconv.ParseInt(f[6], 10, 64)
		must(t, err)
		last, err := strconv.ParseInt(f[7], 10, 64)
		must(t, err)
		for b := first; b <= last && b < first+1000; b++ {
			bytes = append(bytes, b)
		}
	}
	slices.Sort(bytes)
	return bytes
}

// TestLockBytes: what is locked here is what qemu-img locks.
func TestLockBytes(t *testing.T) {
	dir := images(t)
	for _, c := range []struct {
		lock file.Lock
		want []int64
	}{
		{file.LockReader, []int64{100, 201, 203}},
		{file.LockShared, []int64{100}},
		{file.LockNone, nil},
	} {
		path := filepath.Join(dir, "a.raw")
		f, err := file.Open(t.Context(), path, file.Options{Lock: c.lock})
		must(t, err)
		if diff := cmp.Diff(c.want, locked(t, path)); diff != "" {
			t.Errorf("lock %d: %s", c.lock, diff)
		}
		must(t, f.Close())
		if left := locked(t, path); left != nil {
			t.Errorf("lock %d: after Close %v are locked", c.lock, left)
		}
	}
	// QEMU's own, so that a version that does otherwise is noticed.
	start(t, dir, "qemu-io", "-r", "-f", "qcow2", "a.qcow2")
	if diff := cmp.Diff([]int64{100, 201, 203}, locked(t, filepath.Join(dir, "a.qcow2"))); diff != "" {
		t.Errorf("qemu-io -r of a qcow2 image: %s", diff)
	}
	start(t, dir, "qemu-io", "-r", "-f", "raw", "a.raw")
	if diff := cmp.Diff([]int64{100}, locked(t, filepath.Join(dir, "a.raw"))); diff != "" {
		t.Errorf("qemu-io -r of a raw image: %s", diff)
	}
}

// TestLockedByQEMU: who keeps qemu-img out keeps us out, and nobody else does.
// LockReader is compared with qemu-img convert, LockShared with qemu-img map of
// the file as a raw image.
func TestLockedByQEMU(t *testing.T) {
	for _, c := range []struct {
		program string // with -r it reads only
		files   []string
	}{
		{"qemu-io -f raw a.raw", []string{"a.raw"}},
		{"qemu-io -r -f raw a.raw", []string{"a.raw"}},
		{"qemu-io -f qcow2 a.qcow2", []string{"a.qcow2"}},
		{"qemu-io -r -f qcow2 a.qcow2", []string{"a.qcow2"}},
		{"qemu-io -f qcow2 raw.qcow2", []string{"raw.qcow2", "a.raw"}},
		{"qemu-io -f qcow2 qcow2.qcow2", []string{"qcow2.qcow2", "a.qcow2"}},
		{"qemu-io -f qcow2 data.qcow2", []string{"data.qcow2", "data.raw"}},
		{"qemu-io -r -f qcow2 data.qcow2", []string{"data.qcow2", "data.raw"}},
		{"qemu-nbd -t -f raw a.raw", []string{"a.raw"}},
		{"qemu-nbd -t -r -f raw a.raw", []string{"a.raw"}},
		{"qemu-nbd -t -f qcow2 a.qcow2", []string{"a.qcow2"}},
		{"qemu-nbd -t -r -f qcow2 a.qcow2", []string{"a.qcow2"}},
		{"qemu-nbd -t -f qcow2 raw.qcow2", []string{"raw.qcow2", "a.raw"}},
	} {
		t.Run(c.program, func(t *testing.T) {
			dir := images(t)
			arg := strings.Fields(c.program)
			start(t, dir, arg[0], arg[1:]...)
			for _, name := range c.files {
				path := filepath.Join(dir, name)
				for _, as := range []struct {
					lock file.Lock
					qemu []string
				}{
					{file.LockReader, []string{"convert", "-f", "raw", "-O", "raw", path, filepath.Join(dir, "out")}},
					{file.LockShared, []string{"map", "-f", "raw", path}},
					{file.LockNone, []string{"map", "-U", "-f", "raw", path}},
				} {
					f, err := file.Open(t.Context(), path, file.Options{Lock: as.lock})
					if err == nil {
						must(t, f.Close())
					} else if !errors.Is(err, storage.ErrBusy) {
						t.Fatal(err)
					}
					out, refused := exec.CommandContext(t.Context(), find(t, "qemu-img"), as.qemu...).CombinedOutput()
					t.Logf("%s: here %v, qemu-img %s: %v", name, err, as.qemu[0], refused)
					if (err != nil) != (refused != nil) {
						t.Errorf("%s: here %v, qemu-img %s: %v %s", name, err, as.qemu[0], refused, out)
						continue
					}
					if err == nil {
						continue
					}
					// The same permission is missing: ours ends as in no shared "write" lock.
					if _, missing, _ := strings.Cut(err.Error(), ": no "); missing == "" || !strings.Contains(string(out), missing) {
						t.Errorf("%s: here %v, qemu-img %s: %s", name, err, as.qemu[0], out)
					}
				}
			}
		})
	}
}

// TestLocksAgainstQEMU: what we hold open keeps QEMU's writers out, and lets its
// readers in, until it is closed.
func TestLocksAgainstQEMU(t *testing.T) {
	for _, c := range []struct {
		name   string
		format string
		lock   file.Lock
		writes bool
	}{
		{"a.qcow2", "qcow2", file.LockReader, false},
		{"a.raw", "raw", file.LockReader, false},
		{"a.raw", "raw", file.LockShared, true},
		{"a.qcow2", "qcow2", file.LockShared, true}, // it keeps writers out by locks of its own only
		{"a.qcow2", "qcow2", file.LockNone, true},
	} {
		t.Run(c.name+" "+strconv.Itoa(int(c.lock)), func(t *testing.T) {
			path := filepath.Join(images(t), c.name)
			io := func(arg ...string) error {
				out, err := exec.CommandContext(t.Context(), find(t, "qemu-io"), append(arg, path)...).CombinedOutput()
				t.Logf("qemu-io %v: %v %s", arg, err, out)
				return err
			}
			f, err := file.Open(t.Context(), path, file.Options{Lock: c.lock})
			must(t, err)
			defer f.Close()
			if err := io("-f", c.format, "-c", "write 0 64k"); (err == nil) != c.writes {
				t.Errorf("write while it is open here: %v", err)
			}
			if err := io("-r", "-f", c.format, "-c", "read 0 64k"); err != nil {
				t.Errorf("read while it is open here: %v", err)
			}
			second, err := file.Open(t.Context(), path, file.Options{Lock: c.lock})
			if err != nil {
				t.Errorf("two readers: %v", err)
			} else {
				must(t, second.Close()) // and the first stays locked
			}
			if err := io("-f", c.format, "-c", "write 0 64k"); (err == nil) != c.writes {
				t.Errorf("write while it is open here once: %v", err)
			}
			must(t, f.Close())
			if err := io("-f", c.format, "-c", "write 0 64k"); err != nil {
				t.Errorf("write after Close: %v", err)
			}
		})
	}
}

// TestLockIsReleased: a refused open leaves nothing behind, and the file can be
// had once the writer is gone.
func TestLockIsReleased(t *testing.T) {
	dir := images(t)
	path := filepath.Join(dir, "a.qcow2")
	stop := start(t, dir, "qemu-io", "-f", "qcow2", "a.qcow2")
	before := locked(t, path)
	if _, err := file.Open(t.Context(), path, file.Options{}); !errors.Is(err, storage.ErrBusy) || !strings.Contains(err.Error(), `"consistent read"`) && !strings.Contains(err.Error(), `"write"`) {
		t.Errorf("Open = %v", err)
	}
	if diff := cmp.Diff(before, locked(t, path)); diff != "" {
		t.Error(diff)
	}
	stop()
	f, err := file.Open(t.Context(), path, file.Options{})
	must(t, err)
	must(t, f.Close())
}
