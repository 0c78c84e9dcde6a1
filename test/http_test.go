package test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRanges asks with curl for ranges of every form.
func TestRanges(t *testing.T) {
	k := kindNamed(t, "three-layers")
	s := serve(t, served)
	path := "/v1/images/" + k.file + "/data"
	size := k.size
	for _, test := range []struct {
		ranges      string
		off, length int64 // length -1: unsatisfiable
	}{
		{"0-0", 0, 1},
		{"0-511", 0, 512},
		{"100-4099", 100, 4000},
		{fmt.Sprintf("%d-", size-1000), size - 1000, 1000},
		{"1000000-", 1_000_000, size - 1_000_000},
		{"-1", size - 1, 1},
		{"-70000", size - 70_000, 70_000},
		{fmt.Sprintf("-%d", size*2), 0, size},
		{fmt.Sprintf("%d-%d", size-10, size*2), size - 10, 10},
		{"5-9223372036854775807", 5, size - 5},
		{fmt.Sprintf("%d-", size), 0, -1},
		{fmt.Sprintf("%d-%d", size, size+10), 0, -1},
		{"9223372036854775807-", 0, -1},
		{"-0", 0, -1},
	} {
		t.Run(test.ranges, func(t *testing.T) {
			a := curl(t, s, path, "-H", "Range: bytes="+test.ranges)
			if test.length < 0 {
				if a.status != http.StatusRequestedRangeNotSatisfiable || a.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
					t.Fatalf("status %d, %v", a.status, a.header)
				}
				checkProblem(t, a.header, a.body, a.status, "out-of-range")
				return
			}
			want := fmt.Sprintf("bytes %d-%d/%d", test.off, test.off+test.length-1, size)
			if a.status != http.StatusPartialContent || a.header.Get("Content-Range") != want ||
				a.header.Get("Content-Length") != fmt.Sprint(test.length) {
				t.Fatalf("status %d, %v, want %s", a.status, a.header, want)
			}
			if i := firstDifference(a.body, k.read(t, test.off, test.length)); i >= 0 {
				t.Errorf("byte %d differs", i)
			}
			checkDataHeader(t, a.header)
		})
	}
}

// checkDataHeader verifies what every answer with data bears.
func checkDataHeader(t *testing.T, header http.Header) {
	t.Helper()
	if header.Get("Accept-Ranges") != "bytes" || !strings.HasPrefix(header.Get("ETag"), `"`) {
		t.Errorf("header %v", header)
	}
	for _, name := range []string{"Minimum", "Preferred", "Maximum"} {
		if n, err := strconv.ParseInt(header.Get("Block-Size-"+name), 10, 64); err != nil || n < 1 {
			t.Errorf("Block-Size-%s: %q", name, header.Get("Block-Size-"+name))
		}
	}
}

// TestSeveralRanges parses multipart answers.
func TestSeveralRanges(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	path := "/v1/images/" + k.file + "/data"
	for _, ranges := range []string{"0-9,100-199", "0-511,1048576-1148575,-512", "5000-5999, 0-0 ,-1", "0-9,99999999-,20-29"} {
		t.Run(ranges, func(t *testing.T) {
			a := curl(t, s, path, "-H", "Range: bytes="+ranges)
			kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
			if a.status != http.StatusPartialContent || kind != "multipart/byteranges" || err != nil {
				t.Fatalf("status %d, %v", a.status, a.header)
			}
			if n := a.header.Get("Content-Length"); n != fmt.Sprint(len(a.body)) {
				t.Errorf("Content-Length %s, body of %d bytes", n, len(a.body))
			}
			checkDataHeader(t, a.header)
			parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
			count := 0
			for _, r := range strings.Split(ranges, ",") {
				first, last, _ := strings.Cut(strings.TrimSpace(r), "-")
				off, err := strconv.ParseInt(first, 10, 64)
				end := k.size - 1
				if err != nil {
					n, _ := strconv.ParseInt(last, 10, 64)
					off = k.size - n
				} else if last != "" {
					end, _ = strconv.ParseInt(last, 10, 64)
				}
				if off >= k.size {
					continue // an unsatisfiable one among others is left out
				}
				part, err := parts.NextRawPart()
				if err != nil {
					t.Fatalf("part %d: %v", count, err)
				}
				count++
				if got, want := part.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", off, end, k.size); got != want || part.Header.Get("Content-Type") == "" {
					t.Errorf("part %v, want %s", part.Header, want)
				}
				data, err := io.ReadAll(part)
				if i := firstDifference(data, k.read(t, off, end-off+1)); err != nil || i >= 0 {
					t.Errorf("%s: byte %d differs (%v)", r, i, err)
				}
			}
			if _, err := parts.NextRawPart(); err != io.EOF {
				t.Errorf("after %d parts: %v", count, err)
			}
		})
	}
}

