package test

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A holder is a QEMU process that has an image open.
type holder struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser // nil: it is killed
}

// hold opens a file with qemu-io and keeps it open until release. It reads
// once, so that the file is open and locked when hold returns.
func hold(t *testing.T, m *maker, file string, flags ...string) *holder {
	t.Helper()
	args := append(append([]string{"-f", formatOf(file)}, flags...), file)
	m.log = append(m.log, "qemu-io "+strings.Join(args, " ")+" # stays open")
	h := &holder{cmd: exec.Command("qemu-io", args...)}
	h.cmd.Dir = m.dir
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.release() })
	if _, err := io.WriteString(h.stdin, "read 0 512\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "read 512/512") {
			go io.Copy(io.Discard, stdout) //nolint:errcheck // ends with the process
			return h
		}
	}
	t.Fatalf("qemu-io %v did not open", args)
	return nil
}

// holdReading converts a file so slowly that it stays open until release.
func holdReading(t *testing.T, m *maker, file string) *holder {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	args := []string{"convert", "-r", "10K", "-f", formatOf(file), "-O", "raw", file, out}
	m.log = append(m.log, "qemu-img "+strings.Join(args, " ")+" # for ever")
	h := &holder{cmd: exec.Command("qemu-img", args...)}
	h.cmd.Dir = m.dir
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.release() })
	// The target is made once the source is open.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(out); err == nil {
			return h
		}
		if time.Now().After(deadline) {
			t.Fatalf("qemu-img %v does not begin", args)
		}
	}
}

func (h *holder) release() {
	if h.stdin != nil {
		h.stdin.Close()
	} else {
		_ = h.cmd.Process.Kill()
	}
	_ = h.cmd.Wait()
}

// TestLocks: whoever has an image open, the server refuses and allows what
// qemu-img itself does.
func TestLocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	base := m.create("-base.qcow2", mib)
	rawBase := m.raw("-base.raw", mib)
	files := []string{
		m.create("-alone.qcow2", mib), m.raw("-alone.raw", mib),
		m.overlay("-over.qcow2", base, mib), m.overlay("-over-raw.qcow2", rawBase, mib),
		m.create("-data-file.qcow2", mib, "data_file=x-data.raw"),
	}
	refusals, held := 0, append(files, base, rawBase, "x-data.raw")
	for _, held := range held {
		for _, flags := range [][]string{nil, {"-r"}, {"-U", "-r"}} {
			t.Run(held+" "+strings.Join(flags, " "), func(t *testing.T) {
				// A server of its own: none of these files is open in it yet.
				s := serve(t, dir, "--idle", "100ms")
				h := hold(t, m, held, flags...)
				for _, file := range files {
					_, busy := convert(dir, file)
					path := "/v1/images/" + file + "/data"
					if busy != nil {
						refusals++
						s.expectProblem(t, http.StatusConflict, "image-busy", path)
						s.expectProblem(t, http.StatusConflict, "image-busy", extentsPath(file))
					} else {
						s.expect(t, http.StatusOK, path)
						s.expect(t, http.StatusOK, extentsPath(file))
					}
				}
				// The list goes on in spite of it.
				s.expect(t, http.StatusOK, "/v1/images")
				h.release()
				for _, file := range files {
					s.expect(t, http.StatusOK, "/v1/images/"+file+"/data")
				}
			})
		}
	}
	if refusals < len(held) {
		t.Errorf("qemu-img refused %d times, which tests little", refusals)
	}
}

// TestLocksOfOurs: while the server has an image open, QEMU may do to it what
// it may while qemu-img convert reads it, and everything once it is closed.
func TestLocksOfOurs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	const size = 16 * mib // more than qemu-img asks for at once
	base := m.create("-base.qcow2", size)
	m.io(base, m.write(0, size))
	for _, file := range []string{m.create("-alone.qcow2", size), m.raw("-alone.raw", size), m.overlay("-over.qcow2", base, size)} {
		m.io(file, m.write(0, size))
		for _, target := range []string{file, base} {
			t.Run(file+" and "+target, func(t *testing.T) {
				write := []string{"-f", formatOf(target), "-c", "write 0 512", target}
				h := holdReading(t, m, file)
				_, want := m.try("qemu-io", write...)
				h.release()
				s := serve(t, dir, "--idle", "200ms")
				resp := s.get(t, "/v1/images/"+file+"/data") // not read: stays open
				_, got := m.try("qemu-io", write...)
				if (got == nil) != (want == nil) {
					t.Errorf("a write to %s while the server reads %s: %v; while QEMU does: %v", target, file, got, want)
				}
				if _, err := convert(dir, file); err != nil {
					t.Errorf("qemu-img cannot read beside the server: %v", err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				closed := false
				for range 100 {
					if _, err := m.try("qemu-io", write...); err == nil {
						closed = true
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				if !closed {
					t.Error("still locked 5 s after the last request, with --idle 200ms")
				}
			})
		}
	}
}
