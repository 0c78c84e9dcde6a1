package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// serveConfig serves what a configuration names; its paths are relative to the
// directory.
func serveConfig(t testing.TB, dir, config string, flags ...string) *server {
	t.Helper()
	path := filepath.Join(dir, "extentd.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--config", path}, flags...)
	return start(t, exec.Command(program, args...))
}

// graph is the graph of an image's top layer, from the node upwards.
func (s *server) graph(t testing.TB, name string) []graphNode {
	t.Helper()
	var img image
	s.getJSON(t, &img, imagePath(name, ""))
	return img.Layers[0].Graph
}

// counters are those of the one node of that kind.
func (s *server) counters(t testing.TB, name, kind string) map[string]int64 {
	t.Helper()
	for _, n := range s.graph(t, name) {
		if n.Kind == kind {
			return n.Counters
		}
	}
	t.Fatalf("%s has no %s", name, kind)
	return nil
}

func randomFile(t testing.TB, path string, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	fillRandom(source(t.Name()), p)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGraphMisaligned: without blocksize a request that is no multiple of the
// minimum is refused, and the node below is not asked; with it, it works, at the
// cost that stats shows.
func TestGraphMisaligned(t *testing.T) {
	dir := t.TempDir()
	const size = 256*kib + 100 // the tail is shorter than the minimum
	want := randomFile(t, filepath.Join(dir, "disk.raw"), size)
	randomFile(t, filepath.Join(dir, "other.raw"), size)
	s := serveConfig(t, dir, `
images:
  - name: strict
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{stats: {}}, {policy: {minimum: 4096}}]
  - name: smooth
    format: raw
    node: {file: {path: other.raw}}
    filters: [{stats: {}}, {policy: {minimum: 4096}}, {blocksize: {}}]
`, "--debug")
	before := s.counters(t, "strict", "stats")
	for _, r := range [][2]int64{{1, 4096}, {0, 4095}, {4096, 1}, {size - 101, 101}} {
		a, err := s.send(http.MethodGet, imagePath("strict", "/data"), nil, "Range", fmt.Sprintf("bytes=%d-%d", r[0], r[0]+r[1]-1))
		if err != nil {
			t.Fatal(err)
		}
		checkProblem(t, a.header, a.body, a.status, "misaligned")
		for what, err := range map[string]error{
			"put": s.put("strict", r[0], make([]byte, r[1]), false), "zero": s.zero("strict", r[0], r[1], false), "trim": s.trim("strict", r[0], r[1]),
		} {
			if !isRefusal(err, http.StatusBadRequest, "misaligned") {
				t.Errorf("%s of %d bytes at %d: %v", what, r[1], r[0], err)
			}
		}
	}
	after := s.counters(t, "strict", "stats")
	for _, op := range []string{"read", "write", "zero", "trim"} {
		if n := after[op+"_operations"] - before[op+"_operations"]; n != 0 {
			t.Errorf("%d of %s reached the node", n, op)
		}
	}
	for _, r := range [][2]int64{{0, 4096}, {256 * kib, 100}, {0, size}} { // the tail is an end
		if got, err := s.read("strict", r[0], r[1]); err != nil || firstDifference(got, want[r[0]:r[0]+r[1]]) >= 0 {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
	}
	if l := s.graph(t, "smooth"); l[3].Limits["minimum"] != 1 || l[2].Limits["minimum"] != 4096 {
		t.Errorf("the graph is %+v", l)
	}
	before = s.counters(t, "smooth", "stats")
	if _, err := s.read("smooth", 5000, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.put("smooth", 5000, []byte{1}, false); err != nil {
		t.Fatal(err)
	}
	after = s.counters(t, "smooth", "stats")
	for name, n := range map[string]int64{"read_operations": 2, "read_bytes": 8192, "write_operations": 1, "write_bytes": 4096} {
		if got := after[name] - before[name]; got != n {
			t.Errorf("a byte read and a byte written are %d %s, want %d", got, name, n)
		}
	}
}

// TestGraphDirect: past the page cache, at odd offsets, through blocksize; the
// file is what the model is.
func TestGraphDirect(t *testing.T) {
	dir, err := os.MkdirTemp(".", "direct-") // tmpfs may not have it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const size = 2*mib + 700
	model := randomFile(t, filepath.Join(dir, "disk.raw"), size)
	s := serveConfig(t, dir, `
images:
  - name: disk
    format: raw
    node: {file: {path: disk.raw, direct: true}}
    filters: [{blocksize: {}}]
  - name: bare
    format: raw
    node: {file: {path: bare.raw, direct: true}}
`, "--debug")
	randomFile(t, filepath.Join(dir, "bare.raw"), size)
	var bare image
	s.getJSON(t, &bare, imagePath("bare", ""))
	if n := bare.Limits["minimum"]; n != 512 && n != 4096 {
		t.Errorf("direct: the minimum is %d", n)
	}
	random := source(t.Name())
	for range 150 {
		off := random.Int64N(size)
		n := 1 + random.Int64N(min(size-off, 100*kib))
		switch random.IntN(4) {
		case 0:
			p := make([]byte, n)
			fillRandom(random, p)
			err = s.put("disk", off, p, false)
			copy(model[off:], p)
		case 1:
			err = s.zero("disk", off, n, random.IntN(2) == 0)
			clear(model[off : off+n])
		default:
			var got []byte
			if got, err = s.read("disk", off, n); err == nil {
				if i := firstDifference(got, model[off:off+n]); i >= 0 {
					t.Fatalf("byte %d differs", off+int64(i))
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush("disk"); err != nil {
		t.Fatal(err)
	}
	s.stop()
	got, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil || firstDifference(got, model) >= 0 {
		t.Errorf("the file differs: %v", err)
	}
}

// TestGraphVerbs: the local verbs see the same graph.
func TestGraphVerbs(t *testing.T) {
	dir := t.TempDir()
	randomFile(t, filepath.Join(dir, "disk.raw"), mib)
	config := `
images:
  - name: window
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{offset: {offset: 64KiB, length: 128KiB}}, {blocksize: {}}]
`
	s := serveConfig(t, dir, config)
	if kinds := kindsOf(s.graph(t, "window")); !slices.Equal(kinds, []string{"file", "offset", "blocksize"}) {
		t.Errorf("the graph is %v", kinds)
	}
	for _, args := range [][]string{{"map"}, {"info"}} {
		args = append(args, "--config", filepath.Join(dir, "extentd.yaml"), "--output", "json", "window")
		stdout, stderr, code := verb(t, "/", args...)
		if code != 0 || stdout == "" {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
}

func kindsOf(graph []graphNode) []string {
	var kinds []string
	for _, n := range graph {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}
