package storagetest_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

// mistakes is the environment variable that makes TestWithMistake test
// something with that mistake. It runs in a process of its own, because it must
// fail.
const mistakes = "STORAGETEST_MISTAKE"

// A mistaken file does all right but for what its name says.
type mistaken struct {
	*storagetest.MemFile
	mistake string
}

func (m *mistaken) is(mistake string) bool { return m.mistake == mistake }

func (m *mistaken) Size(ctx context.Context) (int64, error) {
	size, err := m.MemFile.Size(ctx)
	if m.is("size") {
		size++
	}
	return size, err
}

func (m *mistaken) Limit(_ context.Context, which storage.Limit) (int64, error) {
	if m.is("limits") && which == storage.Minimum {
		return 3, nil
	}
	return 0, nil
}

func (m *mistaken) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if m.is("context of reads") {
		ctx = context.WithoutCancel(ctx)
	}
	if m.is("panics at overflow") && off+int64(len(p)) < 0 && off > 0 {
		panic("overflow")
	}
	n, err := m.MemFile.ReadAt(ctx, p, off)
	switch {
	case m.is("a wrong byte") && off <= 4096 && off+int64(n) > 4096:
		p[4096-off]++
	case m.is("no end") && err == io.EOF: //nolint:errorlint // must be bare
		return len(p), nil
	case m.is("another end") && err == io.EOF: //nolint:errorlint // must be bare
		err = io.ErrUnexpectedEOF
	case m.is("writes past the buffer") && cap(p) > len(p):
		p[:len(p)+1][len(p)] = 0
	}
	return n, err
}

func (m *mistaken) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	switch {
	case m.is("context of extents"):
		ctx = context.WithoutCancel(ctx)
	case m.is("begins before") && off > 0:
		off--
	case m.is("empty ranges") && off >= 0 && n > 1<<40:
		n = 1
	}
	var l storage.ExtentList
	if err := m.MemFile.Extents(ctx, off, n, &l); err != nil {
		return err
	}
	for i := range l.Len() {
		e := *l.At(i)
		switch {
		case m.is("zeros that are none"):
			e.Status |= storage.Zero
		case m.is("local"):
			e.Status |= storage.Local
		case m.is("elsewhere in the file"):
			e.NodeOffset++
		case m.is("past the end") && i == l.Len()-1:
			e.Length++
		}
		if err := into.Add(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *mistaken) Close() error {
	if m.is("open after close") {
		return nil
	}
	return m.MemFile.Close()
}

// A mistakenMapper is a raw image that does all right but for what its name says.
type mistakenMapper struct {
	*raw.Image
	mistake string
}

func (m *mistakenMapper) is(mistake string) bool { return m.mistake == mistake }

func (m *mistakenMapper) Size() int64 {
	if m.is("mapper: size") {
		return m.Image.Size() + 1
	}
	return m.Image.Size()
}

func (m *mistakenMapper) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	lo, hi := into.Window()
	switch {
	case m.is("mapper: no range") && off >= 0 && off < m.Size() && n > m.Size()-off:
		n = m.Size() - off
	case m.is("mapper: fetch of nothing") && n == 0:
		return nil
	case m.is("mapper: ends early") && n > 1:
		n--
		into.ResetWindow(off, off+n)
	}
	var l storage.ExtentList
	l.ResetWindow(lo, hi)
	if err := m.Image.Fetch(ctx, off, n, &l); err != nil {
		return err
	}
	for i := range l.Len() {
		e := *l.At(i)
		switch {
		case m.is("mapper: a bug in the table"):
			e.Status &^= storage.Alloc | storage.Zero
		case m.is("mapper: one off") && e.Offset > 0 && e.Status.Has(storage.Alloc):
			e.NodeOffset--
		case m.is("mapper: zeros that are none"):
			e.Status |= storage.Zero
		case m.is("mapper: defers") && e.Status.Has(storage.Alloc):
			e.Status &^= storage.Local
		case m.is("mapper: depends on the question") && n == 1:
			e.Flags = storage.Writable
		}
		if err := into.Add(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *mistakenMapper) Close() error {
	if m.is("mapper: open after close") {
		return nil
	}
	return m.Image.Close()
}

func TestWithMistake(t *testing.T) {
	mistake := os.Getenv(mistakes) // without one, everything passes
	if !strings.HasPrefix(mistake, "mapper") {
		storagetest.TestFile(t, 1, func(_ *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			return &mistaken{storagetest.NewMemFile(content, holes...), mistake}
		})
	}
	storagetest.TestMapper(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.Mapper {
		node := storage.NewNode("node", storagetest.NewMemFile(content, holes...), storage.NodeOptions{})
		i, err := raw.New(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		return &mistakenMapper{i, mistake}
	})
}

// TestSuiteFindsMistakes: the suite fails for each.
func TestSuiteFindsMistakes(t *testing.T) {
	for _, mistake := range []string{
		"size", "limits", "context of reads", "panics at overflow", "a wrong byte", "no end", "another end", "writes past the buffer",
		"context of extents", "begins before", "empty ranges", "zeros that are none", "local", "elsewhere in the file", "past the end",
		"open after close",
		"mapper: size", "mapper: no range", "mapper: fetch of nothing", "mapper: ends early", "mapper: a bug in the table",
		"mapper: one off", "mapper: zeros that are none", "mapper: defers", "mapper: depends on the question", "mapper: open after close",
	} {
		t.Run(mistake, func(t *testing.T) {
			t.Parallel()
			findMistake(t, "TestWithMistake", mistake)
		})
	}
}

// findMistake runs a test with a mistake, which must make it fail.
func findMistake(t *testing.T, test, mistake string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.failfast", "-rapid.nofailfile")
	cmd.Env = append(os.Environ(), mistakes+"="+mistake)
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("FAIL")) && !bytes.Contains(out, []byte("panic: overflow")) {
		t.Fatalf("the suite finds nothing: %v: %s", err, out)
	}
	t.Logf("found: %.1000s", out)
}
