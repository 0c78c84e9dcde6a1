package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// marker is what nobody may read: the content of the files outside.
const marker = "this is outside of the served directory"

// An arena is a server among hostile images, beside a directory whose files it
// must never open.
type arena struct {
	*server
	*maker
	outside string // the directory that must not be touched
	good    string // an image that must always be readable
	content []byte // of the good one
	opened  func() []string
	echoes  bool // images store paths of the host, and answers may repeat them
}

func newArena(t *testing.T) *arena {
	t.Helper()
	root := t.TempDir()
	a := &arena{outside: filepath.Join(root, "outside")}
	dir := filepath.Join(root, "images")
	for _, d := range []string{dir, a.outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a.maker = newMaker(t, dir, "x")
	for name, text := range map[string]string{"secret.raw": strings.Repeat(marker+"\n", 5000), "secret": marker} {
		if err := os.WriteFile(filepath.Join(a.outside, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "../outside/secret.raw", "../outside/secret.qcow2")
	a.good = a.create("-good.qcow2", mib)
	a.io(a.good, a.write(0, 300*kib))
	path, err := convert(dir, a.good)
	if err != nil {
		t.Fatal(err)
	}
	if a.content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	a.server = serve(t, dir)
	a.client.Timeout = 20 * time.Second // nothing may block
	a.opened = watch(t, a.outside)
	return a
}

// close verifies what holds after all attacks: nothing outside was opened,
// little memory was used, and the good image is still served.
func (a *arena) close(t *testing.T) {
	t.Helper()
	a.healthy(t)
	if opened := a.opened(); len(opened) > 0 {
		t.Errorf("opened outside of the served directory: %v", opened)
	}
	if peak := a.peakMemory(); peak > 300*mib {
		t.Errorf("the server used %d MiB", peak/mib)
	} else {
		t.Logf("the server used %d MiB at most", peak/mib)
	}
}

// healthy verifies that the server goes on with the good image, and has nothing
// open that it should not.
func (a *arena) healthy(t *testing.T) {
	t.Helper()
	_, got := a.expect(t, http.StatusOK, "/v1/images/"+a.good+"/data")
	if i := firstDifference(got, a.content); i >= 0 {
		t.Fatalf("byte %d of the good image differs", i)
	}
	for _, path := range a.openFiles() {
		inside := strings.HasPrefix(path, a.dir+"/") || path == a.dir
		// The runtime keeps its cgroup's CPU limit open.
		system := !strings.HasPrefix(path, "/") || path == "/dev/null" || strings.HasPrefix(path, "/sys/fs/cgroup/")
		if !inside && !system {
			t.Errorf("the server has %s open", path)
		}
	}
}

// watch reports the files of a directory that any process opens from now on,
// once each.
func watch(t *testing.T, dir string) func() []string {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_OPEN|syscall.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	var mu sync.Mutex
	var names []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for at := 0; at+syscall.SizeofInotifyEvent <= n; {
				event := (*syscall.InotifyEvent)(unsafe.Pointer(&buf[at]))
				at += syscall.SizeofInotifyEvent
				name := strings.TrimRight(string(buf[at:at+int(event.Len)]), "\x00")
				at += int(event.Len)
				mu.Lock()
				if name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
				mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

// qemu runs qemu-img with a time limit, for images that may take forever.
func (a *arena) qemu(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Dir = a.dir
	return cmd.Output()
}

// fetch asks and returns status, body, and whether the body ended cleanly. It
// wants no error of the server's own, and nothing from outside.
func (a *arena) fetch(t *testing.T, path string, headers ...string) (status int, body []byte, whole bool) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, a.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	req.Close = true // or else the client tries again when a transfer breaks
	resp, err := a.client.Do(req)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return 0, nil, false // broken off before the header got out
		}
		t.Fatalf("GET %s: %v\n%s", path, err, a.stderr)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if resp.StatusCode >= 500 {
		t.Errorf("GET %s: %s\n%.500s", path, resp.Status, body)
	}
	if strings.Contains(string(body), marker) {
		t.Errorf("GET %s: the answer has what is outside", path)
	}
	if !a.echoes && strings.Contains(string(body), filepath.Dir(a.dir)) {
		t.Errorf("GET %s: the answer has a path of the host:\n%.500s", path, body)
	}
	if resp.StatusCode >= 400 && err == nil && resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("GET %s: %s, Content-Type %s", path, resp.Status, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, body, err == nil
}

// refused wants that an image is not served, as 422 of one of the types.
func (a *arena) refused(t *testing.T, file string, types ...string) {
	t.Helper()
	for _, path := range []string{"", "/data", "/extents", "/limits"} {
		status, body, _ := a.fetch(t, "/v1/images/"+file+path)
		var p problem
		_ = json.Unmarshal(body, &p)
		if status != http.StatusUnprocessableEntity || !slices.Contains(types, strings.TrimPrefix(p.Type, "/problems/")) {
			t.Errorf("%q: status %d, want 422 and one of %v\n%.500s", path, status, types, body)
		}
	}
}

// judge compares what the server makes of a qcow2 file with what QEMU does: an
// image that does not open there is 422 here; what cannot be read or mapped
// there is 422 here, or a broken transfer; and the rest is the same. A stricter
// server may refuse what QEMU opens. Of an encrypted image we tell what it is,
// without a look at its key slots, and refuse only its data.
func (a *arena) judge(t *testing.T, file string, stricter bool) {
	t.Helper()
	info, err := a.qemu("info", "-f", "qcow2", "--output=json", file)
	if err != nil && a.encrypted(t, file) {
		status, body, _ := a.fetch(t, "/v1/images/"+file+"/data")
		checkProblem(t, http.Header{"Content-Type": {"application/problem+json"}}, body, status, "unsupported-feature")
		return
	}
	if err != nil {
		a.refused(t, file, "corrupt-image", "unsupported-feature", "backing-unavailable", "refused")
		return
	}
	// qemu-img info does without what only I/O needs: data files, secrets.
	_, openErr := a.try("qemu-io", "-r", "-f", "qcow2", "-c", "quit", file)
	status, body, _ := a.fetch(t, "/v1/images/"+file)
	if (stricter || openErr != nil) && status == http.StatusUnprocessableEntity {
		a.refused(t, file, "corrupt-image", "unsupported-feature", "backing-unavailable", "refused")
		return
	}
	if status != http.StatusOK {
		t.Errorf("status %d of an image that QEMU opens\n%.500s\nqemu-img info: %s", status, body, info)
		return
	}
	var size struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(info, &size); err != nil {
		t.Fatal(err)
	}
	readable := a.judgeData(t, file, min(size.Size, mib), stricter)
	if openErr == nil || !a.encrypted(t, file) {
		// An entry that leads nowhere may be refused on the map as well.
		a.judgeMap(t, file, min(size.Size, mib), stricter || !readable)
	}
}

func (a *arena) encrypted(t *testing.T, file string) bool {
	t.Helper()
	var img image
	status, body, _ := a.fetch(t, "/v1/images/"+file)
	return status == http.StatusOK && json.Unmarshal(body, &img) == nil && img.QCOW2 != nil && img.QCOW2.Encryption != ""
}

// judgeData compares the first bytes, and reports whether QEMU can read them.
func (a *arena) judgeData(t *testing.T, file string, size int64, stricter bool) bool {
	t.Helper()
	if size == 0 {
		return true
	}
	out := filepath.Join(scratch, fmt.Sprintf("judged-%d.raw", converted.Add(1)))
	source := fmt.Sprintf("driver=raw,offset=0,size=%d,file.driver=qcow2,file.file.driver=file,file.file.filename=%s", size, file)
	_, err := a.qemu("convert", "-t", "unsafe", "-O", "raw", "--image-opts", source, out)
	status, body, whole := a.fetch(t, "/v1/images/"+file+"/data", "Range", fmt.Sprintf("bytes=0-%d", size-1))
	switch {
	case status == http.StatusUnprocessableEntity && (err != nil || stricter):
	case err != nil && !whole:
	case err == nil && status == http.StatusPartialContent:
		want, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if i := firstDifference(body, want); i >= 0 {
			t.Errorf("byte %d differs from what QEMU reads (%d bytes, want %d)", i, len(body), len(want))
		}
	default:
		t.Errorf("data: status %d, whole %v; qemu-img convert: %v\n%.300s", status, whole, err, body[:min(300, len(body))])
	}
	return err == nil
}

func (a *arena) judgeMap(t *testing.T, file string, size int64, stricter bool) {
	t.Helper()
	if size == 0 {
		return
	}
	out, err := a.qemu("map", "-f", "qcow2", "--output=json", fmt.Sprint("--max-length=", size), file)
	status, body, whole := a.fetch(t, extentsPath(file, "length", size, "limit", 100_000))
	var p page
	var lines []mapLine
	switch {
	case status == http.StatusUnprocessableEntity && (err != nil || stricter):
	case err != nil && !whole:
	case err == nil && status == http.StatusOK && json.Unmarshal(body, &p) == nil && json.Unmarshal(out, &lines) == nil:
		checkExtents(t, file, p.Extents)
		sameMap(t, "the map", spansOfExtents(p.Extents), spansOf(lines))
	default:
		t.Errorf("extents: status %d, whole %v; qemu-img map: %v\n%.300s", status, whole, err, body[:min(300, len(body))])
	}
}
