package api_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
)

// TestOnlyMarkedExtents: what only leaves out is what it says, in pages of every
// size, as lines, and in a part of the image.
func TestOnlyMarkedExtents(t *testing.T) {
	f := bitmapsImage(t)
	f.post(t, 201, "/v1/images/vm.qcow2/snapshots", `{"name":"one"}`)
	f.bitmap(t, 201, "POST", "", `{"name":"b"}`)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		f.fill(t, r.IntN(4<<20-100_000), 1+r.IntN(100_000))
	}
	const extents = "/v1/images/vm.qcow2/extents"
	for _, mark := range []struct{ query, only string }{{"?since=one", "changed"}, {"?dirty=b", "dirty"}} {
		is := func(e *api.Extent) bool { return e.Changed != nil && *e.Changed || e.Dirty != nil && *e.Dirty }
		for _, window := range [][2]int{{0, 4 << 20}, {r.IntN(2 << 20), 1 + r.IntN(2<<20)}} {
			path := func(off, n int) string { return fmt.Sprintf("%s%s&offset=%d&length=%d", extents, mark.query, off, n) }
			var all api.ExtentList
			decode(t, f.expect(t, 200, path(window[0], window[1])+"&limit=100000").body, &all)
			var want []api.Extent
			for k := range all.Extents {
				if is(&all.Extents[k]) {
					want = append(want, all.Extents[k])
				}
			}
			for _, limit := range []int{1, 3, 1000} {
				var got []api.Extent
				for off, n := window[0], window[1]; n > 0; {
					var page api.ExtentList
					decode(t, f.expect(t, 200, path(off, n)+fmt.Sprintf("&only=%s&limit=%d", mark.only, limit)).body, &page)
					got = append(got, page.Extents...)
					if page.Next == nil {
						break
					}
					off, n = int(*page.Next), window[0]+window[1]-int(*page.Next)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s %v in pages of %d: %s", mark.query, window, limit, diff)
				}
			}
			if diff := cmp.Diff(want, f.lines(t, path(window[0], window[1])+"&only="+mark.only)); diff != "" {
				t.Errorf("%s %v as lines: %s", mark.query, window, diff)
			}
		}
	}
	for _, bad := range []string{"?only=changed", "?since=one&only=dirty", "?dirty=b&only=changed"} {
		f.get(t, extents+bad).problem(t, 400, "invalid-request")
	}
	whole, part := f.expect(t, 200, extents+"?since=one"), f.expect(t, 200, extents+"?since=one&only=changed")
	if whole.header.Get("ETag") == part.header.Get("ETag") {
		t.Error("the whole and a part of it have one ETag")
	}
}
