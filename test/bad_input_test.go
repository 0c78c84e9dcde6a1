package test

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// A mistake is a request that must be refused.
type mistake struct {
	name    string
	method  string
	path    string // of the image, or with a leading ! of the server
	body    string
	headers []string
	status  int
	problem string
}

func posting(path, body string, status int, problem string) mistake {
	return mistake{name: path + " " + body, method: http.MethodPost, path: path, body: body, status: status, problem: problem}
}

// TestBadInput sends what is wrong with every call that changes something. It
// is refused with the right status, and neither map nor bytes change.
func TestBadInput(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "bad")
	m.create("-base.qcow2", mib)
	file := m.create(".qcow2", mib+512)
	m.io(file, m.write(0, 200*kib), "write -z 262144 131072", m.write(mib, 512))
	s := serve(t, m.dir)
	must(t, s.put(file, 0, []byte("open for writing"), true))
	g, err := s.allocate(file, object{"length": 128 * kib})
	must(t, err)
	must(t, s.fill(file, g.ID, 0, make([]byte, 128*kib)))
	must(t, s.update(file, []object{target(786432, 65536, "data", "allocation", g.ID, "allocation_offset", 0)}))
	var before, after image
	mapBefore := s.stream(t, file)
	_, bytesBefore := s.expect(t, http.StatusOK, imagePath(file, "/data"))
	s.getJSON(t, &before, imagePath(file, ""))
	for _, bad := range slices.Concat(badRanges(), badUpdates(g.ID), badBodies(), badImages(file, "bad-base.qcow2"), badUploads(g.ID), badAllocations()) {
		t.Run(strings.ReplaceAll(bad.name, "/", "_"), func(t *testing.T) {
			path := imagePath(file, bad.path)
			if rest, ok := strings.CutPrefix(bad.path, "!"); ok {
				path = rest
			}
			headers := bad.headers
			if bad.method != http.MethodPut && !slices.Contains(headers, "Content-Type") {
				headers = append(headers, "Content-Type", "application/json")
			}
			a, err := s.send(bad.method, path, []byte(bad.body), headers...)
			must(t, err)
			if a.status != bad.status {
				t.Fatalf("status %d, want %d %s\n%s", a.status, bad.status, bad.problem, a.body)
			}
			p := checkProblem(t, a.header, a.body, bad.status, bad.problem)
			if bad.problem == "invalid-request" && len(p.Errors) == 0 {
				t.Errorf("it does not say what is wrong: %s", a.body)
			}
		})
	}
	if diff := difference(spansOfExtents(s.stream(t, file)), spansOfExtents(mapBefore)); diff != "" {
		t.Errorf("the map has changed: %s", diff)
	}
	if _, now := s.expect(t, http.StatusOK, imagePath(file, "/data")); !bytes.Equal(now, bytesBefore) {
		t.Error("the bytes have changed")
	}
	s.getJSON(t, &after, imagePath(file, ""))
	if after.Size != before.Size {
		t.Errorf("the size is %d, and was %d", after.Size, before.Size)
	}
	if entries, err := os.ReadDir(m.dir); err != nil || len(entries) > 3 { // the images, and the state
		t.Errorf("the directory holds %v (%v)", entries, err)
	}
	must(t, s.giveBack(file, g.ID))
	s.stop()
	m.checkClean(t, file)
}

