package api_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
)

// bitmapsImage is an image with a cluster of data, and a bitmap.
func bitmapsImage(t *testing.T) *fixture {
	t.Helper()
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "4M")
	return f
}

func (f *fixture) bitmap(t *testing.T, status int, method, path, body string) (b api.Bitmap) {
	t.Helper()
	a := f.json(t, method, "/v1/images/vm.qcow2/bitmaps"+path, body)
	if a.status != status {
		t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	decode(t, a.body, &b)
	return b
}

func (f *fixture) fill(t *testing.T, off, n int) {
	t.Helper()
	a := f.send(t, http.MethodPut, "/v1/images/vm.qcow2/data", []byte(strings.Repeat("x", n)), "Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+n-1))
	if a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

// TestBitmapCalls is the life of a bitmap.
func TestBitmapCalls(t *testing.T) {
	f := bitmapsImage(t)
	dirty := int64(0)
	want := api.Bitmap{Name: "a", Granularity: 65536, Enabled: true, Dirty: &dirty}
	same := func(what string, got api.Bitmap) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	same("created", f.bitmap(t, 201, "POST", "", `{"name":"a"}`))
	f.fill(t, 65535, 2)
	dirty = 131072
	same("written", f.bitmap(t, 200, "GET", "/a", ""))
	want.Enabled = false
	same("disabled", f.bitmap(t, 200, "PATCH", "/a", `{"enabled":false}`))
	f.fill(t, 1<<20, 1)
	same("not changed", f.bitmap(t, 200, "PATCH", "/a", `{}`))
	f.bitmap(t, 201, "POST", "", `{"name":"b","granularity":512}`)
	f.fill(t, 2<<20, 1)
	dirty += 65536
	same("merged", f.bitmap(t, 200, "POST", "/a/merge", `{"from":["b"]}`))
	dirty = 0
	same("cleared", f.bitmap(t, 200, "POST", "/a/clear", `{}`))
	var list api.BitmapList
	decode(t, f.expect(t, 200, "/v1/images/vm.qcow2/bitmaps").body, &list)
	some := int64(512)
	if diff := cmp.Diff([]api.Bitmap{want, {Name: "b", Granularity: 512, Enabled: true, Dirty: &some}}, list.Bitmaps); diff != "" {
		t.Error(diff)
	}
	var img api.Image
	decode(t, f.expect(t, 200, "/v1/images/vm.qcow2").body, &img)
	if n := len(img.Qcow2.Bitmaps); n != 2 || *img.Qcow2.Bitmaps[1].Dirty != 512 {
		t.Errorf("%+v", img.Qcow2.Bitmaps)
	}
	f.json(t, "POST", "/v1/images/vm.qcow2/bitmaps", `{"name":"a"}`).problem(t, 409, "exists")
	if a := f.do(t, "DELETE", "/v1/images/vm.qcow2/bitmaps/a"); a.status != 204 {
		t.Errorf("%d %s", a.status, a.body)
	}
	f.get(t, "/v1/images/vm.qcow2/bitmaps/a").problem(t, 404, "not-found")
}

// TestBitmapNames: whatever a name is, it can be reached in a path.
func TestBitmapNames(t *testing.T) {
	f := bitmapsImage(t)
	f.qemu(t, "qemu-img", "bitmap", "--add", "vm.qcow2", "a/b")
	for _, name := range []string{"50%41", "50%", "a b", "ü", "a?b#c", "a,b;c=d", "+", "id:1", `"`, "\n", "...", strings.Repeat("x", 1023), strings.Repeat("ü", 511)} {
		body := fmt.Sprintf(`{"name":%q}`, name)
		a := f.json(t, "POST", "/v1/images/vm.qcow2/bitmaps", body)
		if at := "/v1/images/vm.qcow2/bitmaps/" + url.PathEscape(name); a.status != 201 || a.header.Get("Location") != at {
			t.Errorf("%q: %d, %q, %s", name, a.status, a.header.Get("Location"), a.body)
			continue
		}
		var got api.Bitmap
		decode(t, f.expect(t, 200, a.header.Get("Location")).body, &got)
		if got.Name != name {
			t.Errorf("%q: %+v", name, got)
		}
		f.expect(t, 200, "/v1/images/vm.qcow2/extents?dirty="+url.QueryEscape(name))
		if a := f.do(t, "DELETE", a.header.Get("Location")); a.status != 204 {
			t.Errorf("%q: %d %s", name, a.status, a.body)
		}
	}
	for _, name := range []string{"", "a/b", ".", "..", `a\u0000`, strings.Repeat("x", 1024), strings.Repeat("ü", 512)} {
		p := f.json(t, "POST", "/v1/images/vm.qcow2/bitmaps", `{"name":"`+name+`"}`).problem(t, 400, "invalid-request")
		if (*p.Errors)[0].Field != "name" {
			t.Errorf("%q: %+v", name, *p.Errors)
		}
	}
	f.bitmap(t, 200, "GET", "/a%2Fb", "")
	f.bitmap(t, 200, "PATCH", "/a%2fb", `{"enabled":false}`)
	if a := f.do(t, "DELETE", "/v1/images/vm.qcow2/bitmaps/a%2Fb"); a.status != 204 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestDirtyExtents: the map is split where the bitmap changes, and nowhere else,
// however it is asked for.
func TestDirtyExtents(t *testing.T) {
	f := bitmapsImage(t)
	f.fill(t, 0, 1<<20)
	f.bitmap(t, 201, "POST", "", `{"name":"d","granularity":4096}`)
	for _, off := range []int{0, 8192, 1<<20 - 4096, 1 << 20, 3 << 20} {
		f.fill(t, off, 4096)
	}
	if a := f.json(t, "POST", "/v1/images/vm.qcow2/zero", `{"offset":2097152,"length":1048576}`); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	const path = "/v1/images/vm.qcow2/extents?dirty=d"
	plain := f.lines(t, "/v1/images/vm.qcow2/extents")
	all := f.lines(t, path)
	marks := map[int64]bool{}
	for i, e := range all {
		if e.Dirty == nil || i > 0 && e.Offset != all[i-1].Offset+all[i-1].Length {
			t.Fatalf("extent %d: %+v", i, e)
		}
		if i > 0 && *e.Dirty == *all[i-1].Dirty && !isBoundary(plain, e.Offset) {
			t.Errorf("needlessly cut at %d", e.Offset)
		}
		for at := e.Offset; at < e.Offset+e.Length; at += 4096 {
			marks[at] = *e.Dirty
		}
		whole := containing(plain, e.Offset)
		whole.Length, whole.Offset, whole.Dirty = e.Length, e.Offset, e.Dirty
		if whole.NodeOffset != nil {
			at := *whole.NodeOffset + e.Offset - containing(plain, e.Offset).Offset
			whole.NodeOffset = &at
		}
		if diff := cmp.Diff(whole, e); diff != "" {
			t.Errorf("at %d: %s", e.Offset, diff)
		}
	}
	for at, dirty := range marks {
		want := at == 0 || at == 8192 || at == 1<<20-4096 || at == 1<<20 || at == 3<<20
		if dirty != want { // zeros that were zeros before are no change
			t.Errorf("%d is dirty: %v", at, dirty)
		}
	}
	for _, limit := range []int{1, 2, 3, 100} {
		var paged []api.Extent
		for next := int64(0); ; {
			var list api.ExtentList
			decode(t, f.expect(t, 200, fmt.Sprintf("%s&limit=%d&offset=%d", path, limit, next)).body, &list)
			if paged = append(paged, list.Extents...); list.Next == nil {
				break
			}
			next = *list.Next
		}
		if diff := cmp.Diff(all, paged); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
	}
	var one api.ExtentList
	decode(t, f.expect(t, 200, path+"&one=true&offset=8193&length=8000").body, &one)
	if e := one.Extents[0]; len(one.Extents) != 1 || e.Offset != 8193 || e.Length != 4095 || !*e.Dirty || *one.Next != 12288 {
		t.Errorf("%+v", one)
	}
}

func isBoundary(extents []api.Extent, at int64) bool { return containing(extents, at).Offset == at }

func containing(extents []api.Extent, at int64) api.Extent {
	for _, e := range extents {
		if e.Offset <= at && at < e.Offset+e.Length {
			return e
		}
	}
	return api.Extent{}
}

// TestDirtyExtentsETag: it is good until something is written, or the bitmap is
// changed, and that of the map alone stays as it is meanwhile.
func TestDirtyExtentsETag(t *testing.T) {
	f := bitmapsImage(t)
	f.fill(t, 0, 65536)
	f.bitmap(t, 201, "POST", "", `{"name":"d"}`)
	const path = "/v1/images/vm.qcow2/extents"
	tags := func() (plain, dirty string) {
		return f.expect(t, 200, path).header.Get("Etag"), f.expect(t, 200, path+"?dirty=d").header.Get("Etag")
	}
	plain, dirty := tags()
	if a := f.get(t, path+"?dirty=d", "If-None-Match", dirty); a.status != 304 || a.header.Get("Etag") != dirty {
		t.Errorf("%d %v", a.status, a.header)
	}
	f.fill(t, 0, 512) // in place
	plain2, dirty2 := tags()
	if plain2 != plain || dirty2 == dirty {
		t.Errorf("after a write in place: %s and %s, before %s and %s", plain2, dirty2, plain, dirty)
	}
	f.get(t, path+"?dirty=d", "If-Match", dirty).problem(t, 412, "precondition-failed")
	f.bitmap(t, 200, "POST", "/d/clear", `{}`)
	if _, dirty3 := tags(); dirty3 == dirty2 {
		t.Errorf("after it was cleared: still %s", dirty3)
	}
}

// TestDirtyExtentsOfALargeImage: what is alike is one extent, however much of the
// bitmap is read at a time.
func TestDirtyExtentsOfALargeImage(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "100G")
	f.bitmap(t, 201, "POST", "", `{"name":"d"}`)
	const at, size = 50 << 30, 100 << 30
	f.fill(t, at, 65536)
	var got []string
	for _, e := range f.lines(t, "/v1/images/vm.qcow2/extents?dirty=d") {
		got = append(got, fmt.Sprint(e.Offset, e.Length, *e.Dirty))
	}
	want := []string{fmt.Sprint(0, int64(at), false), fmt.Sprint(int64(at), 65536, true), fmt.Sprint(int64(at+65536), int64(size-at-65536), false)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
