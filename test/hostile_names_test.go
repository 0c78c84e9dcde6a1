package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// link makes an image that names a backing file, whatever it is, or a data
// file.
func (a *arena) link(t *testing.T, suffix, name, format string, data bool) string {
	t.Helper()
	file := a.create(suffix, mib)
	var extensions []byte
	if data {
		extensions = extension(extDataFile, uint32(len(name)), []byte(name)...)
		a.poke(file, atIncompatible, be64(incompatData))
	} else {
		if format != "" {
			extensions = extension(extBacking, uint32(len(format)), []byte(format)...)
		}
		a.poke(file, atBackingOffset, be64(4096))
		a.poke(file, atBackingSize, be32(uint32(len(name))))
		a.poke(file, 4096, []byte(name))
	}
	a.poke(file, atExtensions, append(extensions, make([]byte, 16)...))
	return file
}

// listen counts the connections to a port, of which there must be none.
func listen(t *testing.T) (address string, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	count = &atomic.Int64{}
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), count
}

// TestHostileNames gives backing and data files every name that leads
// elsewhere. None is followed, none blocks, and none says whether it exists.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	a.echoes = true
	address, connections := listen(t)
	a.makeSpecialFiles(t)
	secret := filepath.Join(a.outside, "secret.raw")
	inDir := "../" + filepath.Base(a.dir) + "/"
	names := []string{
		secret, filepath.Join(a.outside, "secret.qcow2"), "../outside/secret.raw", "../outside/secret.qcow2", "../outside/secret",
		"./../outside/secret.raw", "x/../../outside/secret.raw", inDir + "../outside/secret.raw", "//" + secret, a.dir + "/../outside/secret.raw",
		"link.raw", "linked/secret.raw", "link-absolute.raw", "/proc/self/environ", "/etc/passwd", "/dev/zero", "/dev/stdin", "zero.raw",
		"fifo.raw", "fifo.qcow2", "socket.raw", "directory.raw", "directory", ".", "..", "/", "missing.raw", "missing.qcow2",
		"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"" + secret + "\"}}",
		"json:{\"driver\":\"nbd\",\"host\":\"127.0.0.1\",\"port\":\"" + address[strings.LastIndex(address, ":")+1:] + "\"}",
		"json:", "json:{", "nbd://" + address, "nbd:" + address, "nbd+unix:///?socket=" + filepath.Join(a.dir, "socket.raw"),
		"http://" + address + "/secret.raw", "https://" + address + "/", "ftp://" + address + "/", "ssh://" + address + "/x", "rbd:pool/image",
		"file:" + secret, "file://" + secret, "raw:" + secret, "fat:/etc", "vvfat:/etc", "host_device:/dev/zero", "blkdebug::" + secret,
		"nul\x00.raw", "..\x00", "new\nline", strings.Repeat("a", 1023), strings.Repeat("../", 300) + "etc/passwd", "",
		"fd:0", "/dev/fd/0", "/dev/fdset/1", "~/secret", "secret.raw\x00.qcow2", "\xff\xfe",
	}
	for i, name := range names {
		for _, format := range []string{"raw", "qcow2", "", "data"} {
			data := format == "data"
			if name == "" && !data {
				continue // a backing name of no length is none
			}
			t.Run(fmt.Sprintf("%q as %q", name[:min(len(name), 60)], format), func(t *testing.T) {
				file := a.link(t, fmt.Sprintf("-%d-%s.qcow2", i, format), name, format, data)
				a.refused(t, file, "refused", "backing-unavailable", "unsupported-feature", "corrupt-image")
			})
		}
	}
	for _, format := range []string{"file", "nbd", "vmdk", "qcow", "luks", "http", "blkdebug"} {
		t.Run("format "+format, func(t *testing.T) {
			a.refused(t, a.link(t, "-format-"+format+".qcow2", a.good, format, false), "refused", "unsupported-feature", "backing-unavailable")
		})
	}
	a.listsAll(t)
	if n := connections.Load(); n > 0 {
		t.Errorf("the server made %d connections", n)
	}
	a.close(t)
}

