package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A thin overlay is a qcow2 image whose data file is bound by the operator.
type thin struct {
	m       *maker
	overlay string // path
	data    string // path
	device  bool   // the data file is a block device
	backing string // path of a raw image, "" for none
	stored  string // the name of the data file in the overlay
	model   []byte
}

// Where the overlay says that its data file is.
const (
	nameRight   = "right"
	nameNowhere = "nowhere" // another file's, which is not there
	nameOther   = "other"   // another file's, which must not be touched
	nameNone    = "none"
)

const thinSize = 8 * mib

// newThin makes one. The server serves another directory.
func newThin(t *testing.T, name string, stored string, options ...string) *thin {
	t.Helper()
	m := newMaker(t, t.TempDir(), name)
	if err := os.Mkdir(m.path("disks"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := &thin{m: m, overlay: m.path("over.thin"), data: m.path("disks/disk.img"), model: make([]byte, thinSize)}
	options = append(options, "data_file="+d.data)
	m.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", strings.Join(options, ","), d.overlay, fmt.Sprint(thinSize))
	d.store(t, stored)
	return d
}

// store changes the name of the data file in the overlay.
func (d *thin) store(t *testing.T, stored string) {
	t.Helper()
	header := d.m.peek("over.thin", 0, 4096)
	at := bytes.Index(header, []byte("DATA"))
	if at < 0 {
		t.Fatal("the overlay has no name of a data file")
	}
	name := bytes.Clone(header[at+8:][:binary.BigEndian.Uint32(header[at+4:])])
	switch stored {
	case nameNowhere:
		copy(name[len(name)-8:], "lost.img")
	case nameOther:
		copy(name[len(name)-8:], "none.img")
		if err := os.WriteFile(string(name), []byte("hands off"), 0o600); err != nil {
			t.Fatal(err)
		}
	case nameNone:
		d.m.poke("over.thin", int64(at), be32(0x12345678)) // an extension that nobody knows
	}
	d.m.poke("over.thin", int64(at+8), name)
	d.stored = string(name)
}

// loop puts the data file onto a block device, if one can be had.
func (d *thin) loop(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", d.data).Output()
	if err != nil {
		t.Logf("no loop device: %v", err)
		return false
	}
	d.data, d.device = strings.TrimSpace(string(out)), true
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", d.data).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return true
}

// options are what QEMU is told instead of the file's name.
func (d *thin) options() string {
	driver := "file"
	if d.device {
		driver = "host_device"
	}
	text := fmt.Sprintf("driver=qcow2,file.driver=file,file.filename=%s,data-file.driver=%s,data-file.filename=%s", d.overlay, driver, d.data)
	if d.backing != "" {
		text += ",backing.driver=raw,backing.file.driver=file,backing.file.filename=" + d.backing
	}
	return text
}

// flag is what the server is told.
func (d *thin) flag(more ...string) []string {
	spec := fmt.Sprintf("disk=%s,format=qcow2,data-file=%s", d.overlay, d.data)
	return []string{"--image", strings.Join(append([]string{spec}, more...), ","), "--idle", "50ms"}
}

// qemuWrites changes it with qemu-io.
func (d *thin) qemuWrites(n int) {
	d.m.t.Helper()
	var commands []string
	for range n {
		off, length := d.m.someRange(thinSize, 64*kib)
		value := byte(1 + d.m.rand.IntN(255))
		if d.m.rand.IntN(4) == 0 {
			commands, value = append(commands, "-c", fmt.Sprintf("write -z -u %d %d", off, length)), 0
		} else {
			commands = append(commands, "-c", fmt.Sprintf("write -P %d %d %d", value, off, length))
		}
		copy(d.model[off:off+length], bytes.Repeat([]byte{value}, int(length)))
	}
	args := append([]string{"-t", "unsafe", "-d", "unmap", "--image-opts"}, append(commands, d.options())...)
	if out := d.m.run("qemu-io", args...); strings.Contains(out, "failed") || strings.Contains(out, "Could not") {
		d.m.t.Fatal(out)
	}
}

// weWrite changes it with the server.
func (d *thin) weWrite(t *testing.T, s *server, n int) {
	t.Helper()
	for range n {
		off, length := d.m.someRange(thinSize, 64*kib)
		var err error
		switch d.m.rand.IntN(5) {
		case 0:
			err = s.zero("disk", off, length, d.m.rand.IntN(2) == 0)
			clear(d.model[off : off+length])
		default:
			fillRandom(d.m.rand, d.model[off:off+length])
			err = s.put("disk", off, d.model[off:off+length], false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush("disk"); err != nil {
		t.Fatal(err)
	}
}

// verify compares what the server and QEMU read, and has QEMU check the overlay.
func (d *thin) verify(t *testing.T, s *server) {
	t.Helper()
	got, err := s.read("disk", 0, thinSize)
	if err != nil || !bytes.Equal(got, d.model) {
		t.Fatalf("the server reads something else: %v", err)
	}
	d.closed(t, s)
	out := d.m.path("out.raw")
	d.m.run("qemu-img", "convert", "--image-opts", "-O", "raw", d.options(), out)
	if read, err := os.ReadFile(out); err != nil || !bytes.Equal(read, d.model) {
		t.Fatalf("QEMU reads something else: %v", err)
	}
	d.m.run("qemu-img", "check", "--image-opts", d.options())
}

// closed waits until the server has closed both files.
func (d *thin) closed(t *testing.T, s *server) {
	t.Helper()
	for _, path := range []string{d.overlay, d.data} {
		if err := s.awaitClosed(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBoundDataFile: an overlay is read and written with the data file that the
// operator names, by turns with QEMU, whatever name it holds.
func TestBoundDataFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, stored string
		device       bool
		backed       bool
		options      []string
	}{
		{name: "right", stored: nameRight},
		{name: "nowhere", stored: nameNowhere, options: []string{"data_file_raw=on"}},
		{name: "other", stored: nameOther, options: []string{"data_file_raw=on", "cluster_size=4k"}},
		{name: "none", stored: nameNone, options: []string{"data_file_raw=on", "extended_l2=on"}},
		{name: "none-mapped", stored: nameNone},
		{name: "device", stored: nameNowhere, device: true, options: []string{"data_file_raw=on"}},
		{name: "device-mapped", stored: nameNone, device: true},
		{name: "backed", stored: nameNowhere, backed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newThin(t, "thin-"+c.name, c.stored, c.options...)
			if c.device && !d.loop(t) {
				return
			}
			flags := d.flag()
			if c.backed {
				d.backing = d.m.path("base.raw")
				fillRandom(d.m.rand, d.model)
				if err := os.WriteFile(d.backing, d.model, 0o600); err != nil {
					t.Fatal(err)
				}
				flags = append(d.flag("backing=base"), "--image", "base="+d.backing)
			}
			s := serve(t, t.TempDir(), append(flags, "--follow-backing", "deny", "--debug")...)
			for range 3 {
				d.qemuWrites(10)
				d.verify(t, s)
				d.weWrite(t, s, 20)
				d.verify(t, s)
			}
			if raw := c.options != nil; raw {
				if disk, err := os.ReadFile(d.data); err != nil || !bytes.Equal(disk[:thinSize], d.model) {
					t.Errorf("the data file is not the raw disk: %v", err)
				}
			}
			if c.stored == nameOther {
				if other, err := os.ReadFile(d.m.path("disks/none.img")); err != nil || string(other) != "hands off" {
					t.Errorf("the file that the overlay names: %q, %v", other, err)
				}
			}
			if _, body := s.expect(t, http.StatusOK, "/v1/images/disk/extents"); bytes.Contains(body, []byte(d.m.dir)) {
				t.Errorf("an answer has a path of the host: %s", body)
			}
		})
	}
}

// TestBoundDataFileLocks: both files are locked as QEMU does it, and a change of
// either is a new generation.
func TestBoundDataFileLocks(t *testing.T) {
	t.Parallel()
	d := newThin(t, "thin-locks", nameNowhere, "data_file_raw=on")
	s := serve(t, t.TempDir(), d.flag()...)
	const path = "/v1/images/disk/data"
	etag := func() string {
		header, _ := s.expect(t, http.StatusPartialContent, path, "Range", "bytes=0-1")
		return header.Get("ETag")
	}
	last := etag()
	for what, change := range map[string]func(){
		"QEMU":          func() { d.qemuWrites(1) },
		"the data file": func() { d.m.poke("disks/disk.img", 5, []byte{1}) },
		"the overlay":   func() { d.m.poke("over.thin", 3*64*kib-1, []byte{0}) },
	} {
		d.closed(t, s)
		time.Sleep(30 * time.Millisecond) // file systems know no smaller times
		change()
		now := etag()
		if now == last {
			t.Errorf("%s has changed it, and the ETag stayed %s", what, now)
		}
		last = now
	}

	for _, file := range []string{"over.thin", "disks/disk.img"} {
		d.closed(t, s)
		h := hold(t, d.m, file)
		s.expectProblem(t, http.StatusConflict, "image-busy", path)
		h.release()
		var err error
		for range 5 { // QEMU may be done with so small a file before it is written to
			h = holdReading(t, d.m, file)
			s.expect(t, http.StatusOK, path)
			err = s.put("disk", 0, []byte("x"), false)
			h.release()
			if isRefusal(err, http.StatusConflict, "image-busy") {
				break
			}
			d.closed(t, s)
		}
		if !isRefusal(err, http.StatusConflict, "image-busy") {
			t.Errorf("written while QEMU reads %s: %v", file, err)
		}
	}
	slow := serve(t, t.TempDir(), append(d.flag(), "--idle", "1h")...)
	d.closed(t, s)
	if err := slow.put("disk", 0, []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{d.overlay, d.data} {
		if out, err := d.m.try("qemu-img", "convert", "-f", "raw", "-O", "raw", file, d.m.path("out.raw")); err == nil || !strings.Contains(out, "lock") {
			t.Errorf("QEMU reads %s while we write: %v\n%s", file, err, out)
		}
	}
}

// TestBoundDataFileRefusals: what cannot be is refused, where it is known: at the
// start what flags say, else when the image is asked for.
func TestBoundDataFileRefusals(t *testing.T) {
	t.Parallel()
	d := newThin(t, "thin-refused", nameNowhere, "data_file_raw=on")
	plain := d.m.create("-plain.qcow2", mib)
	two := newThin(t, "thin-two", nameNowhere)
	image := func(name, overlay, data string, more ...string) string {
		return strings.Join(append([]string{fmt.Sprintf("%s=%s,format=qcow2,data-file=%s", name, overlay, data)}, more...), ",")
	}
	if err := exec.Command("mkfifo", d.m.path("fifo")).Run(); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--idle", "50ms"}
	for _, spec := range []string{
		image("missing", d.overlay, d.m.path("disks/none.img")),
		image("directory", d.overlay, d.m.path("disks")),
		image("fifo", d.overlay, d.m.path("fifo")),
		image("itself", d.overlay, d.overlay),
		image("plain", d.m.path(plain), d.data),
		image("readonly", d.overlay, d.data, "readonly"),
		image("first", d.overlay, d.data),
		image("second", two.overlay, d.data),
		"raw=" + d.data + ",format=raw",
	} {
		flags = append(flags, "--image", spec)
	}
	s := serve(t, t.TempDir(), flags...)
	for name, want := range map[string]string{
		"missing": "backing-unavailable", "directory": "refused", "fifo": "refused", "itself": "backing-unavailable", "plain": "unsupported-feature",
	} {
		p := s.expectProblem(t, http.StatusUnprocessableEntity, want, "/v1/images/"+name)
		if detail := strings.ReplaceAll(p.Detail, d.stored, ""); strings.Contains(detail, d.m.dir) {
			t.Errorf("%s: an answer has a path of the host: %s", name, p.Detail)
		}
	}
	for _, name := range []string{"readonly", "first", "second", "raw"} {
		s.expect(t, http.StatusOK, "/v1/images/"+name+"/data")
	}
	if err := s.put("readonly", 0, []byte("x"), false); !isRefusal(err, http.StatusForbidden, "read-only") {
		t.Errorf("readonly: %v", err)
	}
	for _, name := range []string{"first", "second", "raw"} { // each would change what the others are
		if err := s.put(name, 0, []byte("x"), false); !isRefusal(err, http.StatusConflict, "conflict") {
			t.Errorf("%s is written to, and others have its data file: %v", name, err)
		}
	}
	for spec, want := range map[string]string{
		"x=" + d.data + ",format=raw,data-file=" + d.data: "neither backing nor data file",
		"x=" + d.overlay + ",data-file=":                  "is not one of",
		image("x", d.overlay, d.data, "data-file=y"):      "given twice",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := exec.CommandContext(ctx, program, "serve", "--listen", "127.0.0.1:0", "--image", spec, t.TempDir()).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", filepath.Base(spec), err, out)
		}
	}
}
