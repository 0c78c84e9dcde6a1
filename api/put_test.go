package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/api"
)

// put writes p at off.
func (f *fixture) put(t testing.TB, image string, off int, p []byte, headers ...string) answer {
	t.Helper()
	return f.send(t, http.MethodPut, "/v1/images/"+image+"/data", p, append(headers, "Content-Range", rangeOf(off, len(p)))...)
}

func rangeOf(off, n int) string { return fmt.Sprintf("bytes %d-%d/*", off, off+n-1) }

// noContent wants a 204.
func (a answer) noContent(t testing.TB) answer {
	t.Helper()
	if a.status != http.StatusNoContent || len(a.body) != 0 {
		t.Fatalf("status %d, want 204: %v\n%.1000s", a.status, a.header, a.body)
	}
	return a
}

// pattern is n bytes that tell where they belong.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)
	}
	return p
}

// content is what an image holds.
func (f *fixture) content(t testing.TB, image string) []byte {
	t.Helper()
	return f.expect(t, 200, "/v1/images/"+image+"/data").body
}

// state is everything that a refused request must leave as it was.
func (f *fixture) state(t testing.TB, image string) string {
	t.Helper()
	m := f.expect(t, 200, "/v1/images/"+image+"/extents")
	_, extents, _ := bytes.Cut(m.body, []byte(`"extents":`))
	return fmt.Sprintf("%s\n%x", extents, sha256.Sum256(f.content(t, image)))
}

const diskSize = 5*mib + 512

// disks makes an image of every kind that is written to in its own way, all
// with the same content.
func (f *fixture) disks(t testing.TB) (names []string, content []byte) {
	t.Helper()
	content = f.random(t, "base.raw", diskSize)
	clear(content[mib : 2*mib])
	f.write(t, "base.raw", content)
	f.write(t, "disk.raw", content)
	f.qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "base.raw", "plain.qcow2")
	f.qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "base.raw", "sub.qcow2")
	f.qemu(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "packed.qcow2")
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over.qcow2")
	return []string{"disk.raw", "plain.qcow2", "sub.qcow2", "packed.qcow2", "over.qcow2"}, content
}

func TestPut(t *testing.T) {
	f := start(t, api.Options{}, nil)
	names, content := f.disks(t)
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, name := range names {
		model := bytes.Clone(content)
		etag := f.do(t, "HEAD", "/v1/images/"+name+"/data").header.Get("Etag")
		for i, n := range []int{1, 511, 4096, 65536, 65537, mib, 3*mib + 100, 4096} {
			off := random.IntN(len(model) - n)
			p := pattern(byte(i*37), n)
			a := f.put(t, name, off, p).noContent(t)
			copy(model[off:], p)
			h := a.header
			if h.Get("Etag") == etag || h.Get("Etag") == "" || h.Get("Accept-Ranges") != "bytes" || h.Get("Block-Size-Minimum") != "1" || h.Get("Content-Type") != "" {
				t.Errorf("%s: %v after %s", name, h, etag)
			}
			etag = h.Get("Etag")
			if got := f.expect(t, 206, "/v1/images/"+name+"/data", "Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1)); !bytes.Equal(got.body, p) || got.header.Get("Etag") != etag {
				t.Errorf("%s: %d bytes at %d differ, or have the ETag %s and not %s", name, n, off, got.header.Get("Etag"), etag)
			}
		}
		if !bytes.Equal(f.content(t, name), model) {
			t.Errorf("%s differs", name)
		}
		// Without Content-Range, the whole.
		whole := pattern(99, len(model))
		f.send(t, "PUT", "/v1/images/"+name+"/data?flush=true", whole).noContent(t)
		if !bytes.Equal(f.content(t, name), whole) {
			t.Errorf("%s differs from the whole", name)
		}
		f.put(t, name, len(model)-5, []byte("tail!"), "Content-Type", "text/html").noContent(t)
		if got := f.content(t, name); string(got[len(got)-5:]) != "tail!" {
			t.Errorf("%s: the tail differs", name)
		}
	}
	f.write(t, "empty.raw", nil)
	f.send(t, "PUT", "/v1/images/empty.raw/data", nil).noContent(t)
	f.send(t, "PUT", "/v1/images/empty.raw/data", []byte{1}).problem(t, 400, "invalid-request")
	if !bytes.Equal(f.content(t, "base.raw"), content) {
		t.Error("the backing has changed")
	}
}

