package file_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// TestWriterLockBytes: what is locked here for writing is what QEMU locks of a
// qcow2 image, and of a raw one at least what it needs.
func TestWriterLockBytes(t *testing.T) {
	dir := images(t)
	path := filepath.Join(dir, "a.qcow2")
	want := []int64{100, 101, 103, 201, 203}
	for _, c := range []struct {
		lock          file.Lock
		before, after []int64
	}{
		{file.LockReader, []int64{100, 201, 203}, want},
		{file.LockShared, []int64{100}, want},
		{file.LockNone, nil, nil},
	} {
		f, err := file.Open(t.Context(), path, file.Options{Lock: c.lock})
		must(t, err)
		if diff := cmp.Diff(c.before, locked(t, path)); diff != "" {
			t.Errorf("lock %d: before writing: %s", c.lock, diff)
		}
		for range 2 {
			must(t, f.StartWriting(t.Context()))
			if diff := cmp.Diff(c.after, locked(t, path)); diff != "" {
				t.Errorf("lock %d: %s", c.lock, diff)
			}
		}
		must(t, f.Close())
		if left := locked(t, path); left != nil {
			t.Errorf("lock %d: after Close %v are locked", c.lock, left)
		}
	}
	// QEMU's own, so that a version that does otherwise is noticed.
	for _, c := range []struct {
		program, name string
		want          []int64
	}{
		{"qemu-io -f qcow2 a.qcow2", "a.qcow2", want},
		{"qemu-nbd -t -f qcow2 a.qcow2", "a.qcow2", want},
		{"qemu-io -f raw a.raw", "a.raw", []int64{100, 101}},
		{"qemu-nbd -t -f raw a.raw", "a.raw", []int64{100, 101, 203}},
		{"qemu-io -f qcow2 data.qcow2", "data.raw", []int64{100, 101, 103, 203}},
	} {
		arg := strings.Fields(c.program)
		stop := start(t, dir, arg[0], arg[1:]...)
		// While it opens the image, QEMU has some of them twice.
		diff := cmp.Diff(c.want, locked(t, filepath.Join(dir, c.name)))
		for deadline := time.Now().Add(10 * time.Second); diff != "" && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
			diff = cmp.Diff(c.want, locked(t, filepath.Join(dir, c.name)))
		}
		if diff != "" {
			t.Errorf("%s: %s", c.program, diff)
		}
		stop()
	}
}

// TestWriterAgainstQEMU: nobody of QEMU's writes to what is written here; who
// reads regardless may.
func TestWriterAgainstQEMU(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := images(t)
			path := filepath.Join(dir, "a."+format)
			f := open(t, path)
			must(t, f.StartWriting(t.Context()))
			for _, c := range []struct {
				command string
				lock    string // what it fails to get
			}{
				{"qemu-io -f " + format + " -c length " + path, `"write" lock`},
				{"qemu-img resize -f " + format + " " + path + " 2M", `"write" lock`},
				{"qemu-img convert -f raw -O raw " + path + " " + dir + "/out", `shared "write" lock`},
				{"qemu-img map -U -f " + format + " " + path, ""},
			} {
				arg := strings.Fields(c.command)
				out, err := exec.CommandContext(t.Context(), find(t, arg[0]), arg[1:]...).CombinedOutput()
				if (err != nil) != (c.lock != "") || !strings.Contains(string(out), c.lock) {
					t.Errorf("%s: %v: %s", arg[:2], err, out)
				}
			}
			cmd := exec.CommandContext(t.Context(), find(t, "qemu-nbd"), "-t", "-k", filepath.Join(dir, "s"), "-f", format, path)
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), `Failed to get "write" lock`) {
				t.Errorf("qemu-nbd: %v: %s", err, out)
			}
			must(t, f.Close())
			start(t, dir, "qemu-nbd", "-t", "-f", format, path)
		})
	}
}

