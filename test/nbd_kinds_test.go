package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDKinds compares every kind of image over NBD with the local one: what
// qemu-img and nbdinfo say of it, its bytes, and its map.
func TestNBDKinds(t *testing.T) {
	s := serve(t, served, overNBD("--debug")...) // every layer's answer is checked as well
	eachKind(t, func(t *testing.T, k *kind) {
		if k.unreadable != "" {
			notServed(t, s, k)
			return
		}
		for _, extended := range []bool{false, true} {
			ownClient(t, s, k, extended)
		}
		if k.windows != nil {
			for _, w := range k.windows {
				nbdWindow(t, s, k, w)
			}
			return
		}
		nbdInfo(t, s, k)
		nbdContent(t, s, k)
		nbdMaps(t, s, k)
	})
}

// sameAsMap compares what base:allocation is said to be of a window with our own
// map. What a file says of its holes depends on when it is asked: what is read
// may be data from then on. So that a difference counts when it stays.
func sameAsMap(t *testing.T, s *server, k *kind, what string, w window, said func() []flagged) {
	t.Helper()
	var diff string
	for range 3 {
		got := clipFlagged(said(), w.offset, w.offset+w.length)
		want := clipFlagged(allocationOf(s.stream(t, k.file)), w.offset, w.offset+w.length)
		if diff = difference(got, want); diff == "" {
			return
		}
	}
	t.Fatalf("%s differs from our map: %s", what, diff)
}

// notServed: what cannot be read is listed, and is no export to choose.
func notServed(t *testing.T, s *server, k *kind) {
	t.Helper()
	c := dialNBD(t, s.nbd[0])
	for _, o := range []wire.Option{wire.OptInfo, wire.OptGo} {
		if r := c.last(t, o, wire.AppendGo(nil, &wire.GoRequest{Name: k.file})); !r.IsError() {
			t.Fatalf("option %d of an encrypted image: %#x", o, uint32(r))
		}
	}
	if _, _, err := tool("nbdinfo", "--size", s.uri(k.file)); err == nil {
		t.Error("nbdinfo opens an encrypted image")
	}
	must(t, c.open(kindNamed(t, "v3").file, false)) // the connection goes on
}

// ownClient compares bytes and maps as our own client sees them: extended
// headers are more than the tools here ask for.
func ownClient(t *testing.T, s *server, k *kind, extended bool) {
	t.Helper()
	c := s.openNBD(t, k.file, extended)
	if int64(c.info.Size) != k.size {
		t.Fatalf("size %d, want %d", c.info.Size, k.size)
	}
	windows := k.windows
	if windows == nil {
		windows = []window{{0, k.size}}
	}
	for _, w := range windows {
		w.length = min(w.length, k.size-w.offset)
		if w.length == 0 {
			continue
		}
		got, err := c.readAll(w.offset, w.length)
		must(t, err)
		if i := firstDifference(got, k.read(t, w.offset, w.length)); i >= 0 {
			t.Fatalf("byte %d differs (extended headers: %v)", w.offset+int64(i), extended)
		}
		if extended {
			w = window{0, k.size} // even where it is 2 EiB
		}
		sameAsMap(t, s, k, "base:allocation", w, func() []flagged {
			status, err := c.statusOf(w.offset, w.length)
			must(t, err)
			depths(t, s, k, status[wire.AllocationDepth])
			return status[wire.BaseAllocation]
		})
	}
}

// depths verifies allocation depths against the layers of our map: the bytes of a
// layer bear its number. What is in no layer is 0, or the number of a layer that
// ends before, which TestNBDKinds compares with qemu-nbd's answer.
func depths(t *testing.T, s *server, k *kind, got []flagged) {
	t.Helper()
	for _, e := range s.stream(t, k.file) {
		for _, f := range clipFlagged(got, *e.Offset, e.end()) {
			if want := uint64(*e.Depth) + 1; *e.Local && f.Flags != want {
				t.Fatalf("%s: depth %d at %d, want %d: %v", k.name, f.Flags, f.Start, want, e)
			}
		}
	}
}

// nbdWindow compares a part of what is too large to be compared as a whole.
func nbdWindow(t *testing.T, s *server, k *kind, w window) {
	t.Helper()
	w.length = min(w.length, k.size-w.offset)
	path := filepath.Join(scratch, fmt.Sprintf("window-%d.raw", converted.Add(1)))
	defer func() { _ = os.Remove(path) }()
	source := fmt.Sprintf("driver=raw,offset=%d,size=%d,%s", w.offset, w.length, qemuNode("file", s, k.file))
	mustTool(t, "qemu-img", "convert", "-t", "unsafe", "-O", "raw", "--image-opts", source, path)
	got, err := os.ReadFile(path)
	must(t, err)
	if i := firstDifference(got, k.read(t, w.offset, w.length)); i >= 0 {
		t.Fatalf("byte %d differs as qemu-img convert reads it over NBD", w.offset+int64(i))
	}
	sameAsMap(t, s, k, "qemu-img map over NBD", w, func() []flagged {
		return qemuNBDMap(t, s.uri(k.file), fmt.Sprint("--start-offset=", w.offset), fmt.Sprint("--max-length=", w.length))
	})
}

// qemuNode is an export as a node of QEMU's, its options beginning with prefix.
func qemuNode(prefix string, s *server, export string) string {
	return fmt.Sprintf("%[1]s.driver=nbd,%[1]s.server.type=unix,%[1]s.server.path=%[2]s,%[1]s.export=%[3]s", prefix, s.socket(), export)
}

