package qcow2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
	pib = int64(1) << 50
	eib = int64(1) << 60
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs a tool in a directory and returns what it prints.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, warnings, err := execute(t, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, warnings)
	}
	return out
}

// try is run for commands that may fail. It returns warnings and errors too.
func try(t testing.TB, dir, name string, args ...string) (string, error) {
	t.Helper()
	out, warnings, err := execute(t, dir, name, args...)
	return out + warnings, err
}

func execute(t testing.TB, dir, name string, args ...string) (out, warnings string, err error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; install it with: apt-get install qemu-utils", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// create makes dir/name with qemu-img.
func create(t testing.TB, dir, name string, size int64, options string) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	run(t, dir, "qemu-img", append(args, name, fmt.Sprint(size))...)
}

// qemuIO runs commands of qemu-io on dir/name.
func qemuIO(t testing.TB, dir, name string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := run(t, dir, "qemu-io", append(args, name)...)
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatalf("qemu-io %v:\n%s", commands, out)
	}
}

// scatter writes, zeroes and discards at random in [off, off+length).
func scatter(t testing.TB, dir, name string, rng *rand.Rand, off, length, unit int64, n int) {
	t.Helper()
	var commands []string
	for range n {
		at := off + rng.Int64N(length)/512*512
		size := min(off+length-at, (1+rng.Int64N(4*unit))/512*512+512)
		command := fmt.Sprintf("write -P %d", 1+rng.IntN(255))
		switch rng.IntN(6) {
		case 0:
			command = "write -z"
		case 1:
			command = "write -z -u"
		case 2:
			command = "discard"
		}
		commands = append(commands, fmt.Sprintf("%s %d %d", command, at, size))
	}
	qemuIO(t, dir, name, commands...)
}

// random is a source with a logged seed.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A diskFile is a file of the host, with its Allocated ability.
type diskFile struct{ *os.File }

func (f diskFile) Size(context.Context) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f diskFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.File.ReadAt(p, off)
}

func (f diskFile) Extents(_ context.Context, off, n int64, into *storage.ExtentList) error {
	return into.Add(storage.Mapping{Offset: off, Length: n, NodeOffset: off, Status: storage.Alloc | storage.OffsetValid})
}

func (f diskFile) Limit(context.Context, storage.Limit) (int64, error) { return 0, nil }

func (f diskFile) Allocated(context.Context) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512, nil
}

// diskNode opens dir/name.
func diskNode(t testing.TB, dir, name string) *storage.Node {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return storage.NewNode(name, diskFile{f}, storage.NodeOptions{Check: true})
}

// openDisk opens the image dir/name, its data file included.
func openDisk(t testing.TB, dir, name string) *qcow2.Image {
	t.Helper()
	i, err := qcow2.Open(t.Context(), diskNode(t, dir, name), qcow2.Options{
		OpenData: func(_ context.Context, name string) (*storage.Node, error) { return diskNode(t, dir, name), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// memNode is a node over bytes in memory.
func memNode(content []byte) *storage.Node {
	return storage.NewNode("image", storagetest.NewMemFile(content), storage.NodeOptions{})
}

// openBytes opens an image in memory without an external data file.
func openBytes(t testing.TB, content []byte) (*qcow2.Image, error) {
	t.Helper()
	i, err := qcow2.Open(t.Context(), memNode(content), qcow2.Options{})
	if err == nil {
		t.Cleanup(func() { i.Close() })
	}
	return i, err
}

// load is the content of dir/name.
func load(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A mapEntry is what qemu-img map says of a range.
type mapEntry struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset"`
}

func qemuMap(t testing.TB, dir string, args ...string) []mapEntry {
	t.Helper()
	out := run(t, dir, "qemu-img", append([]string{"map", "--output=json"}, args...)...)
	var entries []mapEntry
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatalf("qemu-img map: %v\n%s", err, out)
	}
	return merge(entries)
}

// ourMap is what qemu-img map should say of the image, as a single layer.
func ourMap(t testing.TB, i *qcow2.Image, off, n int64) []mapEntry {
	t.Helper()
	var l storage.ExtentList
	l.ResetWindow(off, off+n)
	if err := storage.CheckMapper(i).Fetch(t.Context(), off, n, &l); err != nil {
		t.Fatal(err)
	}
	var entries []mapEntry
	for k := range l.Len() {
		m := *l.At(k)
		m.Clip(off, off+n)
		e := mapEntry{Start: m.Offset, Length: m.Length, Zero: true}
		if m.Status.Has(storage.Local) {
			e.Present, e.Zero = true, m.Status.Has(storage.Zero)
			e.Data = !e.Zero
		}
		if m.Status.Has(storage.Local | storage.OffsetValid) {
			e.Offset = &m.NodeOffset
		}
		entries = append(entries, e)
	}
	return merge(entries)
}

// merge joins neighbours that say the same. Offsets count where the layer
// supplies the bytes.
func merge(entries []mapEntry) []mapEntry {
	var out []mapEntry
	for _, e := range entries {
		if !e.Present {
			e.Offset = nil
		}
		if len(out) > 0 {
			p := &out[len(out)-1]
			same := p.Present == e.Present && p.Zero == e.Zero && p.Data == e.Data && p.Depth == e.Depth && (p.Offset == nil) == (e.Offset == nil)
			if same && (e.Offset == nil || *p.Offset+p.Length == *e.Offset) {
				p.Length += e.Length
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

// tableAt is where hand-written tables are put.
const tableAt = 512 << 10

// A patch is bytes to write at an offset.
type patch struct {
	off   int64
	bytes []byte
}

func patched(b []byte, patches ...patch) []byte {
	b = bytes.Clone(b)
	for _, p := range patches {
		if grow := int(p.off) + len(p.bytes) - len(b); grow > 0 {
			b = append(b, make([]byte, grow)...)
		}
		copy(b[p.off:], p.bytes)
	}
	return b
}

// zeroReader is content that is all zeros.
type zeroReader struct{}

func (zeroReader) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

var _ io.ReaderAt = zeroReader{}
