package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The images of these tests, and the commands that make them. The format of
// each is the last extension of its name.
var recipes = []struct {
	file     string
	commands []string
}{
	{"plain.qcow2", []string{
		"qemu-img create -q -f qcow2 plain.qcow2 4M",
		"qemu-io -f qcow2 -c write\u00a00\u00a064k -c write\u00a01M\u00a0100k -c write\u00a0-z\u00a02M\u00a0128k plain.qcow2",
	}},
	{"old.qcow2", []string{
		"qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M",
		"qemu-io -f qcow2 -c write\u00a0256k\u00a064k old.qcow2",
	}},
	{"over.qcow2", []string{ // longer than its backing
		"qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 over.qcow2 6M",
		"qemu-io -f qcow2 -c write\u00a032k\u00a04k -c write\u00a0-z\u00a01M\u00a064k -c write\u00a05M\u00a064k over.qcow2",
	}},
	{"sub/deep.qcow2", []string{
		"qemu-img create -q -f qcow2 -u -b ../over.qcow2 -F qcow2 sub/deep.qcow2 6M",
	}},
	{"named.qcow2", []string{
		"qemu-img create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=1,cluster_size=4096 named.qcow2 1M",
		"qemu-img bitmap --add -g 64k named.qcow2 one",
		"qemu-img bitmap --add --disable named.qcow2 two",
	}},
	{"snapshots.qcow2", []string{
		"qemu-img create -q -f qcow2 snapshots.qcow2 1M",
		"qemu-img snapshot -c first snapshots.qcow2",
		"qemu-io -f qcow2 -c write\u00a00\u00a01M snapshots.qcow2",
		"qemu-img snapshot -c a\u00a0second\u00a0one snapshots.qcow2",
	}},
	{"packed.qcow2", []string{
		"qemu-img convert -c -f qcow2 -O qcow2 plain.qcow2 packed.qcow2",
		"qemu-io -f qcow2 -c write\u00a064k\u00a064k packed.qcow2",
	}},
	{"prepared.qcow2", []string{
		"qemu-img create -q -f qcow2 -o preallocation=metadata prepared.qcow2 1M",
		"qemu-io -f qcow2 -c write\u00a064k\u00a064k prepared.qcow2",
	}},
	{"external.qcow2", []string{
		"qemu-img create -q -f qcow2 -o data_file=external.data,data_file_raw=on external.qcow2 1M",
		"qemu-io -f qcow2 -c write\u00a0128k\u00a064k external.qcow2",
	}},
	{"empty.qcow2", []string{"qemu-img create -q -f qcow2 empty.qcow2 0"}},
	{"disk.raw", []string{
		"qemu-img create -q -f raw disk.raw 4M",
		"qemu-io -f raw -c write\u00a01M\u00a064k disk.raw",
	}},
	{"hole.img", []string{"qemu-img create -q -f raw hole.img 1M"}},
	{"over-raw.qcow2", []string{
		"qemu-img create -q -f qcow2 -b disk.raw -F raw over-raw.qcow2",
		"qemu-io -f qcow2 -c write\u00a01088k\u00a064k over-raw.qcow2",
	}},
	{"secret.qcow2", []string{
		"qemu-img create -q -f qcow2 --object secret,id=s,data=letmein -o encrypt.format=aes,encrypt.key-secret=s secret.qcow2 1M",
		"qemu-io --object secret,id=s,data=letmein -c write\u00a00\u00a064k --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=secret.qcow2",
	}},
}

// makeImages makes them in a new working directory.
func makeImages(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, r := range recipes {
		for _, c := range r.commands {
			words := strings.Fields(strings.ReplaceAll(c, "\u00a0", "\x00"))
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "\x00", " ")
			}
			qemu(t, words...)
		}
	}
}

func formatOf(file string) string {
	if strings.HasSuffix(file, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}

func TestVerbsAgreeWithQEMU(t *testing.T) {
	makeImages(t)
	for _, r := range recipes {
		t.Run(r.file, func(t *testing.T) {
			mapAgrees(t, r.file)
			infoAgrees(t, r.file)
		})
	}
}

// succeed runs a command line that must.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := extentd(t, args...)
	if code != 0 || errs != "" {
		t.Fatalf("%v: exit code %d: %s", args, code, errs)
	}
	return out
}

