package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A copyResult is what `extentd copy --output json` says.
type copyResult struct {
	Source   string  `json:"source"`
	Target   string  `json:"target"`
	Size     int64   `json:"size"`
	Copied   int64   `json:"copied"`
	Skipped  int64   `json:"skipped"`
	Seconds  float64 `json:"seconds"`
	Checksum string  `json:"checksum"`
	Verified bool    `json:"verified"`
	Resumed  bool    `json:"resumed"`
}

// copyImage copies, and wants success.
func copyImage(t testing.TB, dir string, args ...string) copyResult {
	t.Helper()
	out, errs, code := verb(t, dir, append([]string{"copy", "--output", "json"}, args...)...)
	if code != 0 || errs != "" {
		t.Fatalf("copy %v: exit code %d: %s", args, code, errs)
	}
	var r copyResult
	if err := decodeStrictly([]byte(out), &r); err != nil {
		t.Fatalf("copy %v: %v\n%s", args, err, out)
	}
	if r.Copied+r.Skipped != r.Size {
		t.Errorf("copy %v: %+v", args, r)
	}
	return r
}

// refuseCopy wants a failure that says something, in one line.
func refuseCopy(t testing.TB, dir, want string, args ...string) {
	t.Helper()
	out, errs, code := verb(t, dir, append([]string{"copy"}, args...)...)
	if code != 1 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, want) {
		t.Errorf("copy %v: exit code %d, %q, want %q\n%s", args, code, errs, want, out)
	}
}

// checksumOf computes the checksum as it is documented.
func checksumOf(data []byte) string {
	all := sha256.New()
	for r := bytes.NewBuffer(data); r.Len() > 0; {
		d := sha256.Sum256(r.Next(int(mib)))
		all.Write(d[:])
	}
	return fmt.Sprintf("sha256-1MiB:%x", all.Sum(nil))
}

// same compares two images with qemu-img.
func (m *maker) same(a, b string) {
	m.t.Helper()
	m.run("qemu-img", "compare", "-f", formatOf(a), "-F", formatOf(b), a, b)
}

// onDisk is what a file takes, bytes.
func onDisk(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Stat(path, &st))
	return st.Blocks * 512
}

// TestCopyKinds copies from every kind of endpoint to every kind.
func TestCopyKinds(t *testing.T) {
	t.Parallel()
	const size = 9*mib + 512
	m := newMaker(t, t.TempDir(), "copy")
	m.run("mkdir", "served")
	base := m.create("-base.qcow2", size)
	m.scatter(base, size, 64*kib, 20, writes, zeroes)
	over := m.overlay("-over.qcow2", base, size)
	m.scatter(over, size, 64*kib, 20)
	m.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", over, m.file("-plain.raw"))
	plain := m.file("-plain.raw")
	want := readFile(t, m.path(plain))
	s := serve(t, m.path("served"), "--nbd", "127.0.0.1:0")
	m.run("cp", plain, "served/source.raw")
	m.run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", over, "served/source.qcow2")
	sources := map[string]string{
		"file raw":   plain,
		"file qcow2": over,
		"http raw":   s.url + "/source.raw",
		"http qcow2": s.url + "/v1/images/source.qcow2",
		"nbd qemu":   otherServer(t, "qemu-nbd", "-t", "-e", "8", "-r", "-f", "raw", "-k", "SOCKET", m.path(plain)),
		"nbd kit":    otherServer(t, "nbdkit", "-f", "-r", "-U", "SOCKET", "file", m.path(plain)),
		"nbd our":    s.nbd[0] + "/source.qcow2",
	}
	n := 0
	for name, from := range sources {
		for _, to := range []string{"file raw", "file qcow2", "http raw", "http qcow2", "nbd qemu", "nbd kit"} {
			n++
			t.Run(name+" to "+to, func(t *testing.T) {
				m := &maker{t: t, dir: m.dir, name: fmt.Sprint("copy", n), rand: m.rand}
				file, target := "", ""
				format := to[strings.LastIndexByte(to, ' ')+1:]
				flags := []string{"--verify", "--connections", fmt.Sprint(1 + n%5)}
				switch {
				case strings.HasPrefix(to, "file"):
					file = m.file("." + format)
					target = file
				case strings.HasPrefix(to, "http"):
					file = "served/" + m.file("."+format)
					target = s.url + "/" + m.file("."+format)
				default: // what is there must go
					file = m.raw(".raw", size)
					m.io(file, fmt.Sprintf("write -P 77 0 %d", size))
					target = map[string]func() string{
						"qemu": func() string {
							return otherServer(t, "qemu-nbd", "-t", "-e", "8", "--discard=unmap", "-f", "raw", "-k", "SOCKET", m.path(file))
						},
						"kit": func() string { return otherServer(t, "nbdkit", "-f", "-U", "SOCKET", "file", m.path(file)) },
					}[format]()
				}
				r := copyImage(t, m.dir, append(flags, from, target)...)
				if r.Size != size && r.Size != size&^511 || !r.Verified || r.Resumed {
					t.Errorf("%+v", r)
				}
				if sum := checksumOf(want[:r.Size]); r.Checksum != sum {
					t.Errorf("the checksum is %s, want %s", r.Checksum, sum)
				}
				must(t, eventually(func() error { // the server lets go
					_, err := m.try("qemu-img", "compare", "-U", "-f", "raw", "-F", formatOf(file), plain, file)
					return err
				}))
				if r.Skipped < size/10 {
					t.Errorf("%d bytes were skipped of zeros", r.Skipped)
				}
			})
		}
	}
	for _, left := range []string{"*.partial*", "served/*.partial*"} {
		if files, err := filepath.Glob(m.path(left)); err != nil || len(files) > 0 {
			t.Errorf("%v are left, %v", files, err)
		}
	}
}

