package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestVerbsOfGraphs: info, map and check open the image that a server would.
func TestVerbsOfGraphs(t *testing.T) {
	path, _ := writeConfig(t, `
images:
  - name: window
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{policy: {minimum: 512}}, {offset: {offset: 4KiB, length: 8KiB}}]
  - {name: second.raw, node: {file: {path: second.raw}}}
  - {name: zeros, format: raw, node: {null: {size: 1MiB}}}
`)
	out, errs, code := extentd(t, "info", "--config", path, "window")
	want := `image: window
file format: raw
virtual size: 8 KiB (8192 bytes)
`
	graph := `graph, from the node upwards:
    disk.raw: kind file, minimum 1, preferred 4KiB, max_data 64MiB, max_trim 4294967295, max_zero 4294967295, max_cache 64MiB
    policy(disk.raw): kind policy, minimum 512, preferred 4KiB, max_data 64MiB, max_trim 4294966784, max_zero 4294966784, max_cache 64MiB
    offset(policy(disk.raw)): kind offset, minimum 512, preferred 4KiB, max_data 64MiB, max_trim 4294966784, max_zero 4294966784, max_cache 64MiB
`
	if code != 0 || errs != "" || !strings.HasPrefix(out, want) || !strings.HasSuffix(out, graph) {
		t.Errorf("info: exit code %d, %s\n%s", code, errs, out)
	}

	out, errs, code = extentd(t, "info", "--output", "json", "--config", path, "window")
	var info struct {
		Size     int64 `json:"virtual-size"`
		Filename string
		Graph    []nodeInfo
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil || code != 0 || info.Size != 8192 || info.Filename != "window" {
		t.Fatalf("info: exit code %d, %s, %v\n%s", code, errs, err, out)
	}
	var nodes []string
	for _, n := range info.Graph {
		nodes = append(nodes, n.Kind+" "+n.Node)
	}
	if diff := cmp.Diff([]string{"file disk.raw", "policy policy(disk.raw)", "offset offset(policy(disk.raw))"}, nodes); diff != "" {
		t.Error(diff)
	}

	out, errs, code = extentd(t, "map", "--config", path, "window")
	if want := "0               0x2000          0               offset(policy(disk.raw))\n"; code != 0 || !strings.HasSuffix(out, want) {
		t.Errorf("map: exit code %d, %s\n%s", code, errs, out)
	}
	out, errs, code = extentd(t, "map", "--config", path, "second.raw")
	if want := "0               0x100000        0               " + filepath.Dir(path) + "/second.raw\n"; code != 0 || !strings.HasSuffix(out, want) {
		t.Errorf("map: exit code %d, %s\n%s", code, errs, out)
	}
	out, errs, code = extentd(t, "map", "--output", "json", "--config", path, "zeros")
	if want := `[{ "start": 0, "length": 1048576, "depth": 0, "present": true, "zero": true, "data": false, "compressed": false}]` + "\n"; code != 0 || out != want {
		t.Errorf("map: exit code %d, %s\n%s", code, errs, out)
	}
	if _, errs, code := extentd(t, "check", "--config", path, "window"); code != exitUnsupported {
		t.Errorf("check of a raw image: exit code %d, %s", code, errs)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"info", "--config", path, "door"}, "door"},
		{[]string{"info", "--config", path, "--format", "raw", "window"}, "--format"},
		{[]string{"map", "--config", path + "x", "window"}, "no such file"},
		{[]string{"create", "--config", path, "window"}, "unknown flag"},
	} {
		if out, errs, code := extentd(t, test.args...); code != 1 || out != "" || !strings.Contains(errs, test.want) {
			t.Errorf("%v: exit code %d, %q, %q, want %q", test.args, code, out, errs, test.want)
		}
	}
}