// TestOddRanges: what is no range, and what asks for too much.
func TestOddRanges(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	path := "/v1/images/" + k.file + "/data"
	many := strings.TrimSuffix(strings.Repeat("0-,", 2000), ",")
	for _, test := range []struct {
		name, value string
	}{
		{"another unit", "lines=0-10"},
		{"backwards", "bytes=10-5"},
		{"letters", "bytes=a-b"},
		{"nothing", "bytes="},
		{"no dash", "bytes=5"},
		{"negative", "bytes=--5"},
		{"too large for 64 bits", "bytes=18446744073709551616-18446744073709551617"},
		{"two thousand times everything", "bytes=" + many},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := curl(t, s, path, "-H", "Range: "+test.value)
			switch {
			case a.status == http.StatusOK && int64(len(a.body)) == k.size:
			case a.status == http.StatusRequestedRangeNotSatisfiable && test.name != "another unit":
			default:
				t.Errorf("status %d with %d bytes: want the whole image, or an error", a.status, len(a.body))
			}
		})
	}
}

// TestConditions: the conditional headers of RFC 9110, and HEAD.
func TestConditions(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	path := "/v1/images/" + k.file + "/data"
	head := curl(t, s, path, "--head")
	etag := head.header.Get("ETag")
	if head.status != http.StatusOK || head.header.Get("Content-Length") != fmt.Sprint(k.size) || etag == "" {
		t.Fatalf("HEAD: %+v", head)
	}
	checkDataHeader(t, head.header)
	for _, test := range []struct {
		name   string
		args   []string
		status int
		length int64
	}{
		{"HEAD ignores Range", []string{"--head", "-H", "Range: bytes=0-9"}, 200, 0},
		{"If-Range", []string{"-r", "0-9", "-H", "If-Range: " + etag}, 206, 10},
		{"If-Range with another", []string{"-r", "0-9", "-H", `If-Range: "other"`}, 200, k.size},
		{"If-Range with a weak one", []string{"-r", "0-9", "-H", "If-Range: W/" + etag}, 200, k.size},
		{"If-Range with an old date", []string{"-r", "0-9", "-H", "If-Range: Thu, 01 Jan 1970 00:00:00 GMT"}, 200, k.size},
		{"If-None-Match", []string{"-H", "If-None-Match: " + etag}, 304, 0},
		{"If-None-Match with a weak one", []string{"-H", "If-None-Match: W/" + etag}, 304, 0},
		{"If-None-Match in a list", []string{"-H", `If-None-Match: "a", ` + etag + `, "b"`}, 304, 0},
		{"If-None-Match with any", []string{"-H", "If-None-Match: *"}, 304, 0},
		{"If-None-Match with another", []string{"-r", "0-9", "-H", `If-None-Match: "other"`}, 206, 10},
		{"If-None-Match before Range", []string{"-r", "0-9", "-H", "If-None-Match: " + etag}, 304, 0},
		{"HEAD and If-None-Match", []string{"--head", "-H", "If-None-Match: " + etag}, 304, 0},
		{"If-Match", []string{"-r", "0-9", "-H", "If-Match: " + etag}, 206, 10},
		{"If-Match with any", []string{"-r", "0-9", "-H", "If-Match: *"}, 206, 10},
		{"If-Match with another", []string{"-r", "0-9", "-H", `If-Match: "other"`}, 412, -1},
		{"If-Match with a weak one", []string{"-r", "0-9", "-H", "If-Match: W/" + etag}, 412, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := curl(t, s, path, test.args...)
			if a.status != test.status || test.length >= 0 && int64(len(a.body)) != test.length {
				t.Fatalf("status %d with %d bytes, want %d with %d: %v", a.status, len(a.body), test.status, test.length, a.header)
			}
			if a.status == http.StatusPreconditionFailed {
				checkProblem(t, a.header, a.body, a.status, "precondition-failed")
			} else if a.header.Get("ETag") != etag {
				t.Errorf("ETag %s, want %s", a.header.Get("ETag"), etag)
			}
		})
	}
}