// makeSpecialFiles puts what is no image, and what leads out, into the served
// directory.
func (a *arena) makeSpecialFiles(t *testing.T) {
	t.Helper()
	for _, name := range []string{"fifo.raw", "fifo.qcow2"} {
		if err := syscall.Mkfifo(a.path(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", a.path("socket.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, name := range []string{"directory.raw", "directory", "x"} {
		if err := os.Mkdir(a.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"link.raw": "../outside/secret.raw", "link.qcow2": "../outside/secret.qcow2", "linked": "../outside",
		"link-absolute.raw": filepath.Join(a.outside, "secret.raw"), "zero.raw": "/dev/zero", "tty.raw": "/dev/tty",
		"dangling.raw": "nowhere", "loop.raw": "loop.raw", "environ.raw": "/proc/self/environ",
	} {
		if err := os.Symlink(target, a.path(name)); err != nil {
			t.Fatal(err)
		}
	}
}

// listsAll walks the list, which no entry may fail.
func (a *arena) listsAll(t *testing.T) {
	t.Helper()
	for cursor := ""; ; {
		var list struct {
			Images []image `json:"images"`
			Next   string  `json:"next"`
		}
		a.getJSON(t, &list, "/v1/images"+cursor)
		if list.Next == "" {
			return
		}
		cursor = "?cursor=" + list.Next
	}
}

// TestNotImages asks for files that are no images, by name.
func TestNotImages(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	a.makeSpecialFiles(t)
	for _, name := range []string{
		"fifo.raw", "fifo.qcow2", "socket.raw", "directory.raw", "link.raw", "link.qcow2", "link-absolute.raw",
		"zero.raw", "tty.raw", "dangling.raw", "loop.raw", "environ.raw",
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"", "/data", "/extents"} {
				if status, body, _ := a.fetch(t, "/v1/images/"+name+path); status != http.StatusNotFound && status != http.StatusUnprocessableEntity {
					t.Errorf("%q: status %d\n%.300s", path, status, body)
				}
			}
		})
	}
	whole := a.create("-whole.qcow2", 4*mib)
	a.io(whole, a.write(0, mib))
	info, err := os.Stat(a.path(whole))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, 1, 3, 4, 71, 72, 103, 104, 111, 112, 511, 512, 4096, 65535, 65536, 131072, 196608, 262143, 262144, 327680, info.Size() - 1} {
		t.Run(fmt.Sprint("truncated to ", n), func(t *testing.T) {
			file := a.file(fmt.Sprintf("-truncated-%d.qcow2", n))
			a.run("cp", whole, file)
			if err := os.Truncate(a.path(file), n); err != nil {
				t.Fatal(err)
			}
			a.judge(t, file, false)
		})
	}
	a.listsAll(t)
	a.close(t)
}

// TestBackingChains: loops, and chains that are too deep.
func TestBackingChains(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	a.echoes = true
	a.link(t, "-self.qcow2", "x-self.qcow2", "qcow2", false)
	a.link(t, "-one.qcow2", "x-two.qcow2", "qcow2", false)
	a.link(t, "-two.qcow2", "./x-three.qcow2", "qcow2", false)
	a.link(t, "-three.qcow2", a.path("x-one.qcow2"), "qcow2", false)
	a.run("ln", "x-self.qcow2", "x-hard.qcow2")
	a.link(t, "-to-hard.qcow2", "x-hard.qcow2", "qcow2", false)
	for _, file := range []string{"x-self.qcow2", "x-one.qcow2", "x-two.qcow2", "x-three.qcow2", "x-hard.qcow2", "x-to-hard.qcow2"} {
		a.refused(t, file, "backing-unavailable")
	}
	below := a.good
	deepest := ""
	for depth := 2; depth <= 66; depth++ {
		below = a.link(t, fmt.Sprintf("-depth-%d.qcow2", depth), below, "qcow2", false)
		if depth == 60 {
			_, got := a.expect(t, http.StatusOK, "/v1/images/"+below+"/data")
			if i := firstDifference(got, a.content); i >= 0 {
				t.Errorf("byte %d differs through 60 layers", i)
			}
			a.judge(t, below, false)
		}
		deepest = below
	}
	a.expect(t, http.StatusOK, "/v1/images/x-depth-64.qcow2")
	a.refused(t, "x-depth-65.qcow2", "backing-unavailable")
	a.refused(t, deepest, "backing-unavailable")
	a.listsAll(t)
	a.close(t)
}

