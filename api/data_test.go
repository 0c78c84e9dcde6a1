package api_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/storage"
)

func TestDataRanges(t *testing.T) {
	f := start(t, api.Options{}, nil)
	const size = 3*mib + 77
	content := f.random(t, "disk.raw", size)
	path := "/v1/images/disk.raw/data"
	whole := f.expect(t, 200, path)
	if !bytes.Equal(whole.body, content) || whole.header.Get("Content-Length") != fmt.Sprint(size) {
		t.Errorf("the whole: %d bytes, %v", len(whole.body), whole.header)
	}
	for given, want := range map[string][2]int{
		"0-0":                 {0, 1},
		"0-4095":              {0, 4096},
		"4000-70000":          {4000, 70001},
		"1-":                  {1, size},
		"-1":                  {size - 1, size},
		"-1000000000":         {0, size},
		"3145700-99999999999": {3145700, size},
	} {
		a := f.expect(t, 206, path, "Range", "bytes="+given)
		if !bytes.Equal(a.body, content[want[0]:want[1]]) || a.header.Get("Content-Length") != fmt.Sprint(want[1]-want[0]) ||
			a.header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", want[0], want[1]-1, size) {
			t.Errorf("%s: %d bytes, %v", given, len(a.body), a.header)
		}
	}
	for _, ignored := range []string{"bytes=5-4", "lines=0-1", "bytes", "bytes=x-"} {
		if a := f.expect(t, 200, path, "Range", ignored); len(a.body) != size {
			t.Errorf("%s: %d bytes", ignored, len(a.body))
		}
	}
	if a := f.expect(t, 200, path, "Range", "bytes=0-1", "Range", "bytes=2-3"); len(a.body) != size {
		t.Errorf("two headers: %d bytes", len(a.body))
	}
	for _, outside := range []string{fmt.Sprintf("bytes=%d-", size), "bytes=-0", "bytes=99999999999999999999-", "bytes=0-,0-,0-"} {
		a := f.get(t, path, "Range", outside)
		p := a.problem(t, 416, "out-of-range")
		if a.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) || p.Size == nil || *p.Size != size || a.header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: %v, %s", outside, a.header, a.body)
		}
	}
}

func TestDataSeveralRanges(t *testing.T) {
	f := start(t, api.Options{}, nil)
	const size = 2*mib + 5
	content := f.random(t, "disk.raw", size)
	for given, want := range map[string][][2]int{
		"0-9,20-29":             {{0, 10}, {20, 30}},
		"20-29,0-9":             {{20, 30}, {0, 10}},
		"0-,-1":                 {{0, size}, {size - 1, size}},
		"0-0, 1000000-1999999,": {{0, 1}, {1000000, 2000000}},
		"0-9,9999999-,30-39":    {{0, 10}, {30, 40}},
	} {
		a := f.expect(t, 206, "/v1/images/disk.raw/data", "Range", "bytes="+given)
		kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if err != nil || kind != "multipart/byteranges" || a.header.Get("Content-Range") != "" || a.header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
			t.Fatalf("%s: %v", given, a.header)
		}
		parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
		for _, w := range want {
			part, err := parts.NextRawPart()
			if err != nil {
				t.Fatalf("%s: %v", given, err)
			}
			got, err := io.ReadAll(part)
			if err != nil || !bytes.Equal(got, content[w[0]:w[1]]) || part.Header.Get("Content-Type") != "application/octet-stream" ||
				part.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", w[0], w[1]-1, size) {
				t.Errorf("%s: %d bytes, %v, %v", given, len(got), part.Header, err)
			}
		}
		if _, err := parts.NextRawPart(); err != io.EOF {
			t.Errorf("%s: after the last part: %v", given, err)
		}
	}
	// One that is left is no multipart.
	a := f.expect(t, 206, "/v1/images/disk.raw/data", "Range", "bytes=9999999-,5-9")
	if !bytes.Equal(a.body, content[5:10]) || a.header.Get("Content-Range") == "" {
		t.Errorf("%v", a.header)
	}
}

