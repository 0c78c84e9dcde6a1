package test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The images of the NBD tests are of this size, and every second quarter of
// most is a hole; kit.py of the scripts knows the same.
const (
	shellSize    = mib
	shellQuarter = shellSize / 4
)

// shellContent is what those images hold: each 8 bytes of data are their offset,
// from 1.
func shellContent() []byte {
	p := make([]byte, shellSize)
	for off := int64(0); off < shellSize; off += 8 {
		if off/shellQuarter%2 == 0 {
			binary.BigEndian.PutUint64(p[off:], uint64(off+1))
		}
	}
	return p
}

// A shellKind is an image for NBD tests: the file that is copied, and what the
// configuration says besides.
type shellKind struct{ file, config string }

// makeShellKinds makes the files of all kinds in the maker's directory.
func makeShellKinds(t *testing.T, m *maker) map[string]shellKind {
	t.Helper()
	content := shellContent()
	sparse := func(name string, size int64, quarters ...int64) {
		f, err := os.Create(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, q := range quarters {
			if _, err := f.WriteAt(content[q*shellQuarter:][:shellQuarter], q*shellQuarter); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	sparse("all.raw", shellSize, 0, 2)
	sparse("tail.raw", shellSize+100, 0, 2)
	sparse("low.raw", shellSize, 0)
	sparse("high.raw", shellSize, 2)
	for _, name := range []string{"all", "low", "high"} {
		m.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", name+".raw", name+".qcow2")
	}
	m.run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "low.qcow2", "high.qcow2")
	m.run("qemu-img", "create", "-q", "-f", "qcow2", "empty.qcow2", "1T")
	m.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "all.raw", "bitmaps.qcow2")
	m.run("qemu-img", "bitmap", "--add", "bitmaps.qcow2", "frozen")
	m.io("bitmaps.qcow2", "write 0 512", fmt.Sprintf("write %d 512", shellQuarter))
	m.run("qemu-img", "bitmap", "--disable", "bitmaps.qcow2", "frozen")
	m.run("qemu-img", "bitmap", "--add", "-g", "512", "bitmaps.qcow2", "live")
	return map[string]shellKind{
		"raw":      {"all.raw", ""},
		"qcow2":    {"all.qcow2", ""},
		"readonly": {"all.qcow2", "readonly: true"},
		"chain":    {"high.qcow2", "backing: base"},
		"wide":     {"empty.qcow2", ""},
		"bitmaps":  {"bitmaps.qcow2", ""},
		"policy":   {"all.raw", "filters: [{policy: {minimum: 4096, preferred: 64KiB, max_data: 128KiB}}]"},
		"tail":     {"tail.raw", "filters: [{policy: {minimum: 4096}}]"},
		"slow":     {"all.raw", "filters: [{delay: {flush: 500ms}}]"},
	}
}

// shellImages makes images of those kinds by their names, and returns the
// configuration that serves them, and a base that some stand on.
func shellImages(t *testing.T, m *maker, images map[string]string) (config string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("images:\n  - {name: base, format: qcow2, readonly: true, node: {file: {path: low.qcow2}}}\n")
	of := makeShellKinds(t, m)
	for name, kind := range images {
		k, known := of[kind]
		if !known {
			t.Fatalf("%s is to have an image of kind %q", name, kind)
		}
		file := name + filepath.Ext(k.file)
		if out, err := exec.Command("cp", "--sparse=always", m.path(k.file), m.path(file)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		fmt.Fprintf(&b, "  - name: %s\n    format: %s\n    node: {file: {path: %s}}\n", name, formatOf(file), file)
		if k.config != "" {
			fmt.Fprintf(&b, "    %s\n", k.config)
		}
	}
	return b.String()
}

// serveShell serves those images over NBD on TCP and a unix socket, with a server
// that looks for its own data races. Its URIs come in this order.
func serveShell(t *testing.T, m *maker, images map[string]string, flags ...string) *server {
	t.Helper()
	path := m.path("extentd.yaml")
	if err := os.WriteFile(path, []byte(shellImages(t, m, images)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"serve", "--listen", "127.0.0.1:0", "--config", path, "--debug",
		"--nbd", "127.0.0.1:0", "--nbd", "unix:" + m.path("nbd.sock"),
	}, flags...)
	s := start(t, exec.Command(racy, args...))
	if len(s.nbd) != 2 {
		t.Fatalf("the server speaks NBD at %q", s.nbd)
	}
	return s
}

// shellExports are the names in the configuration of serveShell.
func shellExports(images map[string]string) []string {
	all := []string{"base"}
	for name := range images {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// A script is run by nbdsh. It says itself what image it needs.
type script struct{ name, image string }

// shellScripts are all of nbdsh/.
func shellScripts(t *testing.T) []script {
	t.Helper()
	paths, err := filepath.Glob("nbdsh/*.py")
	if err != nil {
		t.Fatal(err)
	}
	var all []script
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".py")
		if name == "kit" {
			continue
		}
		all = append(all, script{name, scriptImage(t, path)})
	}
	if len(all) == 0 {
		t.Fatal("there are no scripts in nbdsh")
	}
	return all
}

// scriptImage is what the second line of a script says.
func scriptImage(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "# ") || !lines.Scan() {
		t.Fatalf("%s does not begin with what it shows", path)
	}
	image, ok := strings.CutPrefix(lines.Text(), "# image: ")
	if !ok {
		t.Fatalf("%s does not say its image in its second line", path)
	}
	return image
}

// nbdsh is a command that runs nbdsh with Debian's own Python, whatever other
// there is.
func nbdsh(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nbdsh", args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

// TestNBDShell runs the scripts of nbdsh/, each over TCP and over a unix socket
// with an image of its own, all against one server. It had no trouble of its own
// with them, and leaves sound images behind.
func TestNBDShell(t *testing.T) {
	if out, err := nbdsh(t.Context(), "--version").CombinedOutput(); err != nil {
		t.Fatalf("nbdsh does not work: %v: apt-get install python3-libnbd\n%s", err, out)
	}
	images := make(map[string]string)
	all := shellScripts(t)
	for _, s := range all {
		for _, transport := range []string{"tcp", "unix"} {
			images[s.name+"-"+transport] = s.image
		}
	}
	m := newMaker(t, t.TempDir(), "nbdsh")
	server := serveShell(t, m, images)
	t.Run("scripts", func(t *testing.T) {
		for i, transport := range []string{"tcp", "unix"} {
			for _, s := range all {
				t.Run(transport+"/"+s.name, func(t *testing.T) {
					t.Parallel()
					runScript(t, s, server.nbd[i], s.name+"-"+transport, shellExports(images))
				})
			}
		}
	})
	server.stop()
	if log := server.stderr.String(); strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("the server's log:\n%s", log)
	}
	for name := range images {
		if path := m.path(name + ".qcow2"); exists(path) {
			m.checkClean(t, name+".qcow2")
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// scriptTime is how long a script may take: libnbd waits for ever.
const scriptTime = time.Minute

func runScript(t *testing.T, s script, uri, export string, exports []string) {
	t.Helper()
	// nbdsh itself would not say where an error of libnbd happened.
	ctx, cancel := context.WithTimeout(t.Context(), scriptTime)
	defer cancel()
	cmd := nbdsh(ctx, "-n", "-c", "import kit; kit.run('"+s.name+".py')")
	cmd.Dir = "nbdsh"
	cmd.Env = append(cmd.Env, "PYTHONPATH=.", "NBD_URI="+uri, "NBD_EXPORT="+export, "NBD_EXPORTS="+strings.Join(exports, " "))
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("nbdsh/%s.py with an image of kind %s: %v\n%s", s.name, s.image, err, out)
	}
}
