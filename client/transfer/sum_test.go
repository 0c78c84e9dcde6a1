package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/extentd/extentd/client/transfer"
)

// huge is zeros: a source and a target that hold nothing.
type huge struct {
	size  int64
	zero  func()
	mu    sync.Mutex
	calls int
}

func (h *huge) Size() int64             { return h.size }
func (h *huge) Limits() transfer.Limits { return transfer.Limits{} }

func (h *huge) Extents(_ context.Context, off, n int64) iter.Seq2[transfer.Extent, error] {
	return func(yield func(transfer.Extent, error) bool) {
		yield(transfer.Extent{Offset: off, Length: n, Zero: true}, nil)
	}
}
func (h *huge) ReadAt(context.Context, []byte, int64) error  { return h.call() }
func (h *huge) WriteAt(context.Context, []byte, int64) error { return h.call() }
func (h *huge) Unchanged(context.Context) error              { return nil }
func (h *huge) Flush(context.Context) error                  { return nil }

func (h *huge) Zero(context.Context, int64, int64) error {
	if h.zero != nil {
		h.zero()
	}
	return h.call()
}

func (h *huge) call() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	return nil
}

// The line in the package's comment computes the checksum.
func TestSumByShell(t *testing.T) {
	for _, size := range []int{0, 1, mib - 1, mib, 3*mib + 17} {
		data, extents := content(rand.New(rand.NewPCG(uint64(size), 3)), size)
		path := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		script := "split -b 1M --filter='sha256sum | cut -c-64 | xxd -r -p' disk.raw | sha256sum"
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = filepath.Dir(path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: apt-get install coreutils xxd\n%s", err, out)
		}
		src := &source{data: data, extents: extents, chance: newChance(0)}
		result, err := transfer.Read(t.Context(), src, int64(size), transfer.Options{})
		if err != nil || result.Sum != transfer.SumName+strings.Fields(string(out))[0] || result.Sum != sum(data) {
			t.Errorf("%d bytes: %s, %v, but the shell says %s", size, result.Sum, err, out)
		}
		if doc, err := os.ReadFile("doc.go"); err != nil || !bytes.Contains(doc, []byte(script)) {
			t.Errorf("the comment of the package has another line: %v", err)
		}
	}
}

func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := transfer.State{
		Source: transfer.Endpoint{Name: "a", Size: 5, Tag: "x"}, Target: transfer.Endpoint{Name: "b", Size: 5},
		Point: transfer.Point{Offset: mib, Samples: transfer.Samples{Seen: 1, Some: []transfer.Sample{{Length: 5}}}},
	}
	for range 2 {
		if err := s.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := transfer.LoadState(path)
	if err != nil || got.Point.Offset != mib || got.Source != s.Source || len(got.Point.Samples.Some) != 1 {
		t.Errorf("%v, %+v", err, got)
	}
	for _, c := range []struct {
		source, target transfer.Endpoint
		want           error
		text           string
	}{
		{s.Source, s.Target, nil, ""},
		{transfer.Endpoint{Name: "a", Size: 5, Tag: "y"}, s.Target, transfer.ErrChanged, ""},
		{transfer.Endpoint{Name: "a", Size: 6, Tag: "x"}, s.Target, transfer.ErrChanged, ""},
		{transfer.Endpoint{Name: "c", Size: 5, Tag: "x"}, s.Target, nil, "one of a"},
		{s.Source, transfer.Endpoint{Name: "b", Size: 7}, transfer.ErrOtherTarget, ""},
		{s.Source, transfer.Endpoint{Name: "c", Size: 5}, nil, "one to b"},
	} {
		err := got.CheckSame(c.source, c.target)
		if (err == nil) != (c.want == nil && c.text == "") || c.want != nil && !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, text := range []string{"", "{}", `{"version":2}`, `{"version":1,"more":5}`, `{"version":1,"point":{"samples":{"some":[{"digest":"00"}]}}}`, strings.Repeat(" ", 2*mib)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := transfer.LoadState(path); err == nil {
			t.Errorf("%.50q is a state", text)
		}
	}
	if _, err := transfer.LoadState(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A target that is not what the copy left is recognised.
func TestSamples(t *testing.T) {
	c := newChance(1)
	data := bytes.Repeat([]byte{7}, 9*mib+5)
	src := &source{data: data, extents: []transfer.Extent{{Length: int64(len(data))}}, chance: c}
	dst := newTarget(len(data), 0, c)
	var point transfer.Point
	_, err := transfer.Copy(t.Context(), src, dst, transfer.Options{Save: func(p transfer.Point) error { point = p; return nil }})
	if err != nil || point.Samples.Match(t.Context(), dst) != nil {
		t.Fatal(err)
	}
	dst.now[len(data)-1]++
	if err := point.Samples.Match(t.Context(), dst); !errors.Is(err, transfer.ErrOtherTarget) {
		t.Error(err)
	}
}
