package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// otherServer runs an NBD server of somebody else until the test ends; SOCKET in
// its arguments is where it listens. It returns the URI of its default export.
func otherServer(t testing.TB, name string, args ...string) (uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "extentd-nbd-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOCKET", socket)
	}
	cmd := exec.Command(name, args...)
	said := &output{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
			return "nbd+unix:///?socket=" + socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not start: %v\n%s", name, err, said)
		}
	}
}

// TestNBDChain: qemu-nbd, its export as a node here, and that over NBD to
// qemu-img: the image is still the same, and so is its map.
func TestNBDChain(t *testing.T) {
	t.Parallel()
	k := kindNamed(t, "three-layers")
	below := otherServer(t, "qemu-nbd", "-t", "-e", "8", "-r", "-f", "qcow2", "-k", "SOCKET", filepath.Join(served, k.file))
	s := serveConfig(t, t.TempDir(), fmt.Sprintf(`
images:
  - {name: disk, format: raw, node: {nbd: {uri: "%s"}}}
  - {name: ahead, format: raw, node: {nbd: {uri: "%[1]s"}}, filters: [{readahead: {}}, {stats: {}}]}
`, below), "--debug", "--nbd", "127.0.0.1:0")
	for _, name := range []string{"disk", "ahead"} {
		out, err := qemuImg(served, "compare", "-f", "raw", "-F", "qcow2", s.nbd[0]+"/"+name, k.file)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for _, e := range s.stream(t, name) { // what is told as zeros is zeros
			if !*e.Zero {
				continue
			}
			for at := *e.Offset; at < *e.Offset+*e.Length; at += mib {
				n := min(mib, *e.Offset+*e.Length-at)
				if firstDifference(k.read(t, at, n), make([]byte, n)) >= 0 {
					t.Fatalf("%s: data in %d bytes at %d is told as zeros", name, n, at)
				}
			}
		}
	}
	if err := s.put("disk", 0, make([]byte, 512), false); !isRefusal(err, http.StatusForbidden, "read-only") {
		t.Errorf("a write to a read-only export: %v", err)
	}
}

// TestNBDChainWrites through two servers to the file of a third.
func TestNBDChainWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	model := randomFile(t, filepath.Join(dir, "disk.raw"), 4*mib)
	first := serve(t, dir, "--nbd", "127.0.0.1:0")
	s := serveConfig(t, t.TempDir(), fmt.Sprintf(`
images:
  - {name: disk, format: raw, node: {nbd: {uri: "%s/disk.raw"}}}
`, first.nbd[0]), "--debug", "--nbd", "127.0.0.1:0")
	random := source(t.Name())
	for range 100 {
		off := random.Int64N(int64(len(model)))
		n := 1 + random.Int64N(min(int64(len(model))-off, 300*kib))
		switch random.IntN(3) {
		case 0:
			p := make([]byte, n)
			fillRandom(random, p)
			must(t, s.put("disk", off, p, random.IntN(4) == 0))
			copy(model[off:], p)
		case 1:
			must(t, s.zero("disk", off, n, random.IntN(2) == 0))
			clear(model[off : off+n])
		default:
			got, err := s.read("disk", off, n)
			if err != nil {
				t.Fatal(err)
			}
			if i := firstDifference(got, model[off:off+n]); i >= 0 {
				t.Fatalf("byte %d differs", off+int64(i))
			}
		}
	}
	must(t, s.flush("disk"))
	s.stop()
	first.stop()
	if got, err := os.ReadFile(filepath.Join(dir, "disk.raw")); err != nil || firstDifference(got, model) >= 0 {
		t.Errorf("the file differs: %v", err)
	}
}

