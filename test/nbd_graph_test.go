package test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDMinimum: an image that insists on blocks says so to its clients. What is
// no multiple of them is refused before anything below is asked, and the
// connection goes on; with blocksize it works, and QEMU and libnbd read and write
// both.
func TestNBDMinimum(t *testing.T) {
	for _, minimum := range []int64{512, 4096} {
		t.Run(fmt.Sprint(minimum), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			const size = 256*kib + 100 // the tail is shorter than the minimum
			whole := size &^ (minimum - 1)
			want := randomFile(t, filepath.Join(dir, "disk.raw"), size)
			must(t, os.WriteFile(filepath.Join(dir, "other.raw"), want, 0o600))
			models := map[string][]byte{"disk.raw": want, "other.raw": bytes.Clone(want)}
			s := serveConfig(t, dir, fmt.Sprintf(`
images:
  - name: strict
    format: raw
    node: {file: {path: disk.raw}}
    filters: [{stats: {}}, {policy: {minimum: %[1]d, preferred: 8KiB, max_data: 64KiB}}]
  - name: smooth
    format: raw
    node: {file: {path: other.raw}}
    filters: [{stats: {}}, {policy: {minimum: %[1]d}}, {blocksize: {}}]
`, minimum), overNBD("--debug")...)
			blockSizes(t, s.uri("strict"), whole, minimum, 8*kib, 64*kib)
			blockSizes(t, s.uri("smooth"), size, 1, max(4096, minimum), 32*mib)
			for _, extended := range []bool{false, true} {
				strict(t, s, models["disk.raw"][:whole], minimum, extended)
				smooth(t, s, models["other.raw"], extended)
			}
			throughTools(t, s, "strict", models["disk.raw"][:whole], minimum)
			throughTools(t, s, "smooth", models["other.raw"], minimum)
			s.stop()
			for file, want := range models {
				if i := firstDifference(readFile(t, filepath.Join(dir, file)), want); i >= 0 {
					t.Errorf("byte %d of %s differs", i, file)
				}
			}
		})
	}
}

func blockSizes(t *testing.T, uri string, size, minimum, preferred, maximum int64) {
	t.Helper()
	e := nbdExport(t, uri)
	for name, want := range map[string]int64{
		"export-size": size, "block_size_minimum": minimum, "block_size_preferred": preferred, "block_size_maximum": maximum,
	} {
		if fmt.Sprint(e[name]) != fmt.Sprint(want) {
			t.Errorf("%s: %s is %v, want %d", uri, name, e[name], want)
		}
	}
}

// strict sends what is no multiple of the minimum, or too long.
func strict(t *testing.T, s *server, want []byte, minimum int64, extended bool) {
	t.Helper()
	c := s.openNBD(t, "strict", extended)
	size := int64(len(want))
	before := s.counters(t, "strict", "stats")
	for _, r := range []window{{1, minimum}, {0, minimum - 1}, {minimum, 1}, {minimum / 2, minimum / 2}, {size - 1, 1}, {0, 64*kib + minimum}} {
		for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdWrite, wire.CmdWriteZeroes, wire.CmdTrim, wire.CmdCache, wire.CmdBlockStatus} {
			if data := cmd == wire.CmdRead || cmd == wire.CmdWrite; !data && r.length > 64*kib {
				continue // the limit is not for them
			}
			var payload []byte
			if cmd == wire.CmdWrite {
				payload = make([]byte, r.length)
			}
			if _, err := c.do(cmd, 0, r.offset, r.length, payload); !isErrno(err, wire.EINVAL) {
				t.Errorf("%v of %d bytes at %d: %v, want EINVAL", cmd, r.length, r.offset, err)
			}
		}
	}
	if after := s.counters(t, "strict", "stats"); !maps.Equal(before, after) {
		t.Errorf("what was refused has reached the node: %v, before %v", after, before)
	}
	for off := int64(0); off < size; off += 64 * kib {
		n := min(64*kib, size-off)
		r, err := c.do(wire.CmdRead, 0, off, n, nil)
		must(t, err)
		if !bytes.Equal(r.data, want[off:off+n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
	}
	fillRandom(source(t.Name()), want[minimum:3*minimum])
	_, err := c.do(wire.CmdWrite, wire.FlagFUA, minimum, 0, want[minimum:3*minimum])
	must(t, err)
	after := s.counters(t, "strict", "stats")
	if n := after["write_bytes"] - before["write_bytes"]; n != 2*minimum {
		t.Errorf("%d bytes were written below, want %d", n, 2*minimum)
	}
}

// smooth asks for what is no multiple of what the node insists on.
func smooth(t *testing.T, s *server, want []byte, extended bool) {
	t.Helper()
	c := s.openNBD(t, "smooth", extended)
	random := source(fmt.Sprint(t.Name(), extended))
	for range 60 {
		off := random.Int64N(int64(len(want)))
		n := 1 + random.Int64N(min(int64(len(want))-off, 20_000))
		var err error
		switch random.IntN(4) {
		case 0:
			p := make([]byte, n)
			fillRandom(random, p)
			copy(want[off:], p)
			_, err = c.do(wire.CmdWrite, 0, off, 0, p)
		case 1:
			clear(want[off : off+n])
			_, err = c.do(wire.CmdWriteZeroes, 0, off, n, nil)
		default:
			var r *nbdReply
			if r, err = c.do(wire.CmdRead, 0, off, n, nil); err == nil && !bytes.Equal(r.data, want[off:off+n]) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
		must(t, err)
	}
}

// throughTools: QEMU and libnbd heed what they are told.
func throughTools(t *testing.T, s *server, name string, want []byte, minimum int64) {
	t.Helper()
	q := startQemuIO(t, s.uri(name))
	defer q.close()
	p := make([]byte, 3000) // QEMU reads, changes and writes blocks itself
	fillRandom(source(fmt.Sprint(t.Name(), name)), p)
	off := 5*minimum + 77
	must(t, q.write(off, p, true))
	copy(want[off:], p)
	path := filepath.Join(scratch, fmt.Sprintf("copied-%d", converted.Add(1)))
	mustTool(t, "nbdcopy", "--request-size=65536", s.uri(name), path) // it does not heed the largest
	defer func() { _ = os.Remove(path) }()
	if i := firstDifference(readFile(t, path), want); i >= 0 {
		t.Errorf("%s: byte %d of what nbdcopy reads differs", name, i)
	}
}
