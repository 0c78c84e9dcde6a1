package api_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/extentd/extentd/api"
)

// snapshots starts a server with an image of 4 MiB and three snapshots of it, each
// with 64 KiB more of its number.
func snapshots(t *testing.T) *fixture {
	t.Helper()
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "4M")
	for n := range 3 {
		f.putBlock(t, n, byte(n+1))
		f.post(t, 201, "/v1/images/vm.qcow2/snapshots", fmt.Sprintf(`{"name":"s%d"}`, n))
	}
	return f
}

func (f *fixture) post(t testing.TB, status int, path, body string, headers ...string) answer {
	t.Helper()
	a := f.send(t, "POST", path, []byte(body), append(headers, "Content-Type", "application/json")...)
	if a.status != status {
		t.Fatalf("POST %s %s: %d %s", path, body, a.status, a.body)
	}
	return a
}

// putBlock fills a cluster of vm.qcow2.
func (f *fixture) putBlock(t testing.TB, n int, value byte) {
	t.Helper()
	at := n * 65536
	a := f.send(t, "PUT", "/v1/images/vm.qcow2/data", bytes.Repeat([]byte{value}, 65536), "Content-Range", fmt.Sprintf("bytes %d-%d/*", at, at+65535))
	if a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

// TestSnapshotNames: a snapshot is found by the path that its creation names, and by
// its name, whatever it is called.
func TestSnapshotNames(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "1M")
	for n, name := range []string{
		"plain", "with space", "a/b", "..", ".", "100%", "%41", "?x=1", "#", "ü", `"quoted"`, "a+b", "\\", ";", "id", strings.Repeat("n", 255), "-", "\n", "extents", "a%2Fb", "&amp;", "C:",
	} {
		body, want := fmt.Sprintf(`{"name":%q}`, name), fmt.Sprint(n+1)
		a := f.post(t, 201, "/v1/images/vm.qcow2/snapshots", body)
		var made api.Snapshot
		decode(t, a.body, &made)
		if made.Name != name || made.Id != want {
			t.Errorf("%q: %+v", name, made)
		}
		at := a.header.Get("Location")
		if parsed, err := url.Parse(at); err != nil || parsed.Path == "" || strings.Count(at, "/") != 5 {
			t.Errorf("%q is at %q", name, at)
		}
		paths := []string{at, "/v1/images/vm.qcow2/snapshots/id:" + want}
		if name != "." && name != ".." { // which is what a client makes of its own path
			paths = append(paths, "/v1/images/vm.qcow2/snapshots/"+url.PathEscape(name))
		}
		for _, path := range paths {
			var found api.Snapshot
			decode(t, f.expect(t, 200, path).body, &found)
			if found != made {
				t.Errorf("%s: %+v", path, found)
			}
			f.expect(t, 200, path+"/extents?since=id:1")
			f.expect(t, 206, path+"/data", "Range", "bytes=0-9")
			f.post(t, 200, path+"/revert", `{}`)
		}
	}
	f.expect(t, 404, "/v1/images/vm.qcow2/snapshots/A")
	f.send(t, "DELETE", "/v1/images/vm.qcow2/snapshots/a%2Fb", nil)
	f.expect(t, 404, "/v1/images/vm.qcow2/snapshots/a%2Fb").problem(t, 404, "not-found")
	f.expect(t, 200, "/v1/images/vm.qcow2/snapshots/a%252Fb")
}

// TestSnapshotConditions: what is said of a snapshot is good for ever, and a change
// of the image is made once.
func TestSnapshotConditions(t *testing.T) {
	f := snapshots(t)
	const one = "/v1/images/vm.qcow2/snapshots/s0"
	tags := func() [3]string {
		return [3]string{
			f.expect(t, 200, one+"/data").header.Get("Etag"), f.expect(t, 200, one+"/extents").header.Get("Etag"),
			f.expect(t, 200, one+"/extents?since=s2").header.Get("Etag"),
		}
	}
	before := tags()
	image := f.expect(t, 206, "/v1/images/vm.qcow2/data", "Range", "bytes=0-0").header.Get("Etag")
	f.post(t, 201, "/v1/images/vm.qcow2/snapshots", `{"name":"more"}`)
	if now := f.expect(t, 206, "/v1/images/vm.qcow2/data", "Range", "bytes=0-0").header.Get("Etag"); now != image {
		t.Error("a snapshot changes the data of the image")
	}
	f.post(t, 200, one+"/revert", `{}`, "If-Match", image)
	f.post(t, 412, one+"/revert", `{}`, "If-Match", image)
	if a := f.send(t, "DELETE", one, nil, "If-Match", image); a.status != http.StatusPreconditionFailed {
		t.Errorf("%d %s", a.status, a.body)
	}
	f.putBlock(t, 0, 9)
	if after := tags(); after != before {
		t.Errorf("%v, after a revert and a write %v", before, after)
	}
	if before[1] == before[2] {
		t.Error("what it is compared with does not count")
	}
	f.expect(t, 304, one+"/extents?since=s2", "If-None-Match", before[2])
	f.expect(t, 206, one+"/data", "Range", "bytes=0-9", "If-Range", before[0])
	if a := f.expect(t, 200, one+"/data"); len(a.body) != 4<<20 || bytes.Count(a.body, []byte{1}) != 65536 {
		t.Error("the snapshot reads otherwise")
	}
}

