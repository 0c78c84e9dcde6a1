package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/load"
)

// nothingTaken makes sure that all memory has come back when the last request has
// been answered.
func (f *fixture) nothingTaken(t *testing.T, limits *load.Limits) {
	t.Helper()
	if err := f.requests.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used := limits.Memory().Used(); used != 0 {
		t.Errorf("%d bytes are taken", used)
	}
}

// Where there is no memory for a transfer, it is refused before anything is read
// or changed, and the client is told when to come again.
func TestNoMemory(t *testing.T) {
	limits := load.New(load.Options{Transfers: 8 << 10})
	f := start(t, api.Options{Load: limits}, nil)
	f.random(t, "disk.raw", 4<<20)
	before := f.send(t, http.MethodHead, "/v1/images/disk.raw/data", nil).header.Get("Etag")
	for name, answer := range map[string]answer{
		"download":       f.send(t, http.MethodGet, "/v1/images/disk.raw/data", nil),
		"small download": f.send(t, http.MethodGet, "/v1/images/disk.raw/data", nil, "Range", "bytes=0-4095"),
		"parts":          f.send(t, http.MethodGet, "/v1/images/disk.raw/data", nil, "Range", "bytes=0-4095,8192-9000"),
		"map":            f.send(t, http.MethodGet, "/v1/images/disk.raw/extents", nil),
		"upload":         f.put(t, "disk.raw", 0, make([]byte, 1<<20), "If-Match", before),
	} {
		if answer.status != http.StatusServiceUnavailable || answer.header.Get("Retry-After") == "" || !bytes.Contains(answer.body, []byte("/problems/busy")) {
			t.Errorf("%s: status %d, Retry-After %q: %s", name, answer.status, answer.header.Get("Retry-After"), answer.body)
		}
	}
	if after := f.send(t, http.MethodHead, "/v1/images/disk.raw/data", nil).header.Get("Etag"); after != before {
		t.Errorf("the ETag was %s and is %s", before, after)
	}
	f.put(t, "disk.raw", 0, []byte("tiny"), "If-Match", before).noContent(t)
	if n := limits.Counts().Busy.Load(); n != 5 {
		t.Errorf("%d were counted", n)
	}
	f.nothingTaken(t, limits)
}

// What is sent and stored does not depend on how much memory there is, and all of
// it comes back.
func TestLittleMemory(t *testing.T) {
	for _, total := range []int64{128 << 10, 1 << 20, 4 << 20, 64 << 20} {
		t.Run(fmt.Sprint(total>>10, "KiB"), func(t *testing.T) {
			limits := load.New(load.Options{Transfers: total, Stall: time.Minute})
			f := start(t, api.Options{Load: limits}, nil)
			const size = 8 << 20
			want := f.random(t, "disk.raw", size)
			for i, part := range [][2]int{{0, 1}, {7, 4 << 10}, {4097, 64 << 10}, {100_000, 64<<10 + 1}, {70_001, 1 << 20}, {65_530, 3<<20 + 17}, {1 << 20, 7 << 20}} {
				p := pattern(byte(i), part[1])
				copy(want[part[0]:], p)
				f.put(t, "disk.raw", part[0], p).noContent(t)
				got := f.expect(t, http.StatusPartialContent, "/v1/images/disk.raw/data", "Range", fmt.Sprintf("bytes=%d-%d", part[0], part[0]+part[1]-1)).body
				if !bytes.Equal(got, p) {
					t.Errorf("%d bytes at %d are others", part[1], part[0])
				}
			}
			if !bytes.Equal(f.content(t, "disk.raw"), want) {
				t.Error("the image holds something else")
			}
			f.nothingTaken(t, limits)
		})
	}
}

// Likewise for maps.
func TestMapInLittleMemory(t *testing.T) {
	var whole []byte
	for _, total := range []int64{128 << 10, 64 << 20} {
		limits := load.New(load.Options{Transfers: total})
		f := start(t, api.Options{Load: limits}, nil)
		writeStripedQCOW2(t, filepath.Join(f.dir, "disk.qcow2"))
		got := f.expect(t, http.StatusOK, "/v1/images/disk.qcow2/extents", "Accept", "application/x-ndjson").body
		if whole == nil {
			whole = got
		}
		if len(got) < 1<<20 || !bytes.Equal(got, whole) {
			t.Errorf("with %d bytes there are %d of the map, and %d", total, len(got), len(whole))
		}
		f.nothingTaken(t, limits)
	}
}

// Clients are told apart by their address, and those that are told to wait find
// out for how long; probes are not counted.
func TestRateOfClients(t *testing.T) {
	limits := load.New(load.Options{Rate: 0.001, Burst: 2})
	f := start(t, api.Options{Load: limits}, nil)
	for range 2 {
		f.expect(t, http.StatusOK, "/v1/images")
	}
	refused := f.expect(t, http.StatusTooManyRequests, "/v1/images/none.raw")
	if after := refused.header.Get("Retry-After"); after == "" || after == "0" || !bytes.Contains(refused.body, []byte("/problems/too-many-requests")) {
		t.Errorf("Retry-After %q: %s", after, refused.body)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml"} {
		f.expect(t, http.StatusOK, path)
	}
	if n := limits.Counts().Limited.Load(); n != 1 {
		t.Errorf("%d were counted", n)
	}
}