// What is wrong with a request is told before anything is written.
func TestPutRefused(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	for _, name := range []string{"disk.raw", "over.qcow2"} {
		path := "/v1/images/" + name + "/data"
		before := f.state(t, name)
		for _, test := range []struct {
			status  int
			problem string
			field   string // "" for none
			rule    string
			n       int
			query   string
			headers []string
		}{
			{400, "invalid-request", "Content-Range", "syntax", 10, "", []string{"Content-Range", "bytes 0-9"}},
			{400, "invalid-request", "Content-Range", "syntax", 10, "", []string{"Content-Range", "lines 0-9/*"}},
			{400, "invalid-request", "Content-Range", "repeated", 10, "", []string{"Content-Range", "bytes 0-9/*", "Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "Content-Range", "conflict", 10, "", []string{"Content-Range", "bytes 0-9/10"}},
			{400, "invalid-request", "", "", 10, "", []string{"Content-Range", "bytes 9-0/*"}},
			{400, "out-of-range", "", "", 10, "", []string{"Content-Range", fmt.Sprintf("bytes %d-%d/*", diskSize-9, diskSize)}},
			{400, "out-of-range", "", "", 10, "", []string{"Content-Range", "bytes 9223372036854775800-9223372036854775807/*"}},
			{400, "invalid-request", "Content-Length", "conflict", 9, "", []string{"Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "Content-Length", "conflict", 11, "", []string{"Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "Content-Length", "conflict", 0, "", []string{"Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "Content-Length", "conflict", 10, "", nil},
			{400, "invalid-request", "Content-Length", "conflict", diskSize + 1, "", nil},
			{400, "invalid-request", "flush", "syntax", 10, "?flush=1", []string{"Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "flush", "repeated", 10, "?flush=true&flush=true", []string{"Content-Range", "bytes 0-9/*"}},
			{400, "invalid-request", "sync", "unknown", 10, "?sync=true", []string{"Content-Range", "bytes 0-9/*"}},
			{412, "precondition-failed", "", "", 10, "", []string{"Content-Range", "bytes 0-9/*", "If-Match", `"other"`}},
			{412, "precondition-failed", "", "", 10, "", []string{"Content-Range", "bytes 0-9/*", "If-Match", ""}},
			{412, "precondition-failed", "", "", 10, "", []string{"Content-Range", "bytes 0-9/*", "If-None-Match", "*"}},
			{412, "precondition-failed", "", "", 10, "", []string{"Content-Range", "nonsense", "If-Match", `"other"`}},
			{415, "unsupported-media-type", "", "", 10, "", []string{"Content-Range", "bytes 0-9/*", "Content-Encoding", "gzip"}},
		} {
			a := f.send(t, "PUT", path+test.query, pattern(1, test.n), test.headers...)
			p := a.problem(t, test.status, test.problem)
			if test.field != "" && (p.Errors == nil || (*p.Errors)[0].Field != test.field || (*p.Errors)[0].Rule != test.rule) {
				t.Errorf("%v: %s", test, a.body)
			}
		}
		if after := f.state(t, name); after != before {
			t.Errorf("%s has changed", name)
		}
	}
	f.send(t, "PUT", "/v1/images/nothing.raw/data", nil).problem(t, 404, "not-found")
	f.send(t, "PUT", "/v1/images/-/data", nil).problem(t, 400, "invalid-request")
}

// A body whose length shows only when it ends is refused then, and nothing
// outside its range has been written.
func TestPutOfTheWrongLength(t *testing.T) {
	f := start(t, api.Options{}, nil)
	_, content := f.disks(t)
	for _, name := range []string{"disk.raw", "sub.qcow2"} {
		for _, n := range []int{4096, 2*mib + 7} {
			for _, sent := range []int{0, 1, n - 1, n + 1, n + mib} {
				const off = 12345
				body := io.MultiReader(bytes.NewReader(pattern(7, sent))) // of no known length
				req, err := http.NewRequestWithContext(t.Context(), "PUT", f.url+"/v1/images/"+name+"/data", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Range", rangeOf(off, n))
				resp, err := f.http.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				p := answer{status: resp.StatusCode, header: resp.Header, body: text}.problem(t, 400, "invalid-request")
				if (*p.Errors)[0].Field != "body" || (*p.Errors)[0].Rule != "length" {
					t.Errorf("%s, %d of %d bytes: %s", name, sent, n, text)
				}
				got := f.content(t, name)
				if !bytes.Equal(got[:off], content[:off]) || !bytes.Equal(got[off+n:], content[off+n:]) {
					t.Errorf("%s, %d of %d bytes: written outside the range", name, sent, n)
				}
				if n == 4096 && !bytes.Equal(got, content) {
					t.Errorf("%s, %d of %d bytes: written", name, sent, n)
				}
			}
		}
	}
}

// Of clients that write with the same ETag, one succeeds.
func TestPutRace(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", mib)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
	for _, name := range []string{"disk.raw", "disk.qcow2"} {
		path := "/v1/images/" + name
		writers := []func() (answer, error){
			func() (answer, error) { return answer{}, nil },
		}
		etag := ""
		writers[0] = func() (answer, error) {
			return f.trySend(t.Context(), "PUT", path+"/data", pattern(1, 4096), "Content-Range", rangeOf(4096, 4096), "If-Match", etag)
		}
		for call, body := range map[string]string{"/zero": `{"offset":0,"length":512}`, "/trim": `{"offset":0,"length":512}`} {
			writers = append(writers, func() (answer, error) {
				return f.trySend(t.Context(), "POST", path+call, []byte(body), "Content-Type", "application/json", "If-Match", etag)
			})
		}
		for range 20 {
			etag = f.do(t, "HEAD", path+"/data").header.Get("Etag")
			var won, lost atomic.Int32
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					a, err := writers[i%len(writers)]()
					switch {
					case err != nil:
						t.Error(err)
					case a.status == 204:
						won.Add(1)
					case a.status == 412:
						lost.Add(1)
					default:
						t.Errorf("%d: %s", a.status, a.body)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 || lost.Load() != 5 {
				t.Fatalf("%s: %d won, %d lost", name, won.Load(), lost.Load())
			}
		}
		etag = f.do(t, "HEAD", path+"/data").header.Get("Etag")
		f.put(t, name, 0, []byte{1}, "If-None-Match", etag).problem(t, 412, "precondition-failed")
		f.put(t, name, 0, []byte{1}, "If-None-Match", `"other"`).noContent(t)
		f.put(t, name, 0, []byte{1}, "If-Match", "*").noContent(t)
	}
}

// Many write to one image at once, over both protocols.
func TestPutInParallel(t *testing.T) {
	f := start(t, api.Options{}, nil)
	names, content := f.disks(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	two := &http.Transport{Protocols: protocols}
	defer two.CloseIdleConnections()
	clients := []*http.Client{f.http, {Transport: two}}
	for _, name := range names {
		model := bytes.Clone(content)
		var wg sync.WaitGroup
		const piece = 300_001
		for i := 0; i*piece < len(model); i++ {
			off := i * piece
			n := min(piece, len(model)-off)
			p := pattern(byte(i), n)
			copy(model[off:], p)
			wg.Go(func() {
				c := *f
				c.http = clients[i%2]
				a, err := c.trySend(t.Context(), "PUT", "/v1/images/"+name+"/data", p, "Content-Range", rangeOf(off, n))
				if err != nil || a.status != 204 {
					t.Errorf("%s: %d bytes at %d: %v, %s", name, n, off, err, a.body)
				}
			})
		}
		wg.Wait()
		if !bytes.Equal(f.content(t, name), model) {
			t.Errorf("%s differs", name)
		}
	}
	f.stop(t)
	for _, name := range names[1:] {
		f.qemu(t, "qemu-img", "check", "-q", name)
	}
}

// A client that goes away in the middle of its body leaves nothing behind.
func TestPutClientGoesAway(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 8*mib)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		in, out := io.Pipe()
		req := httptest.NewRequest("PUT", f.url+"/v1/images/disk.raw/data", in).WithContext(ctx)
		req.RequestURI = ""
		req.ContentLength = 8 * mib
		go func() {
			_, _ = out.Write(make([]byte, 3*mib))
			cancel()
			out.Close()
		}()
		if resp, err := f.http.Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	f.put(t, "disk.raw", 0, []byte{1}).noContent(t)
	if strings.Contains(f.log.String(), "level=ERROR") {
		t.Errorf("a client that went away is logged as an error:\n%.1000s", f.log)
	}
}

// What a virtual machine has open is left alone, and it leaves alone what is
// open here.
func TestPutBusy(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	for _, name := range []string{"disk.raw", "plain.qcow2"} {
		format := strings.TrimPrefix(filepath.Ext(name), ".")
		vm := exec.Command("qemu-io", "-f", format, name)
		vm.Dir = f.dir
		in, err1 := vm.StdinPipe()
		out, err2 := vm.StdoutPipe()
		if err := errors.Join(err1, err2, vm.Start()); err != nil {
			t.Fatalf("%v: apt-get install qemu-utils", err)
		}
		if _, err := io.WriteString(in, "write 0 512\n"); err != nil {
			t.Fatal(err)
		}
		for told := bufio.NewScanner(out); !strings.Contains(told.Text(), "wrote 512"); {
			if !told.Scan() {
				t.Fatal("qemu-io has not written")
			}
		}
		f.get(t, "/v1/images/"+name).problem(t, 409, "image-busy")
		f.put(t, name, 0, []byte("x")).problem(t, 409, "image-busy")
		f.json(t, "POST", "/v1/images/"+name+"/zero", `{"offset":0,"length":1}`).problem(t, 409, "image-busy")
		f.send(t, "PATCH", "/v1/images/"+name, []byte(`{"size":99999999}`), "Content-Type", "application/json").problem(t, 409, "image-busy")
		f.do(t, "DELETE", "/v1/images/"+name).problem(t, 409, "image-busy")
		in.Close()
		if err := vm.Wait(); err != nil {
			t.Error(err)
		}
		f.put(t, name, 0, []byte("x")).noContent(t)
		other := exec.Command("qemu-io", "-f", format, "-c", "write 0 512", name)
		other.Dir = f.dir
		if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("%s: qemu-io writes to what is open here: %v\n%s", name, err, out)
		}
	}
}