// badRanges are for zero, trim and flush.
func badRanges() []mistake {
	var all []mistake
	for _, path := range []string{"/zero", "/trim"} {
		all = append(all,
			posting(path, `{"offset":1049088,"length":1}`, 400, "out-of-range"),
			posting(path, `{"offset":0,"length":1049089}`, 400, "out-of-range"),
			posting(path, fmt.Sprintf(`{"offset":%d,"length":%d}`, math.MaxInt64, 1), 400, "out-of-range"),
			posting(path, fmt.Sprintf(`{"offset":512,"length":%d}`, math.MaxInt64), 400, "out-of-range"),
			posting(path, `{"offset":-1,"length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":0,"length":-512}`, 400, "invalid-request"),
			posting(path, `{"offset":0,"length":0}`, 400, "invalid-request"),
			posting(path, `{"offset":0}`, 400, "invalid-request"),
			posting(path, `{"length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":0,"lengths":512}`, 400, "invalid-request"),
			posting(path, `{"offset":0,"length":512,"more":1}`, 400, "invalid-request"),
			posting(path, `{"offset":0,"offset":512,"length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":"0","length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":0.5,"length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":9223372036854775808,"length":512}`, 400, "invalid-request"),
			posting(path, `{"offset":null,"length":512}`, 400, "invalid-request"),
			posting(path+"?offset=0", `{"offset":0,"length":512}`, 400, "invalid-request"),
		)
	}
	return append(all,
		posting("/trim", `{"offset":0,"length":512,"anchor":true}`, 400, "invalid-request"),
		posting("/zero", `{"offset":0,"length":512,"anchor":"yes"}`, 400, "invalid-request"),
		posting("/flush", `{"all":true}`, 400, "invalid-request"),
		posting("/flush", ``, 400, "invalid-request"))
}