// nbdInfo compares what is told of an export.
func nbdInfo(t *testing.T, s *server, k *kind) {
	t.Helper()
	var info struct {
		Size   int64  `json:"virtual-size"`
		Format string `json:"format"`
	}
	out := mustTool(t, "qemu-img", "info", "--output=json", "-f", "raw", s.uri(k.file))
	if err := json.Unmarshal([]byte(out), &info); err != nil || info.Format != "raw" || info.Size != (k.size+511)&^511 {
		t.Errorf("qemu-img info: %v\n%s", err, out)
	}
	e := nbdExport(t, s.uri(k.file))
	var limits image
	s.getJSON(t, &limits, imagePath(k.file, ""))
	for name, want := range map[string]any{
		"export-name": k.file, "export-size": k.size, "description": formatOf(k.file) + " image",
		"is_read_only": limits.ReadOnly, "can_multi_conn": true, "can_flush": true, "can_fua": true, "can_df": true, "can_cache": true,
		"can_trim": !limits.ReadOnly, "can_zero": !limits.ReadOnly, "can_fast_zero": !limits.ReadOnly,
		"block_size_minimum": limits.Limits["minimum"], "block_size_preferred": limits.Limits["preferred"],
		"block_size_maximum": min(limits.Limits["max_data"], 32*mib),
		"contexts":           nbdContexts(t, s, k.file),
	} {
		if got := e[name]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("nbdinfo: %s is %v, want %v", name, got, want)
		}
	}
}

// nbdContexts are those of an export: with one for each bitmap that can be trusted.
func nbdContexts(t *testing.T, s *server, file string) []any {
	t.Helper()
	var found struct {
		Qcow2 struct {
			Bitmaps []struct {
				Name         string
				Inconsistent bool
			}
		}
	}
	_, body := s.expect(t, http.StatusOK, imagePath(file, ""))
	must(t, json.Unmarshal(body, &found))
	contexts := []any{wire.BaseAllocation, wire.AllocationDepth}
	for _, b := range found.Qcow2.Bitmaps {
		if !b.Inconsistent {
			contexts = append(contexts, wire.DirtyBitmap+b.Name)
		}
	}
	return contexts
}

// nbdExport is what `nbdinfo --json` says of an export.
func nbdExport(t testing.TB, args ...string) map[string]any {
	t.Helper()
	out := mustTool(t, "nbdinfo", append([]string{"--json", "--no-content"}, args...)...)
	return nbdExports(t, out)[0]
}

func nbdExports(t testing.TB, out string) []map[string]any {
	t.Helper()
	var v struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil || v.Protocol != "newstyle-fixed" || !v.Structured || len(v.Exports) == 0 {
		t.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	return v.Exports
}

// nbdContent compares bytes as QEMU reads them over NBD.
func nbdContent(t *testing.T, s *server, k *kind) {
	t.Helper()
	mustTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri(k.file), k.expected)
	path := filepath.Join(scratch, fmt.Sprintf("copied-%d.raw", converted.Add(1)))
	defer func() { _ = os.Remove(path) }()
	mustTool(t, "qemu-img", "convert", "-t", "unsafe", "-m", "4", "-W", "-f", "raw", "-O", "raw", s.uri(k.file), path)
	got, err := os.ReadFile(path)
	must(t, err)
	if i := firstDifference(got[:min(k.size, int64(len(got)))], k.read(t, 0, k.size)); i >= 0 || int64(len(got)) != (k.size+511)&^511 {
		t.Fatalf("byte %d of %d differs as qemu-img convert reads it over NBD", i, len(got))
	}
}

// nbdMaps compares maps: ours with what QEMU and libnbd are told, and depths with
// what qemu-nbd tells.
func nbdMaps(t *testing.T, s *server, k *kind) {
	t.Helper()
	whole := window{0, k.size}
	sameAsMap(t, s, k, "qemu-img map over NBD", whole, func() []flagged { return qemuNBDMap(t, s.uri(k.file)) })
	if k.size == 0 {
		return
	}
	sameAsMap(t, s, k, "nbdinfo --map", whole, func() []flagged { return nbdMap(t, wire.BaseAllocation, s.uri(k.file)) })
	ours := nbdMap(t, wire.AllocationDepth, s.uri(k.file))
	theirs := nbdMap(t, wire.AllocationDepth, "--", "[", "qemu-nbd", "-r", "-A", "-f", formatOf(k.file), k.file, "]")
	sameFlags(t, "nbdinfo --map=qemu:allocation-depth", ours, clipFlagged(theirs, 0, k.size))
}

// qemuNBDMap is what `qemu-img map` makes of base:allocation.
func qemuNBDMap(t testing.TB, uri string, args ...string) []flagged {
	t.Helper()
	var lines []mapLine
	out := mustTool(t, "qemu-img", append(append([]string{"map", "--output=json"}, args...), "-f", "raw", uri)...)
	if err := json.Unmarshal([]byte(out), &lines); err != nil {
		t.Fatalf("qemu-img map: %v\n%s", err, out)
	}
	var list []flagged
	for _, l := range lines {
		var flags uint64
		if !l.Data {
			flags |= uint64(wire.StateHole)
		}
		if l.Zero {
			flags |= uint64(wire.StateZero)
		}
		list = append(list, flagged{l.Start, l.Length, flags})
	}
	return joinFlagged(list)
}
