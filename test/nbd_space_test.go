package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDNoSpace: files cannot grow beyond what the kernel allows the server, and
// the clients are told that there is no space. What was written before is there,
// what overwrites it still works, and the image is good.
func TestNBDNoSpace(t *testing.T) {
	for name, options := range map[string][]string{"raw": nil, "qcow2": {}, "512": {"cluster_size=512"}, "extended": {"extended_l2=on"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size, most = 8 * mib, 3 * mib
			m := newMaker(t, t.TempDir(), "full")
			file := m.raw(".raw", size)
			if options != nil {
				file = m.create(".qcow2", size, options...)
			}
			limited := exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -f %d; exec "$0" "$@"`, most/512), program},
				serveArgs("127.0.0.1:0", m.dir, overNBD()...)...)...)
			s := start(t, limited)
			c := s.openNBD(t, file, false)
			model := make([]byte, size)
			random := source(t.Name())
			refused := 0
			for off := int64(0); off < size; off += 64 * kib {
				p := make([]byte, 64*kib)
				fillRandom(random, p)
				_, err := c.do(wire.CmdWrite, wire.FlagFUA, off, 0, p)
				switch {
				case err == nil:
					copy(model[off:], p)
				case isErrno(err, wire.ENOSPC):
					refused++
				default:
					t.Fatal(err)
				}
				if err != nil { // some of it may be there
					r, err := c.do(wire.CmdRead, 0, off, int64(len(p)), nil)
					must(t, err)
					copy(model[off:], r.data)
				}
			}
			if refused == 0 || refused == 128 {
				t.Fatalf("%d writes of 128 were refused", refused)
			}
			q := startQemuIO(t, s.uri(file))
			if err := q.write(size-64*kib, make([]byte, 4096), false); err != nil && !strings.Contains(err.Error(), "No space left") {
				t.Errorf("qemu-io: %v", err)
			} else if err == nil && options == nil {
				t.Error("qemu-io is not told that there is no space")
			}
			must(t, q.write(0, model[:sector], true))
			must(t, q.zero(64*kib, 64*kib, false))
			clear(model[64*kib : 128*kib])
			must(t, q.flush())
			got, err := c.readAll(0, size)
			must(t, err)
			if i := firstDifference(got, model); i >= 0 {
				t.Fatalf("byte %d differs", i)
			}
			s.stop()
			must(t, os.WriteFile(m.path("model"), model, 0o600))
			m.run("qemu-img", "compare", "-f", formatOf(file), "-F", "raw", file, "model")
			if options != nil {
				m.checkClean(t, file)
			}
		})
	}
}

// TestNBDFaults: what fails below fails above with the right error, and works
// again when the cause is gone.
func TestNBDFaults(t *testing.T) {
	for _, test := range []struct {
		kind  string
		errno wire.Errno
	}{{"no-space", wire.ENOSPC}, {"io", wire.EIO}} {
		t.Run(test.kind, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			want := randomFile(t, filepath.Join(dir, "disk.raw"), mib)
			s := serveConfig(t, dir, fmt.Sprintf(`
images:
  - name: disk
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{error: {operations: [read, write, zero, trim], file: %s, error: %s}}]
`, filepath.Join(dir, "broken"), test.kind), overNBD()...)
			c := s.openNBD(t, "disk", true)
			for range 2 {
				must(t, os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600))
				for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdWrite, wire.CmdWriteZeroes, wire.CmdTrim} {
					var payload []byte
					if cmd == wire.CmdWrite {
						payload = make([]byte, 4096)
					}
					if _, err := c.do(cmd, 0, 8192, 4096, payload); !isErrno(err, test.errno) {
						t.Errorf("%v: %v, want %v", cmd, err, test.errno)
					}
				}
				must(t, os.Remove(filepath.Join(dir, "broken")))
				got, err := c.readAll(0, mib)
				must(t, err)
				if i := firstDifference(got, want); i >= 0 {
					t.Fatalf("byte %d differs", i)
				}
				_, err = c.do(wire.CmdWrite, wire.FlagFUA, 0, 0, want[:100])
				must(t, err)
			}
		})
	}
}