// TestBackingNames: what is followed, and what is not when the operator says so.
func TestBackingNames(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	a.echoes = true
	a.run("mkdir", "sub")
	a.run("cp", a.good, "sub/inner.qcow2")
	if err := os.Symlink(a.good, a.path("inside.qcow2")); err != nil {
		t.Fatal(err)
	}
	hidden := a.create("-hidden.qcow2", mib)
	a.io(hidden, a.write(0, 100*kib))
	a.run("cp", hidden, "disguised.raw")
	follows := map[string]string{}
	for i, name := range []string{a.good, "./" + a.good, a.path(a.good), "sub/inner.qcow2"} {
		follows[name] = a.link(t, fmt.Sprintf("-%d.qcow2", i), name, "qcow2", false)
	}
	for name, file := range follows {
		t.Run(name, func(t *testing.T) {
			_, got := a.expect(t, http.StatusOK, "/v1/images/"+file+"/data")
			if i := firstDifference(got, a.content); i >= 0 {
				t.Errorf("byte %d differs", i)
			}
		})
	}
	t.Run("a link inside", func(t *testing.T) {
		file := a.link(t, "-link.qcow2", "inside.qcow2", "qcow2", false)
		if status, got, _ := a.fetch(t, "/v1/images/"+file+"/data"); status == http.StatusOK {
			if i := firstDifference(got, a.content); i >= 0 {
				t.Errorf("byte %d differs", i)
			}
		} else {
			a.refused(t, file, "refused", "backing-unavailable")
		}
	})
	t.Run("a raw disk with a header inside", func(t *testing.T) {
		// Without a format QEMU would probe, and read what the guest wrote.
		want, err := os.ReadFile(a.path("disguised.raw"))
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"raw", ""} {
			file := a.link(t, "-disguised"+format+".qcow2", "disguised.raw", format, false)
			status, got, _ := a.fetch(t, "/v1/images/"+file+"/data")
			if status != http.StatusOK && format == "" {
				a.refused(t, file, "refused", "backing-unavailable", "unsupported-feature")
				continue
			}
			want = want[:min(len(want), int(mib))]
			if status != http.StatusOK || string(got[:len(want)]) != string(want) {
				t.Errorf("format %q: status %d, and not the raw bytes", format, status)
			}
		}
	})
	t.Run("--follow-backing=deny", func(t *testing.T) {
		deny := serve(t, a.dir, "--follow-backing", "deny")
		for _, file := range follows {
			for _, path := range []string{"", "/data", "/extents"} {
				deny.expectProblem(t, http.StatusUnprocessableEntity, "refused", "/v1/images/"+file+path)
			}
		}
		deny.expect(t, http.StatusOK, "/v1/images/"+a.good+"/data")
	})
	t.Run("--backing-dir", func(t *testing.T) {
		file := a.link(t, "-out.qcow2", "../outside/secret.raw", "raw", false)
		a.refused(t, file, "refused", "backing-unavailable")
		if opened := a.opened(); len(opened) > 0 {
			t.Fatalf("opened %v", opened)
		}
		allowed := serve(t, a.dir, "--backing-dir", a.outside)
		_, got := allowed.expect(t, http.StatusOK, "/v1/images/"+file+"/data")
		if !strings.HasPrefix(string(got), marker) {
			t.Errorf("not what is in the backing file: %.100q", got)
		}
		allowed.expectProblem(t, http.StatusNotFound, "not-found", "/v1/images/secret.raw")
	})
	a.healthy(t)
}