// badUpdates are for mappings. The first half of the allocation is mapped.
func badUpdates(id string) []mistake {
	one := func(off, length any, target string) string {
		return fmt.Sprintf(`{"updates":[{"offset":%v,"length":%v,"target":%s}]}`, off, length, target)
	}
	data := func(id string, off any) string {
		return fmt.Sprintf(`{"kind":"data","allocation":%q,"allocation_offset":%v}`, id, off)
	}
	const unmapped = `{"kind":"unmapped"}`
	refuse := func(body string, status int, problem string) mistake {
		return posting("/mappings", body, status, problem)
	}
	return []mistake{
		refuse(`{"updates":[]}`, 400, "invalid-request"),
		refuse(`{}`, 400, "invalid-request"),
		refuse(`{"updates":null}`, 400, "invalid-request"),
		refuse(`{"updates":[{"offset":0,"length":65536}]}`, 400, "invalid-request"),
		refuse(one(0, 65536, `{}`), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"hole"}`), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"unmapped","anchored":true}`), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"unmapped","allocation":"x"}`), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"zero","allocation":"x","allocation_offset":0}`), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"data"}`), 400, "invalid-request"),
		refuse(one(0, 65536, fmt.Sprintf(`{"kind":"data","allocation":%q}`, id)), 400, "invalid-request"),
		refuse(one(0, 65536, `{"kind":"data","allocation_offset":0}`), 400, "invalid-request"),
		refuse(one(0, 65536, fmt.Sprintf(`{"kind":"data","allocation":%q,"allocation_offset":65536,"anchored":true}`, id)), 400, "invalid-request"),
		refuse(one(0, 65536, data(id, -65536)), 400, "invalid-request"),
		refuse(one(0, 65536, data("nobody", 65536)), 404, "not-found"),
		refuse(one(0, 65536, data(id, 0)), 409, "conflict"),          // mapped already
		refuse(one(0, 131072, data(id, 0)), 409, "conflict"),         // its first half is
		refuse(one(0, 131072, data(id, 65536)), 400, "out-of-range"), // longer than the allocation
		refuse(one(0, 65536, data(id, 131072)), 400, "out-of-range"), // behind it
		refuse(one(0, 65536, data(id, 66048)), 400, "misaligned"),    // half a cluster further on
		refuse(one(512, 65536, data(id, 65536)), 400, "misaligned"),
		refuse(one(0, 512, data(id, 65536)), 400, "misaligned"),
		refuse(one(512, 65536, unmapped), 400, "misaligned"),
		refuse(one(0, 512, unmapped), 400, "misaligned"),
		refuse(one(0, 65537, `{"kind":"zero"}`), 400, "misaligned"),
		refuse(one(0, 0, unmapped), 400, "invalid-request"),
		refuse(one(-65536, 65536, unmapped), 400, "invalid-request"),
		refuse(one(1114112, 65536, unmapped), 400, "out-of-range"),
		refuse(one(1048576, 65536, unmapped), 400, "out-of-range"),
		refuse(one(0, int64(1)<<62, unmapped), 400, "out-of-range"),
		refuse(one(int64(1)<<62, int64(1)<<62, unmapped), 400, "out-of-range"),
		refuse(`{"updates":[`+strings.Repeat(`{"offset":0,"length":65536,"target":{"kind":"unmapped"}},`, 10_000)+
			`{"offset":0,"length":65536,"target":{"kind":"unmapped"}}]}`, 413, "too-large"),
		{
			name: "a stale generation", method: http.MethodPost, path: "/mappings", body: one(0, 65536, unmapped),
			headers: []string{"If-Match", `"m-stale"`}, status: 412, problem: "precondition-failed",
		},
	}
}

func badBodies() []mistake {
	var all []mistake
	for _, path := range []string{"/zero", "/trim", "/flush", "/check", "/allocations", "/mappings", "!/v1/images"} {
		all = append(all,
			posting(path, `{`, 400, "invalid-request"),
			posting(path, `[]`, 400, "invalid-request"),
			posting(path, `null`, 400, "invalid-request"),
			posting(path, `{} {}`, 400, "invalid-request"),
			mistake{
				name: path + " as text", method: http.MethodPost, path: path, body: `{}`,
				headers: []string{"Content-Type", "text/plain"}, status: 415, problem: "unsupported-media-type",
			},
			mistake{
				name: path + " too large", method: http.MethodPost, path: path, body: `{"x":"` + strings.Repeat("x", 8<<20) + `"}`,
				status: 413, problem: "too-large",
			})
	}
	return append(all,
		posting("/check", `{"repair":"everything"}`, 400, "invalid-request"),
		posting("/check", `{"repair":true}`, 400, "invalid-request"))
}

// badImages are for creating, resizing and deleting.
func badImages(file, base string) []mistake {
	create := func(body string, status int, problem string) mistake {
		return posting("!/v1/images", body, status, problem)
	}
	with := func(members string) string {
		return `{"name":"new.qcow2","format":"qcow2","size":1048576,` + members + `}`
	}
	patch := func(body string, status int, problem string) mistake {
		return mistake{name: "patch " + body, method: http.MethodPatch, path: "", body: body, status: status, problem: problem}
	}
	all := []mistake{
		create(fmt.Sprintf(`{"name":%q,"format":"qcow2","size":1048576}`, file), 409, "exists"),
		create(`{"name":"new.qcow2","format":"raw","size":512}`, 400, "invalid-request"),
		create(`{"name":"new.raw","format":"qcow2","size":512}`, 400, "invalid-request"),
		create(`{"name":"new","format":"qcow2","size":512}`, 400, "invalid-request"),
		create(`{"name":"new.vmdk","format":"vmdk","size":512}`, 400, "invalid-request"),
		create(`{"name":"new.qcow2","format":"qcow2"}`, 400, "invalid-request"),
		create(`{"format":"qcow2","size":512}`, 400, "invalid-request"),
		create(`{"name":"../new.qcow2","format":"qcow2","size":512}`, 400, "invalid-request"),
		create(`{"name":".new.qcow2","format":"qcow2","size":512}`, 400, "invalid-request"),
		create(`{"name":"new.qcow2","format":"qcow2","size":-512}`, 400, "invalid-request"),
		create(`{"name":"new.qcow2","format":"qcow2","size":4611686018427387904}`, 400, "invalid-request"),
		create(`{"name":"new.raw","format":"raw","size":512,"cluster_size":4096}`, 400, "invalid-request"),
		create(`{"name":"new.raw","format":"raw","size":512,"backing":"x.raw"}`, 400, "invalid-request"),
		create(`{"name":"new.raw","format":"raw","size":512,"preallocation":"metadata"}`, 400, "invalid-request"),
		patch(`{"size":524288}`, 400, "invalid-request"), // smaller, without shrink
		patch(`{"size":-1}`, 400, "invalid-request"),
		patch(`{"size":1000000000000000000}`, 400, "invalid-request"), // more than 64 KiB clusters can describe
		patch(`{"name":"other"}`, 400, "invalid-request"),
		patch(`{"shrink":"yes","size":2097152}`, 400, "invalid-request"),
		{name: "patch as text", method: http.MethodPatch, body: `{"size":2097152}`, headers: []string{"Content-Type", "text/plain"}, status: 415, problem: "unsupported-media-type"},
		{name: "patch of nothing", method: http.MethodPatch, path: "!/v1/images/none.qcow2", body: `{"size":2097152}`, status: 404, problem: "not-found"},
		{name: "delete nothing", method: http.MethodDelete, path: "!/v1/images/none.qcow2", status: 404, problem: "not-found"},
		{name: "delete stale", method: http.MethodDelete, path: "", headers: []string{"If-Match", `"d-stale"`}, status: 412, problem: "precondition-failed"},
		{name: "patch stale", method: http.MethodPatch, path: "", body: `{"size":2097152}`, headers: []string{"If-Match", `"d-stale"`}, status: 412, problem: "precondition-failed"},
	}
	for _, members := range []string{
		`"cluster_size":1000`, `"cluster_size":256`, `"cluster_size":4194304`, `"refcount_bits":3`, `"refcount_bits":128`,
		`"compat":"2"`, `"compat":"0.10","lazy_refcounts":true`, `"compat":"0.10","refcount_bits":8`,
		`"compat":"0.10","extended_l2":true`, `"compat":"0.10","compression_type":"zstd"`, `"compression_type":"gzip"`,
		`"extended_l2":true,"cluster_size":8192`, `"preallocation":"some"`, `"data_file_raw":true`,
		`"backing_format":"raw"`, `"data_file":"d.raw","compat":"0.10"`, `"data_file":"../d.raw"`,
		fmt.Sprintf(`"data_file":"d.raw","data_file_raw":true,"backing":%q`, base),
		fmt.Sprintf(`"backing":%q,"preallocation":"full"`, base),
	} {
		all = append(all, create(with(members), 400, "invalid-request"))
	}
	return append(all, create(with(`"backing":"none.qcow2"`), 422, "backing-unavailable"))
}

// badUploads are for PUT of data, to the image and to an allocation whose first
// half is mapped.
func badUploads(id string) []mistake {
	put := func(path, contentRange, body string, status int, problem string, more ...string) mistake {
		headers := more
		if contentRange != "" {
			headers = append(headers, "Content-Range", contentRange)
		}
		name := fmt.Sprintf("PUT %s %s %d %v", path, contentRange, len(body), more)
		return mistake{name: name, method: http.MethodPut, path: path, body: body, headers: headers, status: status, problem: problem}
	}
	own := "/allocations/" + id + "/data"
	return []mistake{
		put("/data", "", "short", 400, "invalid-request"),
		put("/data", "bytes 0-511/*", "short", 400, "invalid-request"),
		put("/data", "bytes 0-3/*", "longer", 400, "invalid-request"),
		put("/data", "bytes 0-3/512", "four", 400, "invalid-request"), // another size
		put("/data", "bytes 3-0/*", "four", 400, "invalid-request"),
		put("/data", "bytes */1049088", "four", 400, "invalid-request"),
		put("/data", "bytes=0-3", "four", 400, "invalid-request"),
		put("/data", "sectors 0-3/*", "four", 400, "invalid-request"),
		put("/data", "bytes 0-3, 5-8/*", "four", 400, "invalid-request"),
		put("/data", "bytes -1-2/*", "four", 400, "invalid-request"),
		put("/data", "bytes 0-99999999999999999999/*", "four", 400, "out-of-range"),
		put("/data", "bytes 9223372036854775804-9223372036854775807/*", "four", 400, "out-of-range"),
		put("/data", "bytes 1049088-1049091/*", "four", 400, "out-of-range"),
		put("/data", "bytes 1049086-1049089/*", "four", 400, "out-of-range"),
		put("/data?flush=maybe", "bytes 0-3/*", "four", 400, "invalid-request"),
		put("/data?sync=true", "bytes 0-3/*", "four", 400, "invalid-request"),
		put("/data", "bytes 0-3/*", "four", 415, "unsupported-media-type", "Content-Encoding", "gzip"),
		put("/data", "bytes 0-3/*", "four", 412, "precondition-failed", "If-Match", `"d-stale"`),
		put("/data", "bytes 0-3/*", "four", 412, "precondition-failed", "If-None-Match", `*`),
		put("!/v1/images/none.qcow2/data", "bytes 0-3/*", "four", 404, "not-found"),
		put(own, "", "short", 400, "invalid-request"),
		put(own, "bytes 65536-66047/*", "short", 400, "invalid-request"),
		put(own, "bytes 131072-131075/*", "four", 400, "out-of-range"),
		put(own, "bytes 131070-131073/*", "four", 400, "out-of-range"),
		put(own, "bytes 0-3/*", "four", 409, "conflict"),
		put(own, "bytes 65534-65537/*", "four", 409, "conflict"),
		put("/allocations/nobody/data", "bytes 0-3/*", "four", 404, "not-found"),
	}
}

func badAllocations() []mistake {
	refuse := func(body string, status int, problem string) mistake {
		return posting("/allocations", body, status, problem)
	}
	anchored := func(off, length int64) string {
		return fmt.Sprintf(`{"anchored":{"offset":%d,"length":%d}}`, off, length)
	}
	return []mistake{
		refuse(`{}`, 400, "invalid-request"),
		refuse(`{"length":0}`, 400, "invalid-request"),
		refuse(`{"length":-65536}`, 400, "invalid-request"),
		refuse(`{"length":65536,"anchored":{"offset":262144,"length":65536}}`, 400, "invalid-request"),
		refuse(`{"contiguous":true}`, 400, "invalid-request"),
		refuse(`{"anchored":{"offset":262144}}`, 400, "invalid-request"),
		refuse(`{"anchored":{"offset":262144,"length":65536},"contiguous":true}`, 400, "invalid-request"),
		refuse(anchored(262144, 512), 400, "misaligned"),
		refuse(anchored(262656, 65536), 400, "misaligned"),
		refuse(anchored(1114112, 65536), 400, "out-of-range"),
		refuse(anchored(0, 65536), 409, "conflict"),        // data
		refuse(anchored(524288, 65536), 409, "conflict"),   // nothing is reserved there
		refuse(anchored(196608, 2*65536), 409, "conflict"), // data, and anchored
		refuse(anchored(786432, 65536), 409, "conflict"),   // mapped by the allocation
		{name: "show nobody", method: http.MethodGet, path: "/allocations/nobody", status: 404, problem: "not-found"},
		{name: "give nobody back", method: http.MethodDelete, path: "/allocations/nobody", status: 404, problem: "not-found"},
	}
}

// TestBodyLengths: a body that turns out shorter or longer than Content-Range
// says is 400, and what was written of it lies inside the range.
func TestBodyLengths(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "lengths")
	file := m.create(".qcow2", mib)
	m.io(file, fmt.Sprintf("write -P 1 0 %d", mib))
	s := serve(t, m.dir)
	const first, last = 1000, 300_999
	for name, length := range map[string]int{"shorter": 250_000, "longer": 300_001, "much longer": 2_000_000, "empty": 0} {
		t.Run(name, func(t *testing.T) {
			// Chunked: the server cannot know.
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			must(t, err)
			defer conn.Close()
			head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Range: bytes %d-%d/*\r\nTransfer-Encoding: chunked\r\n\r\n",
				imagePath(file, "/data"), first, last)
			var body strings.Builder
			for rest := length; rest > 0; {
				n := min(rest, 70_000)
				fmt.Fprintf(&body, "%x\r\n%s\r\n", n, strings.Repeat("\x02", n))
				rest -= n
			}
			go func() { _, _ = conn.Write([]byte(head + body.String() + "0\r\n\r\n")) }()
			answer := make([]byte, 12)
			if _, err := conn.Read(answer); err != nil || string(answer) != "HTTP/1.1 400" {
				t.Errorf("%q, %v, want 400", answer, err)
			}
			_, data := s.expect(t, http.StatusOK, imagePath(file, "/data"))
			for i, b := range data {
				if inside := i >= first && i <= last; b != 1 && (b != 2 || !inside) {
					t.Fatalf("byte %d is %d", i, b)
				}
			}
		})
	}
	// A client that dies in the middle: the same, and the image goes on.
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	must(t, err)
	_, _ = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Range: bytes %d-%d/*\r\nContent-Length: %d\r\n\r\n%s",
		imagePath(file, "/data"), first, last, last-first+1, strings.Repeat("\x02", 200_000))
	conn.Close()
	must(t, s.put(file, 0, []byte{1}, true))
	s.stop()
	m.checkClean(t, file)
}