// TestNBDTroubledServer: nbdkit below, that fails one request in twenty and takes
// its time: with retry all is as it should be, and without there are errors, but
// no wrong bytes.
func TestNBDTroubledServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := randomFile(t, filepath.Join(dir, "disk.raw"), 2*mib)
	below := otherServer(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=error", "--filter=delay", "file", filepath.Join(dir, "disk.raw"),
		"error-pread=EIO", "error-pread-rate=5%", "rdelay=2ms")
	s := serveConfig(t, t.TempDir(), fmt.Sprintf(`
images:
  - {name: patient, format: raw, node: {nbd: {uri: "%s"}}, filters: [{retry: {retries: 30, delay: 1ms}}]}
  - {name: impatient, format: raw, node: {nbd: {uri: "%[1]s"}}}
`, below), "--debug")
	random := source(t.Name())
	failed := 0
	for range 150 {
		off := random.Int64N(int64(len(want)))
		n := 1 + random.Int64N(min(int64(len(want))-off, 64*kib))
		for _, name := range []string{"patient", "impatient"} {
			got, err := s.read(name, off, n)
			if err != nil {
				if name == "patient" || !isRefusal(err, http.StatusInternalServerError, "io-error") {
					t.Fatalf("%s: %v", name, err)
				}
				failed++
				continue
			}
			if i := firstDifference(got, want[off:off+n]); i >= 0 {
				t.Fatalf("%s: byte %d differs", name, off+int64(i))
			}
		}
	}
	if failed == 0 || s.counters(t, "patient", "retry")["retries"] == 0 {
		t.Errorf("%d requests failed; retry counts %v", failed, s.counters(t, "patient", "retry"))
	}
}

// TestNBDStrictServer: a server below that insists on blocks, as VDDK does.
// Through blocksize any request works, by HTTP and by NBD; without it, what is
// misaligned fails before the server is asked.
func TestNBDStrictServer(t *testing.T) {
	t.Parallel()
	for _, minimum := range []int64{512, 4096} {
		t.Run(fmt.Sprint(minimum), func(t *testing.T) {
			t.Parallel()
			below := otherServer(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=blocksize-policy", "memory", "8M",
				fmt.Sprintf("blocksize-minimum=%d", minimum), "blocksize-preferred=4096", "blocksize-maximum=1M", "blocksize-error-policy=error")
			s := serveConfig(t, t.TempDir(), fmt.Sprintf(`
images:
  - {name: smooth, format: raw, node: {nbd: {uri: "%s"}}, filters: [{blocksize: {}}]}
  - {name: strict, format: raw, node: {nbd: {uri: "%[1]s"}}, filters: [{stats: {}}]}
`, below), "--debug", "--nbd", "127.0.0.1:0")
			for _, name := range []string{"smooth", "strict"} {
				want := map[string]int64{"smooth": 1, "strict": minimum}[name]
				var img image
				s.getJSON(t, &img, imagePath(name, ""))
				if img.Limits["minimum"] != want {
					t.Errorf("%s: the minimum is %d, want %d", name, img.Limits["minimum"], want)
				}
			}
			p := []byte("odd")
			must(t, s.put("smooth", 1001, p, true))
			if got, err := s.read("smooth", 1001, 3); err != nil || string(got) != "odd" {
				t.Errorf("by HTTP: %q, %v", got, err)
			}
			out, err := exec.Command("qemu-io", "-f", "raw", s.nbd[0]+"/smooth", "-c", "write -P 7 5001 77", "-c", "read -P 7 5001 77").CombinedOutput()
			if err != nil || strings.Contains(string(out), "failed") {
				t.Errorf("by NBD: %v\n%s", err, out)
			}
			before := s.counters(t, "strict", "stats")
			if err := s.put("strict", 1, p, false); !isRefusal(err, http.StatusBadRequest, "misaligned") {
				t.Errorf("a misaligned write: %v", err)
			}
			if _, err := s.read("strict", 1, 3); !isRefusal(err, http.StatusBadRequest, "misaligned") {
				t.Errorf("a misaligned read: %v", err)
			}
			after := s.counters(t, "strict", "stats")
			if after["read_operations"] != before["read_operations"] || after["write_operations"] != before["write_operations"] {
				t.Errorf("the server was asked: %v, %v", before, after)
			}
		})
	}
}
