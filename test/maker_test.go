package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	eib = int64(1) << 60
)

// source returns the random source of a name: the same for the same -seed.
func source(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(*seed, h.Sum64()))
}

// A maker makes image files in a directory with recorded commands.
type maker struct {
	t    testing.TB
	dir  string // where the images are, and where commands run
	name string // every file made here begins with it
	rand *rand.Rand
	log  []string // the commands that ran
}

func newMaker(t testing.TB, dir, name string) *maker {
	m := &maker{t: t, dir: dir, name: name, rand: source(name)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s was made with -seed %d by:\n%s", name, *seed, strings.Join(m.log, "\n"))
		}
	})
	return m
}

// file is the name of a file of this maker: its name with a suffix.
func (m *maker) file(suffix string) string { return m.name + suffix }

func (m *maker) path(file string) string { return filepath.Join(m.dir, file) }

// run runs a command in the directory, and ends the test if it fails.
func (m *maker) run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.try(name, args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", m.log[len(m.log)-1], err, out)
	}
	return out
}

// try runs a command in the directory.
func (m *maker) try(name string, args ...string) (string, error) {
	quoted := []string{name}
	for _, arg := range args {
		if strings.ContainsAny(arg, " *;&") {
			arg = "'" + arg + "'"
		}
		quoted = append(quoted, arg)
	}
	m.log = append(m.log, strings.Join(quoted, " "))
	cmd := exec.Command(name, args...)
	cmd.Dir = m.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// create makes a qcow2 image of a size in bytes with options of -o, and
// returns its name.
func (m *maker) create(suffix string, size int64, options ...string) string {
	m.t.Helper()
	file := m.file(suffix)
	args := []string{"create", "-q", "-f", "qcow2"}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	m.run("qemu-img", append(args, file, fmt.Sprint(size))...)
	return file
}

// overlay makes a qcow2 image over a backing file.
func (m *maker) overlay(suffix, backing string, size int64, options ...string) string {
	m.t.Helper()
	options = append(options, "backing_file="+backing, "backing_fmt="+formatOf(backing))
	return m.create(suffix, size, options...)
}

// raw makes a raw file that is one hole.
func (m *maker) raw(suffix string, size int64) string {
	m.t.Helper()
	file := m.file(suffix)
	m.log = append(m.log, fmt.Sprintf("truncate -s %d %s", size, file))
	if err := os.WriteFile(m.path(file), nil, 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Truncate(m.path(file), size); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// formatOf is the format that a file's extension means.
func formatOf(file string) string {
	if strings.HasSuffix(file, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}

// io runs qemu-io's commands on a file.
func (m *maker) io(file string, commands ...string) {
	m.t.Helper()
	args := []string{"-t", "unsafe", "-d", "unmap", "-f", formatOf(file)}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := m.run("qemu-io", append(args, file)...)
	if strings.Contains(out, "failed") || strings.Contains(out, "invalid") {
		m.t.Fatalf("%s:\n%s", m.log[len(m.log)-1], out)
	}
}

// write is the qemu-io command that fills a range with one of eight patterns:
// the even ones random, the odd ones compressible. Their lengths are odd, so
// that no two clusters of a range are the same.
func (m *maker) write(off, length int64) string {
	return fmt.Sprintf("write -s %s %d %d", m.pattern(m.rand.IntN(8)), off, length)
}

func (m *maker) pattern(n int) string {
	m.t.Helper()
	path := filepath.Join(scratch, fmt.Sprintf("%s-pattern-%d", m.name, n))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	data := make([]byte, 60_000+97*n+1)
	for i := 0; i < len(data); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], m.rand.Uint64())
		if n%2 == 1 {
			word = [8]byte{'e', 'x', byte(n), byte(i >> 16), byte(i >> 8), byte(i), 'e', 'n'}
		}
		copy(data[i:], word[:])
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// What scatter may do to a range.
const (
	writes   = "write"
	zeroes   = "write -z"
	unmaps   = "write -z -u"
	discards = "discard"
)

// everything is what scatter does unless told otherwise: mostly writes.
var everything = []string{writes, writes, writes, zeroes, unmaps, discards}

// scatter changes n random ranges of a file, some of them whole clusters, some
// a few bytes, some many clusters. kinds are what it picks from.
func (m *maker) scatter(file string, size, cluster int64, n int, kinds ...string) {
	m.t.Helper()
	if len(kinds) == 0 {
		kinds = everything
	}
	var commands []string
	for range n {
		off, length := m.someRange(size, cluster)
		switch kind := kinds[m.rand.IntN(len(kinds))]; kind {
		case writes:
			commands = append(commands, m.write(off, length))
		default:
			commands = append(commands, fmt.Sprintf("%s %d %d", kind, off, length))
		}
	}
	m.io(file, commands...)
}

// someRange picks a range of a disk: half of them begin at a cluster.
func (m *maker) someRange(size, cluster int64) (off, length int64) {
	off = m.rand.Int64N(size)
	length = 1 + m.rand.Int64N(3*cluster)
	if m.rand.IntN(2) == 0 {
		off -= off % cluster
		length = cluster * (1 + m.rand.Int64N(4))
	}
	return off, min(length, size-off)
}

// poke overwrites bytes of a file.
func (m *maker) poke(file string, off int64, data []byte) {
	m.t.Helper()
	m.log = append(m.log, fmt.Sprintf("poke %s at %d: % x", file, off, data))
	f, err := os.OpenFile(m.path(file), os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		m.t.Fatal(err)
	}
}

// peek reads bytes of a file.
func (m *maker) peek(file string, off int64, n int) []byte {
	m.t.Helper()
	f, err := os.Open(m.path(file))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); err != nil {
		m.t.Fatalf("%s: %d bytes at %d: %v", file, n, off, err)
	}
	return data
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// stdout runs a command in the directory and returns what it prints there.
func (m *maker) stdout(name string, args ...string) (string, error) {
	m.log = append(m.log, strings.Join(append([]string{name}, args...), " "))
	cmd := exec.Command(name, args...)
	cmd.Dir = m.dir
	out, err := cmd.Output()
	return string(out), err
}

// exitCode is that of a command that failed, 0 of one that did not, and -1 of
// one that did not run or was killed.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
