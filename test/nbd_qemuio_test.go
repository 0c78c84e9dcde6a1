package test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A qemuIO is a running qemu-io. It is not safe for concurrent use.
type qemuIO struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	pattern string // a file that writes are made from
}

const qemuIOPrompt = "qemu-io> "

// startQemuIO has it open an export, until the test ends or it is closed.
func startQemuIO(t testing.TB, uri string) *qemuIO {
	t.Helper()
	q, err := tryQemuIO(uri)
	must(t, err)
	t.Cleanup(q.close)
	return q
}

func tryQemuIO(uri string) (*qemuIO, error) {
	q := &qemuIO{
		cmd:     exec.Command("qemu-io", "-d", "unmap", "-f", "raw", uri),
		pattern: filepath.Join(scratch, fmt.Sprint("qemu-io-", converted.Add(1))),
	}
	var err error
	if q.stdin, err = q.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := q.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	q.cmd.Stderr = q.cmd.Stdout
	q.stdout = bufio.NewReader(out)
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	if text, err := q.answer(); err != nil {
		q.close()
		return nil, fmt.Errorf("qemu-io %s: %w\n%s", uri, err, text)
	}
	return q, nil
}

// close ends it. Later calls do nothing.
func (q *qemuIO) close() {
	if q.stdin == nil {
		return
	}
	_ = q.stdin.Close()
	q.stdin = nil
	_, _ = io.Copy(io.Discard, q.stdout)
	_ = q.cmd.Wait()
	_ = os.Remove(q.pattern)
}

// answer is what it prints up to the next prompt.
func (q *qemuIO) answer() (string, error) {
	var text strings.Builder
	for !strings.HasSuffix(text.String(), qemuIOPrompt) {
		b, err := q.stdout.ReadByte()
		if err != nil {
			return text.String(), err
		}
		text.WriteByte(b)
	}
	return strings.TrimSuffix(text.String(), qemuIOPrompt), nil
}

// do runs a command. What it says went wrong is an error.
func (q *qemuIO) do(format string, args ...any) error {
	command := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(q.stdin, command); err != nil {
		return err
	}
	text, err := q.answer()
	for _, bad := range []string{"failed", "rror", "nvalid", "No such", "not supported", "Permission", "No space"} {
		if err == nil && strings.Contains(text, bad) {
			err = fmt.Errorf("qemu-io: %s: %s", command, strings.TrimSpace(text))
		}
	}
	return err
}

// write writes bytes; fua makes them durable.
func (q *qemuIO) write(off int64, p []byte, fua bool) error {
	if err := os.WriteFile(q.pattern, p, 0o600); err != nil {
		return err
	}
	flag := ""
	if fua {
		flag = "-f "
	}
	return q.do("write %s-s %s %d %d", flag, q.pattern, off, len(p))
}

// zero writes zeros; keep asks for no hole.
func (q *qemuIO) zero(off, length int64, keep bool) error {
	if keep {
		return q.do("write -z %d %d", off, length)
	}
	return q.do("write -z -u %d %d", off, length)
}

func (q *qemuIO) trim(off, length int64) error { return q.do("discard %d %d", off, length) }

func (q *qemuIO) flush() error { return q.do("flush") }
