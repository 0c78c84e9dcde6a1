package http_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	nethttp "net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
)

// onHead answers HEAD alone.
func onHead(status int, header map[string]string) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		if r.Method != nethttp.MethodHead {
			return false
		}
		for name, value := range header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		return true
	}
}

func both(hooks ...hook) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		for _, h := range hooks {
			if h(w, r) {
				return true
			}
		}
		return false
	}
}

func TestOpen(t *testing.T) {
	hour := time.Now().Add(-time.Hour)
	head := map[string]string{"Etag": `"one"`, "Content-Length": "1000", "Accept-Ranges": "bytes"}
	for name, at := range map[string]struct {
		prepare func(*site)
		want    error
	}{
		"plain":              {func(*site) {}, nil},
		"last modified":      {func(s *site) { s.etag, s.modified = "", hour }, nil},
		"weak alone":         {func(s *site) { s.etag = `W/"one"` }, storage.ErrUnsupported},
		"malformed etag":     {func(s *site) { s.etag = `one` }, storage.ErrUnsupported},
		"endless etag":       {func(s *site) { s.etag = `"` + strings.Repeat("x", 2000) + `"` }, storage.ErrUnsupported},
		"no validator":       {func(s *site) { s.etag = "" }, storage.ErrUnsupported},
		"empty":              {func(s *site) { s.content = nil }, nil},
		"no head":            {func(s *site) { s.hook = onHead(405, nil) }, nil},
		"unknown head":       {func(s *site) { s.hook = onHead(501, nil) }, nil},
		"bad head":           {func(s *site) { s.hook = onHead(400, nil) }, nil},
		"head is forbidden":  {func(s *site) { s.hook = onHead(403, nil) }, nil},
		"all is forbidden":   {func(s *site) { s.hook = both(onHead(403, nil), answering(403, nil, "")) }, storage.ErrRefused},
		"head needs a login": {func(s *site) { s.hook = onHead(401, nil) }, storage.ErrRefused},
		"not found":          {func(s *site) { s.hook = onHead(404, nil) }, storage.ErrNotFound},
		"gone":               {func(s *site) { s.hook = onHead(410, nil) }, storage.ErrNotFound},
		"busy":               {func(s *site) { s.hook = onHead(503, nil) }, syscall.EIO},
		"head has no size":   {func(s *site) { s.hook = onHead(200, map[string]string{"Etag": `"one"`, "Accept-Ranges": "bytes"}) }, nil},
		"head says empty":    {func(s *site) { s.hook = onHead(200, map[string]string{"Etag": `"one"`, "Content-Length": "0"}) }, nil},
		"head has no ranges": {func(s *site) { s.hook = onHead(200, map[string]string{"Etag": `"one"`, "Content-Length": "1000"}) }, nil},
		"ranges are none": {func(s *site) {
			s.hook = both(onHead(200, map[string]string{"Content-Length": "1000", "Accept-Ranges": "none"}), answering(200, head, ""))
		}, storage.ErrUnsupported},
		"encoded":      {func(s *site) { s.hook = onHead(200, withHeader(head, "Content-Encoding", "gzip")) }, storage.ErrUnsupported},
		"encoded part": {func(s *site) { s.hook = both(onHead(405, nil), gzipped) }, storage.ErrUnsupported},
		"too large":    {func(s *site) { s.hook = onHead(200, withHeader(head, "Content-Length", "2305843009213693953")) }, storage.ErrUnsupported},
		"largest":      {func(s *site) { s.hook = onHead(200, withHeader(head, "Content-Length", "2305843009213693952")) }, nil},
		"another byte": {func(s *site) {
			s.hook = both(onHead(405, nil), answering(206, withHeader(head, "Content-Range", "bytes 1-1/1000"), ""))
		}, storage.ErrUnsupported},
		"no size": {func(s *site) {
			s.hook = both(onHead(405, nil), answering(206, withHeader(head, "Content-Range", "bytes 0-0/*"), ""))
		}, syscall.EIO},
		"empty by 416": {func(s *site) {
			s.content, s.hook = nil, answering(416, map[string]string{"Content-Range": "bytes */0"}, "")
		}, nil},
		"another 416": {func(s *site) {
			s.hook = both(onHead(405, nil), answering(416, map[string]string{"Content-Range": "bytes */9"}, ""))
		}, storage.ErrChanged},
		"huge header": {func(s *site) { s.hook = onHead(200, withHeader(head, "X-Filler", strings.Repeat("x", 70<<10))) }, syscall.EIO},
		"dies": {func(s *site) {
			s.hook = func(nethttp.ResponseWriter, *nethttp.Request) bool { panic(nethttp.ErrAbortHandler) }
		}, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, random(t, 1000))
			at.prepare(s)
			s.Config.ErrorLog = quiet
			s.Start()
			opt := local(s.URL + "/f.raw?secret")
			f, err := http.Open(t.Context(), opt)
			if err == nil {
				defer f.Close()
			}
			if !errors.Is(err, at.want) {
				t.Fatalf("%v, want %v", err, at.want)
			}
			if err != nil {
				if text := err.Error(); strings.Contains(text, "secret") || !strings.Contains(text, strings.TrimPrefix(s.URL, "http://")+"/f.raw") {
					t.Errorf("the error says %q", text)
				}
				return
			}
			size, err := f.Size(t.Context())
			if err != nil || size != int64(len(s.content)) && name != "largest" {
				t.Errorf("size %d, %v", size, err)
			}
			if name == "largest" && size != storage.MaxSize {
				t.Errorf("size %d", size)
			}
		})
	}
}

