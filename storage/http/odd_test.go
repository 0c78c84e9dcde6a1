package http_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
)

// answering returns a hook that answers every GET with the header and body.
func answering(status int, header map[string]string, body string) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		if r.Method != nethttp.MethodGet {
			return false
		}
		for name, value := range header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// breakingOff sends the beginning of an answer and cuts the connection.
func breakingOff(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
	w.Header().Set("Content-Length", "100")
	w.Header().Set("Content-Range", "bytes 100-199/1000")
	w.Header().Set("Etag", `"one"`)
	w.WriteHeader(nethttp.StatusPartialContent)
	_, _ = w.Write(make([]byte, 50))
	_ = nethttp.NewResponseController(w).Flush()
	panic(nethttp.ErrAbortHandler)
}

// What a server may answer to a request for bytes 100 to 199 of 1000 that is not
// them. A read fails, and only what broke off has read something.
func TestOddAnswers(t *testing.T) {
	content := random(t, 1000)
	good := string(content[100:200])
	header := func(pairs ...string) map[string]string {
		h := map[string]string{"Etag": `"one"`, "Content-Range": "bytes 100-199/1000"}
		for i := 0; i < len(pairs); i += 2 {
			h[pairs[i]] = pairs[i+1]
		}
		return h
	}
	for name, at := range map[string]struct {
		hook hook
		want error
	}{
		"whole":               {answering(200, header("Content-Range", ""), string(content)), storage.ErrUnsupported},
		"whole, changed":      {answering(200, header("Etag", `"two"`), string(content)), storage.ErrChanged},
		"whole, other size":   {answering(200, header(), good), storage.ErrChanged},
		"other etag":          {answering(206, header("Etag", `"two"`), good), storage.ErrChanged},
		"weak etag":           {answering(206, header("Etag", `W/"one"`), good), storage.ErrUnsupported},
		"no etag":             {answering(206, header("Etag", ""), good), storage.ErrUnsupported},
		"other size":          {answering(206, header("Content-Range", "bytes 100-199/1001"), good), storage.ErrChanged},
		"size left open":      {answering(206, header("Content-Range", "bytes 100-199/*"), good), syscall.EIO},
		"other range":         {answering(206, header("Content-Range", "bytes 101-200/1000"), good), syscall.EIO},
		"shorter range":       {answering(206, header("Content-Range", "bytes 100-198/1000"), good[:99]), syscall.EIO},
		"no range":            {answering(206, header("Content-Range", ""), good), syscall.EIO},
		"other unit":          {answering(206, header("Content-Range", "lines 100-199/1000"), good), syscall.EIO},
		"backward range":      {answering(206, header("Content-Range", "bytes 199-100/1000"), good), syscall.EIO},
		"signed":              {answering(206, header("Content-Range", "bytes +100-199/1000"), good), syscall.EIO},
		"no range, only size": {answering(206, header("Content-Range", "bytes */1000"), good), syscall.EIO},
		"overflow":            {answering(206, header("Content-Range", "bytes 100-99999999999999999999/1000"), good), syscall.EIO},
		"too long":            {answering(206, header(), good+"x"), syscall.EIO},
		"too short":           {answering(206, header(), good[:99]), syscall.EIO},
		"breaks off":          {breakingOff, io.ErrUnexpectedEOF},
		"gzip":                {answering(206, header("Content-Encoding", "gzip"), good), storage.ErrUnsupported},
		"not modified":        {answering(304, header(), ""), syscall.EIO},
		"no content":          {answering(204, header(), ""), syscall.EIO},
		"bad request":         {answering(400, nil, "oops"), syscall.EIO},
		"unauthorized":        {answering(401, nil, "oops"), storage.ErrRefused},
		"forbidden":           {answering(403, nil, "oops"), storage.ErrRefused},
		"not found":           {answering(404, nil, "oops"), storage.ErrNotFound},
		"gone":                {answering(410, nil, "oops"), storage.ErrNotFound},
		"precondition failed": {answering(412, nil, "oops"), storage.ErrChanged},
		"no such range":       {answering(416, header("Content-Range", "bytes */10"), ""), storage.ErrChanged},
		"too many requests":   {answering(429, nil, "oops"), syscall.EIO},
		"internal error":      {answering(500, nil, "oops"), syscall.EIO},
		"unavailable":         {answering(503, nil, strings.Repeat("oops", 10_000)), syscall.EIO},
		"unknown status":      {answering(799, nil, "oops"), syscall.EIO},
		"huge header":         {answering(206, header("X-Filler", strings.Repeat("x", 70<<10)), good), syscall.EIO},
		"cut off":             {func(nethttp.ResponseWriter, *nethttp.Request) bool { panic(nethttp.ErrAbortHandler) }, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, content)
			s.Config.ErrorLog = quiet
			f := openFile(t, local(s.URL+"/f?secret"))
			s.set(func(s *site) { s.hook = at.hook })
			p := bytes.Repeat([]byte{0xee}, 100)
			n, err := f.ReadAt(t.Context(), p, 100)
			if !errors.Is(err, at.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %v", err, at.want)
			}
			if n != 0 && name != "breaks off" || n == 100 {
				t.Errorf("%d bytes are believed", n)
			}
			s.set(func(s *site) { s.hook = nil })
			if n, err := f.ReadAt(t.Context(), p, 100); n != 100 || err != nil || string(p) != good {
				t.Errorf("the next read: %d, %v", n, err)
			}
		})
	}
}