// TestCopySparse copies 1 TiB, of which there are a few MiB.
func TestCopySparse(t *testing.T) {
	t.Parallel()
	const size = 1024 * gib
	m := newMaker(t, t.TempDir(), "sparse")
	m.run("mkdir", "served")
	from := m.create(".qcow2", size, "cluster_size=2M")
	m.io(from, "write -P 1 0 1M", "write -P 2 512G 2M", fmt.Sprintf("write -P 3 %d 64k", size-64*kib))
	s := serve(t, m.path("served"))
	begin := time.Now()
	sums := map[string]bool{}
	for _, to := range []string{m.file("-copy.raw"), m.file("-copy.qcow2"), s.url + "/a.raw", s.url + "/b.qcow2"} {
		r := copyImage(t, m.dir, from, to)
		sums[r.Checksum] = true
		if r.Copied > 4*mib {
			t.Errorf("%d bytes were copied", r.Copied)
		}
	}
	export := otherServer(t, "qemu-nbd", "-t", "-e", "8", "--discard=unmap", "-f", "raw", "-k", "SOCKET", m.path(m.raw("-nbd.raw", size)))
	sums[copyImage(t, m.dir, from, export).Checksum] = true
	sums[copyImage(t, m.dir, s.url+"/b.qcow2", m.file("-back.raw")).Checksum] = true
	if len(sums) != 1 {
		t.Errorf("checksums %v", sums)
	}
	if took := time.Since(begin); took > 2*time.Minute {
		t.Errorf("6 copies take %v", took)
	}
	for _, file := range []string{m.file("-copy.raw"), m.file("-copy.qcow2"), "served/a.raw", "served/b.qcow2", m.file("-nbd.raw"), m.file("-back.raw")} {
		if n := onDisk(t, m.path(file)); n > 60*mib {
			t.Errorf("%s takes %d bytes", file, n)
		}
	}
	m.same(from, m.file("-copy.qcow2"))
}

// TestCopyTargets: what is in the way is refused, or replaced, and nothing is left
// half made under its name.
func TestCopyTargets(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "target")
	m.run("mkdir", "served")
	from := m.create(".qcow2", 3*mib)
	m.io(from, "write -P 5 1M 1M")
	s := serve(t, m.path("served"))
	old := m.raw("-old.raw", mib)
	refuseCopy(t, m.dir, "--force", from, old)
	copyImage(t, m.dir, "--force", from, old)
	m.same(from, old)
	url := s.url + "/new.qcow2"
	copyImage(t, m.dir, "-o", "cluster_size=4k", from, url)
	refuseCopy(t, m.dir, "exists already", from, url)
	m.io(from, "write -z 1M 512k", "write -P 6 2M 64k")
	copyImage(t, m.dir, "--force", "--verify", from, url)
	var img image
	s.getJSON(t, &img, "/v1/images/new.qcow2")
	if img.QCOW2.ClusterSize != 4096 {
		t.Errorf("%+v", img)
	}
	refuseCopy(t, m.dir, "bytes", "--force", m.raw("-larger.raw", 4*mib), url)
	for _, test := range []struct {
		want string
		args []string
	}{
		{"missing.raw", []string{"missing.raw", "x.raw"}},
		{"missing", []string{from, "missing/x.raw"}},
		{"format", []string{from, "x"}},
		{"vmdk", []string{"--target-format", "vmdk", from, "x"}},
		{"missing.raw", []string{s.url + "/missing.raw", "x.raw"}},
		{"no image", []string{s.url, "x.raw"}},
		{"same file", []string{"--force", from, from}},
		{"cluster_size", []string{"-o", "cluster_size=5", from, "x.qcow2"}},
		{"backing", []string{"-o", "backing_file=y", from, "x.qcow2"}},
		{"--resume-file", []string{"--resume", from, s.url + "/y.raw"}},
		{"connections", []string{"--connections", "0", from, "x.raw"}},
		{"xml", []string{"--output", "xml", from, "x.raw"}},
		{"no format", []string{"--target-format", "qcow2", from, "nbd://127.0.0.1:1/x"}},
	} {
		refuseCopy(t, m.dir, test.want, test.args...)
	}
	must(t, os.WriteFile(m.path("x.raw.partial"), []byte("an older one"), 0o600))
	copyImage(t, m.dir, from, "x.raw")
	m.same(from, "x.raw")
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "partial") || e.Name() == "x" || e.Name() == "x.qcow2" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// unmarshal reads what a verb prints.
func unmarshal(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v\n%.500s", err, text)
	}
}