func TestDataHeaders(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 10_000)
	f.write(t, "empty.raw", nil)
	path := "/v1/images/disk.raw/data"
	etag := f.expect(t, 200, path).header.Get("Etag")
	for name, a := range map[string]answer{
		"GET":        f.get(t, path),
		"HEAD":       f.do(t, "HEAD", path),
		"range":      f.get(t, path, "Range", "bytes=0-9"),
		"HEAD range": f.do(t, "HEAD", path, "Range", "bytes=0-9"),
		"HEAD 416":   f.do(t, "HEAD", path, "Range", "bytes=99999-"),
		"ranges":     f.get(t, path, "Range", "bytes=0-9,20-29"),
		"304":        f.get(t, path, "If-None-Match", etag),
		"HEAD 304":   f.do(t, "HEAD", path, "If-None-Match", etag),
		"412":        f.get(t, path, "If-Match", `"other"`),
		"416":        f.get(t, path, "Range", "bytes=99999-"),
	} {
		h := a.header
		if h.Get("Etag") != etag || h.Get("Accept-Ranges") != "bytes" || h.Get("Block-Size-Minimum") != "1" ||
			h.Get("Block-Size-Preferred") != "4096" || h.Get("Block-Size-Maximum") != "67108864" || h.Get("X-Request-Id") == "" {
			t.Errorf("%s: %v", name, h)
		}
		if strings.HasPrefix(name, "HEAD") {
			wantStatus, wantLength := 200, "10000"
			if name == "HEAD 304" {
				wantStatus, wantLength = 304, ""
			}
			if a.status != wantStatus || h.Get("Content-Length") != wantLength || len(a.body) != 0 {
				t.Errorf("%s: %d, %v", name, a.status, h)
			}
		}
	}
	if a := f.expect(t, 200, "/v1/images/empty.raw/data"); len(a.body) != 0 || a.header.Get("Content-Length") != "0" {
		t.Errorf("empty: %v", a)
	}
	f.expect(t, 200, "/v1/images/empty.raw/data", "Range", "bytes=-5")
	f.get(t, "/v1/images/empty.raw/data", "Range", "bytes=0-").problem(t, 416, "out-of-range")
	if a := f.do(t, "HEAD", path, "If-Match", `"other"`); a.status != 412 || len(a.body) != 0 {
		t.Errorf("HEAD with If-Match: %v", a)
	}
	if a := f.do(t, "HEAD", "/v1/images/nothing.raw/data"); a.status != 404 || len(a.body) != 0 {
		t.Errorf("HEAD of nothing: %v", a)
	}
}

func TestDataConditions(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 10_000)
	path := "/v1/images/disk.raw/data"
	etag := f.expect(t, 200, path).header.Get("Etag")
	for _, test := range []struct {
		status, length int
		headers        []string
	}{
		{206, 10, []string{"Range", "bytes=0-9", "If-Range", etag}},
		{200, 10_000, []string{"Range", "bytes=0-9", "If-Range", `"other"`}},
		{200, 10_000, []string{"Range", "bytes=0-9", "If-Range", "W/" + etag}},
		{200, 10_000, []string{"Range", "bytes=99999-", "If-Range", `"other"`}},
		{200, 10_000, []string{"Range", "bytes=0-9", "If-Range", "Fri, 31 Dec 9999 23:59:59 GMT"}},
		{200, 10_000, []string{"If-Range", etag}},
		{304, 0, []string{"Range", "bytes=0-9", "If-None-Match", etag}},
		{304, 0, []string{"Range", "bytes=99999-", "If-None-Match", etag}},
		{206, 10, []string{"Range", "bytes=0-9", "If-None-Match", `"other"`}},
		{206, 10, []string{"Range", "bytes=0-9", "If-Match", etag, "If-None-Match", `"other"`}},
		{412, -1, []string{"Range", "bytes=0-9", "If-Match", `"other"`, "If-None-Match", etag}},
		{412, -1, []string{"Range", "bytes=99999-", "If-Match", `"other"`}},
	} {
		a := f.expect(t, test.status, path, test.headers...)
		if test.length >= 0 && len(a.body) != test.length {
			t.Errorf("%v: %d bytes, want %d", test.headers, len(a.body), test.length)
		}
	}
}

// Misaligned ranges are told from the others before anything is read.
func TestDataMisaligned(t *testing.T) {
	m := striped(512*1000+7, 512)
	m.limits.Minimum = 512
	m.fetched = func(off, n int64) { t.Errorf("%d bytes at %d were asked for", n, off) }
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": m})
	path := "/v1/images/m.fake/data"
	for given, want := range map[string][2]int64{
		"1-511": {1, 511}, "0-510": {0, 511}, "-8": {512*1000 - 1, 8},
		"0-511,5-1023": {5, 1019}, "0-511,1024-1025": {1024, 2},
	} {
		a := f.get(t, path, "Range", "bytes="+given)
		p := a.problem(t, 400, "misaligned")
		if *p.Minimum != 512 || *p.Offset != want[0] || *p.Length != want[1] || a.header.Get("Block-Size-Minimum") != "512" {
			t.Errorf("%s: %s", given, a.body)
		}
	}
}