// TestResume breaks a download by killing the server, and goes on with the
// next one.
func TestResume(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "disk")
	file := m.create(".qcow2", 96*mib)
	m.io(file, m.write(0, 96*mib), "write -z -u 10M 20M")
	want, err := convert(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, dir)
	path := "/v1/images/" + file + "/data"
	etag := curl(t, s, path, "--head").header.Get("ETag")
	out := filepath.Join(t.TempDir(), "out")
	first := exec.Command("curl", "-sS", "--limit-rate", "40M", "-o", out, s.url+path)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(out); err == nil && info.Size() > 16*mib {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("curl has not got 16 MiB in 20 s")
		}
	}
	s.kill()
	if err := first.Wait(); err == nil {
		t.Fatal("curl did not notice that the server was killed")
	}
	if info, err := os.Stat(out); err != nil || info.Size() >= 96*mib {
		t.Fatalf("the download was not broken: %v %v", info, err)
	}
	s = serveAt(t, strings.TrimPrefix(s.url, "http://"), dir)
	if again := curl(t, s, path, "--head").header.Get("ETag"); again != etag {
		t.Errorf("ETag %s after a restart, want %s", again, etag)
	}
	second := exec.Command("curl", "-sS", "-f", "-C", "-", "-H", "If-Range: "+etag, "-o", out, s.url+path)
	if output, err := second.CombinedOutput(); err != nil {
		t.Fatalf("curl -C -: %v\n%s", err, output)
	}
	if output, err := exec.Command("cmp", out, want).CombinedOutput(); err != nil {
		t.Errorf("the resumed download differs: %s", output)
	}
}

// TestChangedImage: another content has other tags.
func TestChangedImage(t *testing.T) {
	dir := t.TempDir()
	m := newMaker(t, dir, "disk")
	base := m.raw("-base.raw", mib)
	file := m.overlay(".qcow2", base, mib)
	s := serve(t, dir)
	data := "/v1/images/" + file + "/data"
	before := curl(t, s, data, "--head").header.Get("ETag")
	mapBefore, _ := s.expect(t, http.StatusOK, extentsPath(file))
	s.stop()
	m.io(base, m.write(0, 4096)) // below the image
	s = serve(t, dir)
	if after := curl(t, s, data, "--head").header.Get("ETag"); after == before {
		t.Errorf("ETag %s of the data before and after its backing file changed", after)
	}
	mapAfter, _ := s.expect(t, http.StatusOK, extentsPath(file))
	if mapAfter.Get("ETag") == mapBefore.Get("ETag") {
		t.Errorf("ETag %s of the map before and after its backing file changed", mapAfter.Get("ETag"))
	}
}