// TestStartWritingWhileInUse: whoever uses the file keeps the writer out, and the
// reader goes on with the lock that it had.
func TestStartWritingWhileInUse(t *testing.T) {
	dir := images(t)
	path := filepath.Join(dir, "a.qcow2")
	refused := func(t *testing.T, f *file.File) {
		t.Helper()
		before := locked(t, path)
		if err := f.StartWriting(t.Context()); !errors.Is(err, storage.ErrBusy) || errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("StartWriting = %v, want %v", err, storage.ErrBusy)
		}
		if diff := cmp.Diff(before, locked(t, path)); diff != "" {
			t.Errorf("after a refusal: %s", diff)
		}
		if _, err := f.WriteAt(t.Context(), []byte{1}, 0); !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("WriteAt after a refusal = %v", err)
		}
	}
	t.Run("QEMU reads", func(t *testing.T) {
		f := open(t, path)
		stop := start(t, dir, "qemu-io", "-r", "-f", "qcow2", "a.qcow2")
		refused(t, f)
		stop()
		must(t, f.StartWriting(t.Context()))
	})
	t.Run("QEMU writes", func(t *testing.T) {
		start(t, dir, "qemu-io", "-f", "qcow2", "a.qcow2")
		f, err := file.Open(t.Context(), path, file.Options{Lock: file.LockNone})
		must(t, err)
		defer f.Close()
		refused(t, func() *file.File {
			shared, err := file.Open(t.Context(), path, file.Options{Lock: file.LockShared})
			must(t, err)
			t.Cleanup(func() { _ = shared.Close() })
			return shared
		}())
		must(t, f.StartWriting(t.Context())) // who takes no lock looks at none
	})
	t.Run("another here", func(t *testing.T) {
		f, other := open(t, path), open(t, path)
		refused(t, f)
		refused(t, other)
		must(t, other.Close())
		must(t, f.StartWriting(t.Context()))
		if _, err := file.Open(t.Context(), path, file.Options{}); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("Open of what is written to = %v", err)
		}
		must(t, f.Close())
		must(t, open(t, path).StartWriting(t.Context()))
	})
}

// TestStartWriting: the file that is open becomes writable, whatever has become
// of its name, and who has it reads what is written.
func TestStartWriting(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, []byte("content"))
	f := open(t, path)
	for name, err := range changes(t.Context(), f) {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%s before StartWriting = %v, want %v", name, err, storage.ErrReadOnly)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.StartWriting(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("StartWriting = %v", err)
	}
	must(t, os.Rename(path, path+".moved"))
	write(t, path, []byte("another"))
	before, err := f.Identity()
	must(t, err)
	time.Sleep(20 * time.Millisecond) // the clock of the file system
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := f.StartWriting(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after, err := f.Identity(); err != nil || after != before {
		t.Errorf("opening for writing changes the identity: %+v, %+v, %v", before, after, err)
	}
	if _, err := f.WriteAt(t.Context(), []byte("CON"), 0); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 7)
	if _, err := f.ReadAt(t.Context(), p, 0); err != nil && !errors.Is(err, io.EOF) || string(p) != "CONtent" {
		t.Errorf("read %q, %v", p, err)
	}
	if other, err := os.ReadFile(path); err != nil || string(other) != "another" {
		t.Errorf("the file that has its name now is %q, %v", other, err)
	}
	if after, err := f.Identity(); err != nil || after == before || !after.SameFile(before) {
		t.Errorf("after a write the identity is %+v, before %+v, %v", after, before, err)
	}
	must(t, f.Close())
	if err := f.StartWriting(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("StartWriting after Close = %v", err)
	}
	unwritten := open(t, path)
	must(t, unwritten.Close())
	for name, err := range changes(t.Context(), unwritten) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s after Close = %v, want %v", name, err, storage.ErrClosed)
		}
	}
}

// changes are what each way of writing says.
func changes(ctx context.Context, w storage.Writer) map[string]error {
	_, err := w.WriteAt(ctx, []byte{1}, 0)
	return map[string]error{
		"WriteAt":  err,
		"Zero":     w.Zero(ctx, 0, 1, false),
		"Trim":     w.Trim(ctx, 0, 1),
		"Truncate": w.Truncate(ctx, 0),
		"Flush":    w.Flush(ctx),
	}
}

// unprivileged runs do as a user who may not write to root's files. It ends with
// the thread that it runs on.
func unprivileged(t *testing.T, do func()) {
	t.Helper()
	if os.Getuid() != 0 { // others' files are refused to everyone else
		do()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
			t.Error(errno)
		}
		do()
	})
	wg.Wait()
}

func TestStartWritingNotAllowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, []byte("content"))
	must(t, os.Chmod(path, 0o444))
	f := open(t, path)
	before := locked(t, path)
	unprivileged(t, func() {
		if err := f.StartWriting(t.Context()); !errors.Is(err, storage.ErrReadOnly) || !errors.Is(err, unix.EACCES) {
			t.Errorf("StartWriting = %v, want %v", err, storage.ErrReadOnly)
		} else if strings.Contains(err.Error(), "/") {
			t.Errorf("%v: a path of the host", err)
		}
	})
	if diff := cmp.Diff(before, locked(t, path)); diff != "" {
		t.Errorf("after a refusal: %s", diff)
	}
}