// A status that may pass names itself.
func TestStatusIsNamed(t *testing.T) {
	s := serve(t, random(t, 1000))
	f := openFile(t, local(s.URL))
	for _, status := range []int{400, 404, 429, 500, 502, 503, 799} {
		s.set(func(s *site) { s.hook = answering(status, nil, "") })
		_, err := f.ReadAt(t.Context(), make([]byte, 10), 0)
		if want := fmt.Sprintf("the server answers %d", status); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want that %s", err, want)
		}
	}
}

// With chunks the length is seen only as they come.
func TestOddChunks(t *testing.T) {
	content := random(t, 1000)
	for n, want := range map[int]error{99: io.ErrUnexpectedEOF, 100: nil, 101: syscall.EIO, 0: io.ErrUnexpectedEOF} {
		s := serve(t, content)
		f := openFile(t, local(s.URL))
		s.set(func(s *site) {
			s.hook = func(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
				w.Header().Set("Etag", `"one"`)
				w.Header().Set("Content-Range", "bytes 100-199/1000")
				w.WriteHeader(nethttp.StatusPartialContent)
				_ = nethttp.NewResponseController(w).Flush()
				_, _ = w.Write(content[100 : 100+n])
				return true
			}
		})
		p := make([]byte, 100, 200)
		got, err := f.ReadAt(t.Context(), p, 100)
		if !errors.Is(err, want) || got != min(n, 100) || !bytes.Equal(p[:got], content[100:100+got]) {
			t.Errorf("%d bytes sent: %d, %v, want %v", n, got, err, want)
		}
		if past := p[100:200]; !bytes.Equal(past, make([]byte, 100)) {
			t.Errorf("%d bytes sent: written past the buffer", n)
		}
	}
}

// A server that stops to answer is given up, and one that is merely slow is not.
func TestLateServer(t *testing.T) {
	content := random(t, 1000)
	begin := func(w nethttp.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		w.Header().Set("Content-Range", "bytes 0-99/1000")
		w.Header().Set("Etag", `"one"`)
		w.WriteHeader(nethttp.StatusPartialContent)
		_ = nethttp.NewResponseController(w).Flush()
	}
	for name, at := range map[string]struct {
		hook hook
		late bool
	}{
		"header": {func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
			<-r.Context().Done()
			return true
		}, true},
		"body": {func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			begin(w)
			_, _ = w.Write(content[:50])
			_ = nethttp.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, true},
		"slow": {func(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
			begin(w)
			for i := range 100 {
				time.Sleep(10 * time.Millisecond)
				_, _ = w.Write(content[i : i+1])
				_ = nethttp.NewResponseController(w).Flush()
			}
			return true
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, content)
			opt := local(s.URL)
			opt.Timeout = 400 * time.Millisecond
			f := openFile(t, opt)
			s.set(func(s *site) { s.hook = at.hook })
			n, err := f.ReadAt(t.Context(), make([]byte, 100), 0)
			late := errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded)
			if late != at.late || !late && (err != nil || n != 100) {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}

// Of a file that is replaced nothing is read, however the server tells versions
// apart; opening it anew reads the new one.
func TestReplaced(t *testing.T) {
	past := time.Now().Add(-time.Hour)
	for name, at := range map[string]struct{ before, after func(*site) }{
		"etag":          {func(*site) {}, func(s *site) { s.etag = `"two"` }},
		"last modified": {func(s *site) { s.etag, s.modified = "", past }, func(s *site) { s.modified = past.Add(time.Second) }},
		"older":         {func(s *site) { s.etag, s.modified = "", past }, func(s *site) { s.modified = past.Add(-time.Second) }},
		"weak etag": {
			func(s *site) { s.etag, s.modified = `W/"one"`, past },
			func(s *site) { s.etag = `W/"two"` },
		},
		"size": {func(*site) {}, func(s *site) { s.content = append(bytes.Clone(s.content), 0) }},
		"cut":  {func(*site) {}, func(s *site) { s.content = s.content[:50] }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, random(t, 1000))
			at.before(s)
			s.Start()
			f := openFile(t, local(s.URL))
			if _, err := f.ReadAt(t.Context(), make([]byte, 100), 100); err != nil {
				t.Fatal(err)
			}
			s.set(at.after)
			if n, err := f.ReadAt(t.Context(), make([]byte, 100), 100); n != 0 || !errors.Is(err, storage.ErrChanged) {
				t.Errorf("%d, %v", n, err)
			}
			again := openFile(t, local(s.URL))
			if f.Validator() == again.Validator() {
				t.Errorf("both have the validator %q", f.Validator())
			}
			if _, err := again.ReadAt(t.Context(), make([]byte, 10), 10); err != nil {
				t.Error(err)
			}
		})
	}
}