// TestSinceInPages: pages, lines and single extents say the same.
func TestSinceInPages(t *testing.T) {
	f := snapshots(t)
	for n := 0; n < 64; n += 3 {
		f.putBlock(t, n, 7)
	}
	for _, path := range []string{"/v1/images/vm.qcow2/extents?since=s1", "/v1/images/vm.qcow2/snapshots/s2/extents?since=s1", "/v1/images/vm.qcow2/snapshots/s0/extents?since=s1"} {
		var whole api.ExtentList
		decode(t, f.expect(t, 200, path).body, &whole)
		var paged []api.Extent
		for at := int64(0); ; {
			var page api.ExtentList
			decode(t, f.expect(t, 200, fmt.Sprintf("%s&limit=2&offset=%d", path, at)).body, &page)
			paged = append(paged, page.Extents...)
			if page.Next == nil {
				break
			}
			at = *page.Next
		}
		var lines []api.Extent
		for line := range strings.Lines(string(f.expect(t, 200, path, "Accept", "application/x-ndjson").body)) {
			var e api.Extent
			decode(t, []byte(line), &e)
			lines = append(lines, e)
		}
		if len(paged) != len(whole.Extents) || len(lines) != len(paged) {
			t.Fatalf("%s: %d extents, in pages %d, in lines %d", path, len(whole.Extents), len(paged), len(lines))
		}
		end, changed := int64(0), 0
		for k, e := range whole.Extents {
			if e.Changed == nil || e.Offset != end {
				t.Fatalf("%s: %+v", path, e)
			}
			if *e.Changed {
				changed++
			}
			if lines[k].Offset != e.Offset || paged[k].Offset != e.Offset || *lines[k].Changed != *e.Changed || *paged[k].Changed != *e.Changed {
				t.Errorf("%s: %+v, %+v, %+v", path, e, paged[k], lines[k])
			}
			var single api.ExtentList
			decode(t, f.expect(t, 200, fmt.Sprintf("%s&one=true&offset=%d", path, e.Offset)).body, &single)
			if len(single.Extents) != 1 || *single.Extents[0].Changed != *e.Changed || single.Extents[0].Length != e.Length {
				t.Errorf("%s: %+v, and alone %+v", path, e, single.Extents)
			}
			end += e.Length
		}
		if end != 4<<20 || changed == 0 || changed == len(whole.Extents) {
			t.Errorf("%s: to %d, %d of %d changed", path, end, changed, len(whole.Extents))
		}
	}
}

// TestSnapshotGoesUnderItsReader: a body of a snapshot that is deleted breaks off, or
// is whole.
func TestSnapshotGoesUnderItsReader(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "64M")
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64M", "vm.qcow2")
	f.post(t, 201, "/v1/images/vm.qcow2/snapshots", `{"name":"s"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/v1/images/vm.qcow2/snapshots/s/data", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if a := f.send(t, "DELETE", "/v1/images/vm.qcow2/snapshots/s", nil); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
	f.post(t, 204, "/v1/images/vm.qcow2/zero", `{"offset":0,"length":67108864}`)
	f.send(t, "PUT", "/v1/images/vm.qcow2/data", bytes.Repeat([]byte{6}, 32<<20), "Content-Range", "bytes 0-33554431/*")
	body, err := io.ReadAll(resp.Body)
	if bytes.Count(body, []byte{5}) != len(body) {
		t.Error("it has what the snapshot never had")
	}
	if err == nil {
		t.Errorf("all of %d bytes came, after the snapshot was gone", len(body))
	}
	f.expect(t, 404, "/v1/images/vm.qcow2/snapshots/s/data")
}