func withHeader(h map[string]string, name, value string) map[string]string {
	with := map[string]string{name: value}
	for n, v := range h {
		if n != name {
			with[n] = v
		}
	}
	return with
}

func gzipped(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
	w.Header().Set("Content-Encoding", "gzip")
	return false
}

// A file of the largest size is asked for its last bytes without overflow.
func TestLargestFile(t *testing.T) {
	var asked string
	s := serve(t, nil)
	s.set(func(s *site) {
		s.hook = func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			h := w.Header()
			h.Set("Etag", `"one"`)
			h.Set("Accept-Ranges", "bytes")
			h.Set("Content-Length", "2305843009213693952")
			if r.Method == nethttp.MethodGet {
				asked = r.Header.Get("Range")
				h.Set("Content-Length", "3")
				h.Set("Content-Range", "bytes 2305843009213693949-2305843009213693951/2305843009213693952")
				w.WriteHeader(nethttp.StatusPartialContent)
				_, _ = w.Write([]byte("abc"))
			}
			return true
		}
	})
	f := openFile(t, local(s.URL))
	p := make([]byte, 10)
	if n, err := f.ReadAt(t.Context(), p, storage.MaxSize-3); n != 3 || string(p[:3]) != "abc" {
		t.Error(n, err)
	}
	if asked != "bytes=2305843009213693949-2305843009213693951" {
		t.Errorf("asked for %s", asked)
	}
	var l storage.ExtentList
	if err := f.Extents(t.Context(), storage.MaxSize-3, 3, &l); err != nil || l.End() != storage.MaxSize {
		t.Error(l.End(), err)
	}
}

// Every request bears what the operator gave, and says that the body must come as
// it is.
func TestRequestHeaders(t *testing.T) {
	content := random(t, 1000)
	s := serve(t, content)
	var headers []nethttp.Header
	s.set(func(s *site) {
		s.hook = func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
			headers = append(headers, r.Header)
			return false
		}
	})
	opt := local(strings.Replace(s.URL, "http://", "http://user:secret@", 1) + "/f")
	opt.Headers = map[string]string{"x-key": "value", "User-Agent": "other"}
	f := openFile(t, opt)
	p := make([]byte, 100)
	if _, err := f.ReadAt(t.Context(), p, 7); err != nil || !bytes.Equal(p, content[7:107]) {
		t.Fatal(err)
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:secret"))
	for i, h := range headers {
		for name, want := range map[string]string{
			"Authorization": basic, "X-Key": "value", "User-Agent": "other", "Accept-Encoding": "identity",
			"Range": []string{"", "bytes=7-106"}[i], "If-Match": []string{"", `"one"`}[i],
		} {
			if got := h.Get(name); got != want {
				t.Errorf("request %d has %s %q, want %q", i, name, got, want)
			}
		}
	}
	if len(headers) != 2 {
		t.Errorf("%d requests", len(headers))
	}
}

// The environment's proxy is not asked. net/http reads it once, so this is the
// only test that sets it; it never applies to loopback addresses by itself.
func TestNoProxy(t *testing.T) {
	proxy := serve(t, nil)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := http.Open(ctx, http.Options{URL: "http://file.invalid/f", AllowPrivate: true, Timeout: time.Second}); err == nil {
		t.Error("a name that does not exist is found")
	}
	if n := proxy.requests.Load(); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}