// A body of which a later part cannot be read never ends cleanly.
func TestDataBreaksOff(t *testing.T) {
	disk := func() *fakeMapper {
		m := striped(64*mib, 4096)
		m.at = func(off int64) (storage.Mapping, error) {
			if off >= 8*mib {
				return storage.Mapping{}, fmt.Errorf("%w: reserved bits", storage.ErrCorrupt)
			}
			return storage.Mapping{Status: storage.Local | storage.Zero}, nil
		}
		return m
	}
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": disk()})
	path := "/v1/images/m.fake/data"
	for _, given := range []string{"", "bytes=0-", "bytes=0-9999,8388600-8390000"} {
		a := f.get(t, path, "Range", given)
		if a.status/100 != 2 || a.err == nil || len(a.body) >= 16*mib {
			t.Errorf("Range %q: status %d, %d bytes, %v", given, a.status, len(a.body), a.err)
		}
	}
	for _, given := range []string{"bytes=8388608-", "bytes=9000000-9000001", "bytes=8388600-8390000", "bytes=9000000-9000009,0-9"} {
		f.get(t, path, "Range", given).problem(t, 422, "corrupt-image")
	}
	f.expect(t, 206, path, "Range", "bytes=0-99999")
}

// HTTP/1.0 and a connection that is used again are served like any other.
func TestDataOnARawConnection(t *testing.T) {
	f := start(t, api.Options{}, nil)
	content := f.random(t, "disk.raw", 200_000)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(request string) {
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
	}
	in := bufio.NewReader(c)
	for range 3 {
		for _, want := range [][2]int{{0, 10}, {4096, 8192}, {0, 200_000}} {
			send(fmt.Sprintf("GET /v1/images/disk.raw/data HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n", want[0], want[1]-1))
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content[want[0]:want[1]]) {
				t.Fatalf("%v: %d bytes, %v", want, len(got), err)
			}
			resp.Body.Close()
		}
	}
	send("GET /v1/images/disk.raw/data HTTP/1.0\r\n\r\n")
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content) {
		t.Errorf("HTTP/1.0: %d bytes, %v", len(got), err)
	}
}

// Answers that share a connection of HTTP/2 do not disturb each other.
func TestDataOverHTTP2(t *testing.T) {
	f := start(t, api.Options{}, nil)
	const size = 4 * mib
	content := f.random(t, "disk.raw", size)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	f.http = &http.Client{Transport: transport}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := 100; n < size; n *= 5 {
				off := worker * 1000
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/v1/images/disk.raw/data", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
				resp, err := f.http.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.ProtoMajor != 2 || !bytes.Equal(got, content[off:off+n]) {
					t.Errorf("%d bytes at %d: %s, %d bytes, %v", n, off, resp.Proto, len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

// A client that goes away in the middle leaves nothing behind; goleak looks.
func TestDataClientGoesAway(t *testing.T) {
	f := start(t, api.Options{}, map[string]storage.Mapper{"m.fake": &fakeMapper{size: 1 << 40, unit: 1 << 30, at: func(int64) (storage.Mapping, error) {
		return storage.Mapping{Status: storage.Local | storage.Zero}, nil
	}}})
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/v1/images/m.fake/data", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, mib); err != nil {
			t.Error(err)
		}
		cancel()
		resp.Body.Close()
	}
	if strings.Contains(f.log.String(), "level=ERROR") {
		t.Errorf("a client that went away is logged as an error:\n%.1000s", f.log)
	}
}

// An encoded name is the name it stands for, and leads nowhere else.
func TestDataNames(t *testing.T) {
	f := start(t, api.Options{}, nil)
	content := f.random(t, "disk.raw", 100)
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.dir), "outside.raw"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk%2Eraw", "%64isk.raw"} {
		if a := f.expect(t, 200, "/v1/images/"+name+"/data"); !bytes.Equal(a.body, content) {
			t.Errorf("%s: %d bytes", name, len(a.body))
		}
	}
	for _, name := range []string{"..%2Foutside.raw", "%2Fetc%2Fpasswd", "a%00.raw", ".disk.raw", "-disk.raw", strings.Repeat("a", 256) + ".raw", "%2E%2E"} {
		for _, call := range []string{"", "/limits", "/extents", "/data"} {
			p := f.get(t, "/v1/images/"+name+call).problem(t, 400, "invalid-request")
			if (*p.Errors)[0].Field != "image" || (*p.Errors)[0].Rule != "pattern" {
				t.Errorf("%s%s: %+v", name, call, p)
			}
		}
	}
	f.get(t, "/v1/images/nothing.raw/data").problem(t, 404, "not-found")
	f.get(t, "/v1/images/notes.txt/data").problem(t, 404, "not-found")
}
