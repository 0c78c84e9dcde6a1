package test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMapVerb compares `extentd map --output json` with qemu-img map.
func TestMapVerb(t *testing.T) {
	eachKind(t, func(t *testing.T, k *kind) {
		if k.windows != nil {
			return // QEMU cannot: TestMap compares their windows
		}
		out, errs, code := verb(t, served, "map", "--output", "json", k.file)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		var got []mapLine
		if err := decodeStrictly([]byte(out), &got); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if diff := difference(normal(got), normal(k.lines(t))); diff != "" {
			t.Errorf("differs from qemu-img map: %s", diff)
		}
	})
}

// normal is a map without what one QEMU says and another does not, and
// with neighbours that agree merged.
func normal(lines []mapLine) []normalLine {
	var out []normalLine
	for _, l := range lines {
		line := normalLine{l.span(), l.Data}
		if n := len(out); n > 0 && line.follows(out[n-1].span) && line.data == out[n-1].data {
			out[n-1].Length += l.Length
			continue
		}
		out = append(out, line)
	}
	return out
}

type normalLine struct {
	span
	data bool
}

// TestInfoVerb compares `extentd info --output json` with qemu-img info: what
// both say is the same, and what matters is there.
func TestInfoVerb(t *testing.T) {
	eachKind(t, func(t *testing.T, k *kind) {
		out, errs, code := verb(t, served, "info", "--output", "json", k.file)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		want := qemuInfo(t, served, k.file)
		if formatOf(k.file) == "raw" {
			want["virtual-size"] = float64(k.size)
		}
		sameMembers(t, "", got, want)
		paths := []string{"filename", "format", "virtual-size", "actual-size", "dirty-flag"}
		if k.file != "" && formatOf(k.file) == "qcow2" {
			paths = append(paths, "cluster-size", "backing-filename", "backing-filename-format", "full-backing-filename",
				"snapshots", "format-specific.type", "format-specific.data.compat", "format-specific.data.refcount-bits",
				"format-specific.data.lazy-refcounts", "format-specific.data.corrupt", "format-specific.data.extended-l2",
				"format-specific.data.compression-type", "format-specific.data.data-file",
				"format-specific.data.data-file-raw", "format-specific.data.bitmaps", "encrypted")
		}
		for _, path := range paths {
			a, b := member(got, path), member(want, path)
			if (a == nil) != (b == nil) {
				t.Errorf("%s: %v, but qemu-img says %v", path, a, b)
			}
		}
	})
}

func member(v map[string]any, path string) any {
	first, rest, more := strings.Cut(path, ".")
	if !more {
		return v[first]
	}
	inner, _ := v[first].(map[string]any)
	return member(inner, rest)
}

// sameMembers compares the members that both have.
func sameMembers(t *testing.T, path string, got, want map[string]any) {
	t.Helper()
	for name, value := range got {
		other, ok := want[name]
		if !ok {
			continue
		}
		a, isObject := value.(map[string]any)
		b, otherIsObject := other.(map[string]any)
		if isObject && otherIsObject {
			sameMembers(t, path+name+".", a, b)
			continue
		}
		if diff := cmp.Diff(other, value); diff != "" {
			t.Errorf("%s%s differs from qemu-img info (-want +got):\n%s", path, name, diff)
		}
	}
}

// TestVerbs: what they print for people, and how they fail.
func TestVerbs(t *testing.T) {
	k := kindNamed(t, "v3")
	out, errs, code := verb(t, served, "info", k.file)
	if code != 0 || !strings.Contains(out, "qcow2") || !strings.Contains(out, "8388608") {
		t.Errorf("info: exit code %d\n%s%s", code, out, errs)
	}
	if out, errs, code = verb(t, served, "map", k.file); code != 0 || !strings.Contains(out, k.file) {
		t.Errorf("map: exit code %d\n%s%s", code, out, errs)
	}
	if out, errs, code = verb(t, served, "version"); code != 0 || !strings.Contains(out, "extentd") {
		t.Errorf("version: exit code %d\n%s%s", code, out, errs)
	}
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	m.raw("-truncated.qcow2", 20)
	m.raw("-disk", mib)
	inner := m.create(".qcow2", mib)
	m.run("mkdir", "elsewhere")
	m.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(dir, inner), "elsewhere/over.qcow2")
	for _, test := range []struct {
		args []string
		code int
	}{
		{[]string{"info", "missing.qcow2"}, 1},
		{[]string{"info", "x-truncated.qcow2"}, 1},
		{[]string{"map", "x-truncated.qcow2"}, 1},
		{[]string{"info", "--format", "raw", "x-truncated.qcow2"}, 0},
		{[]string{"map", "--format", "raw", "x-disk"}, 0},
		{[]string{"map", "x-disk"}, 1}, // never probed
		{[]string{"map", "elsewhere/over.qcow2"}, 1},
		{[]string{"map", "--backing-dir", ".", "elsewhere/over.qcow2"}, 0},
	} {
		out, errs, code := verb(t, dir, test.args...)
		if code != test.code || (code != 0) != (errs != "") {
			t.Errorf("%v: exit code %d, want %d\n%s%s", test.args, code, test.code, out, errs)
		}
	}
}