// TestWrongRequests: every error is a problem.
func TestWrongRequests(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	img := "/v1/images/" + k.file
	for _, test := range []struct {
		method, path string
		status       int
		problem      string
		impossible   bool // no image can have that name
	}{
		{"GET", "/v1/images/missing.qcow2", 404, "not-found", false},
		{"GET", "/v1/images/missing.qcow2/data", 404, "not-found", false},
		{"GET", "/v1/images/missing.qcow2/extents", 404, "not-found", false},
		{"GET", "/v1/images/missing.qcow2/limits", 404, "not-found", false},
		{"GET", "/v1/images/v3.txt", 404, "not-found", false},
		{"GET", "/v1/images/..", 404, "not-found", true},
		{"GET", "/v1/images/..%2f..%2fetc%2fpasswd/data", 404, "not-found", true},
		{"GET", "/v1/images/%2fetc%2fpasswd/data", 404, "not-found", true},
		{"GET", "/v1/images/" + strings.Repeat("a", 300) + ".qcow2", 404, "not-found", true},
		{"GET", "/", 404, "not-found", false},
		{"GET", "/v1", 404, "not-found", false},
		{"GET", "/v2/images", 404, "not-found", false},
		{"GET", img + "/nothing", 404, "not-found", false},
		{"GET", img + "/data?size=5", 400, "invalid-request", false},
		{"GET", img + "?x=1", 400, "invalid-request", false},
		{"GET", img + "/limits?x=1", 400, "invalid-request", false},
		{"GET", "/v1/images?limit=0", 400, "invalid-request", false},
		{"GET", "/v1/images?limit=x", 400, "invalid-request", false},
		{"GET", "/v1/images?x=1", 400, "invalid-request", false},
		{"PUT", "/v1/images", 405, "method-not-allowed", false},
		{"DELETE", img + "/data", 405, "method-not-allowed", false},
		{"POST", img + "/extents", 405, "method-not-allowed", false},
		{"OPTIONS", img + "/limits", 405, "method-not-allowed", false},
	} {
		t.Run(test.method+" "+test.path[:min(40, len(test.path))], func(t *testing.T) {
			a := curl(t, s, test.path, "-X", test.method)
			if a.status == http.StatusBadRequest && test.impossible {
				return // as good as an image that is not there
			}
			if a.status != test.status {
				t.Fatalf("status %d, want %d\n%s", a.status, test.status, a.body)
			}
			p := checkProblem(t, a.header, a.body, test.status, test.problem)
			if a.status == 405 && a.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if test.problem == "invalid-request" && len(p.Errors) == 0 {
				t.Errorf("no errors in %s", a.body)
			}
		})
	}
}

// TestServerRoutes: what is not about images.
func TestServerRoutes(t *testing.T) {
	k := kindNamed(t, "v3")
	s := serve(t, served)
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := curl(t, s, path); a.status != http.StatusOK {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	curl(t, s, "/v1/images/"+k.file+"/data", "-r", "0-4095")
	if a := curl(t, s, "/metrics"); a.status != http.StatusOK || !bytes.Contains(a.body, []byte("/v1/images/{image}/data")) {
		t.Errorf("/metrics: %d, no request to the data route\n%.2000s", a.status, a.body)
	}
	spec, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if a := curl(t, s, "/openapi.yaml"); a.status != http.StatusOK || !bytes.Equal(a.body, spec) {
		t.Errorf("/openapi.yaml: %d, %d bytes, want the file of %d", a.status, len(a.body), len(spec))
	}
	var limits map[string]int64
	s.getJSON(t, &limits, "/v1/images/"+k.file+"/limits")
	a := curl(t, s, "/v1/images/"+k.file+"/data", "--head")
	for header, name := range map[string]string{"Minimum": "minimum", "Preferred": "preferred", "Maximum": "max_data"} {
		if got := a.header.Get("Block-Size-" + header); got != fmt.Sprint(limits[name]) {
			t.Errorf("Block-Size-%s is %s, limits say %v", header, got, limits)
		}
	}
	if a := curl(t, s, "/v1/images", "-H", "Host: attacker.example"); a.status < 400 {
		t.Errorf("a foreign Host header got %d", a.status)
	}
	if a := curl(t, s, "/v1/images/"+k.file+"/data", "--compressed", "-r", "0-99999"); a.header.Get("Content-Encoding") != "" || len(a.body) != 100_000 {
		t.Errorf("data is encoded: %v", a.header)
	}
}