func mapAgrees(t *testing.T, file string) {
	t.Helper()
	out := succeed(t, "map", "--backing-dir", ".", "--output", "json", file)
	human := succeed(t, "map", "--backing-dir", ".", file)
	if file == "secret.qcow2" { // qemu-img wants the key for it
		want := `[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false},`
		if !strings.HasPrefix(out, want) {
			t.Error(out)
		}
		if !strings.Contains(human, "\n0               0x10000         encrypted") {
			t.Error(human)
		}
		return
	}
	// The text is the same, but for the member that QEMU 8.2 added.
	plain := strings.NewReplacer(`, "compressed": true`, "", `, "compressed": false`, "").Replace(out)
	if diff := cmp.Diff(qemu(t, "qemu-img", "map", "--output=json", "-f", formatOf(file), file), plain); diff != "" {
		t.Errorf("the map differs from qemu-img (-want +got):\n%s", diff)
	}
	var entries []map[string]any
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	compressed := false
	for _, e := range entries {
		is, ok := e["compressed"].(bool)
		_, at := e["offset"]
		if !ok || is != (e["data"].(bool) && !at) {
			t.Errorf("compressed in %v", e)
		}
		compressed = compressed || is
	}
	if compressed != (file == "packed.qcow2") {
		t.Errorf("compressed data is %v", compressed)
	}
	if compressed { // qemu-img gives up
		if !strings.Contains(human, "compressed") {
			t.Errorf("no word of compression:\n%s", human)
		}
		return
	}
	want := strings.ReplaceAll(qemu(t, "qemu-img", "map", "-f", formatOf(file), file), "sub/../", "")
	if diff := cmp.Diff(want, human); diff != "" {
		t.Errorf("the map for people differs (-want +got):\n%s", diff)
	}
}

func infoAgrees(t *testing.T, file string) {
	t.Helper()
	parse := func(text string) (m map[string]any) {
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return m
	}
	want := qemu(t, "qemu-img", "info", "--output=json", "-f", formatOf(file), file)
	if diff := cmp.Diff(parse(want), parse(succeed(t, "info", "--output", "json", file))); diff != "" {
		t.Errorf("info differs from qemu-img (-want +got):\n%s", diff)
	}
	want = qemu(t, "qemu-img", "info", "-f", formatOf(file), file)
	if diff := cmp.Diff(want, succeed(t, "info", file)); diff != "" {
		t.Errorf("info for people differs (-want +got):\n%s", diff)
	}
}

// TestInfoWithoutBacking: what is wrong with a chain can be seen.
func TestInfoWithoutBacking(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"missing.qcow2", "/etc/passwd", "nbd://127.0.0.1/x", "json:{\"driver\":\"raw\"}"} {
		qemu(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", "over.qcow2", "1M")
		out, errs, code := extentd(t, "info", "--output", "json", "over.qcow2")
		var info struct {
			Backing string `json:"backing-filename"`
		}
		if err := json.Unmarshal([]byte(out), &info); code != 0 || err != nil || info.Backing != name {
			t.Errorf("info: exit code %d, %v, %s\n%s", code, err, errs, out)
		}
		out, errs, code = extentd(t, "map", "over.qcow2")
		if code != 1 || out != "" || strings.Count(errs, "\n") != 1 {
			t.Errorf("map: exit code %d, %q, %q", code, out, errs)
		}
	}
}

func TestMapFollowsInsideOnly(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, sub := range []string{"bases", "overs"} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "bases/b.qcow2", "1M")
	qemu(t, "qemu-io", "-f", "qcow2", "-c", "write 0 64k", "bases/b.qcow2")
	for _, name := range []string{"../bases/b.qcow2", filepath.Join(dir, "bases/b.qcow2")} {
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", "overs/o.qcow2")
		if out, errs, code := extentd(t, "map", "overs/o.qcow2"); code != 1 || out != "" || !strings.Contains(errs, "refused") {
			t.Errorf("exit code %d, %q, %q", code, out, errs)
		}
		out, errs, code := extentd(t, "map", "--backing-dir", "bases", "overs/o.qcow2")
		if code != 0 || !strings.Contains(out, "bases/b.qcow2\n") {
			t.Errorf("exit code %d, %q, %q", code, out, errs)
		}
	}
}

func TestRawStaysRaw(t *testing.T) {
	t.Chdir(t.TempDir())
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", "disguised.raw", "1M")
	out, errs, code := extentd(t, "info", "disguised.raw")
	if code != 0 || !strings.Contains(out, "file format: raw\n") || strings.Contains(out, "passwd") {
		t.Errorf("exit code %d, %s\n%s", code, errs, out)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 999: "999 B", 1000: "0.977 KiB", 1023: "0.999 KiB", 1024: "1 KiB", 1536: "1.5 KiB",
		352256: "344 KiB", 1 << 20: "1 MiB", 1000 << 20: "0.977 GiB", 1 << 40: "1 TiB", 3 << 60: "3 EiB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain name":      "plain name",
		"ünïcödé":         "ünïcödé",
		"\x1b[2Jgone\n":   `\x1b[2Jgone\n`,
		"\xff":            "\ufffd",
		"right\u202eleft": `right\u202eleft`,
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
}
