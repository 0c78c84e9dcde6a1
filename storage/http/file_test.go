package http_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestConformance(t *testing.T) {
	for name, prepare := range map[string]func(*site){
		"last modified":    func(s *site) { s.etag, s.modified = "", time.Now().Add(-time.Hour) },
		"no head, chunked": func(s *site) { s.hook = both(onHead(nethttp.StatusMethodNotAllowed, nil), chunked(s)) },
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.TestFile(t, 1, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
				s := newSite(t, content)
				prepare(s)
				s.Start()
				return openFile(t, local(s.URL))
			})
		})
	}
}

// chunked answers with parts whose length is not told before.
func chunked(s *site) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		if r.Method == nethttp.MethodGet && len(s.content) > 0 {
			w = &flushing{w}
			w.Header().Set("Etag", s.etag)
			w.Header().Set("Trailer", "X-Done")
			nethttp.ServeContent(w, r, "x.bin", time.Time{}, bytes.NewReader(s.content))
			return true
		}
		return false
	}
}

// A flushing writer drops the length.
type flushing struct{ nethttp.ResponseWriter }

func (f *flushing) WriteHeader(status int) {
	f.Header().Del("Content-Length")
	f.ResponseWriter.WriteHeader(status)
}

func TestLimits(t *testing.T) {
	for said, want := range map[string]storage.Limits{
		"":       {Minimum: 1, Preferred: 65536, MaxData: 64 << 20, MaxTrim: 4<<30 - 1, MaxZero: 4<<30 - 1, MaxCache: 64 << 20},
		"512":    {Minimum: 512, Preferred: 65536, MaxData: 64 << 20, MaxTrim: 4<<30 - 512, MaxZero: 4<<30 - 512, MaxCache: 64 << 20},
		"131072": {Minimum: 1, Preferred: 65536, MaxData: 64 << 20, MaxTrim: 4<<30 - 1, MaxZero: 4<<30 - 1, MaxCache: 64 << 20},
		"513":    {Minimum: 1, Preferred: 65536, MaxData: 64 << 20, MaxTrim: 4<<30 - 1, MaxZero: 4<<30 - 1, MaxCache: 64 << 20},
	} {
		t.Run(said, func(t *testing.T) {
			s := serve(t, random(t, 10_000))
			s.set(func(s *site) {
				s.hook = func(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
					w.Header().Set("Block-Size-Minimum", said)
					return false
				}
			})
			node := storage.NewNode("node", openFile(t, local(s.URL)), storage.NodeOptions{Check: true})
			got, err := node.Limits(t.Context())
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%v, %s", err, diff)
			}
		})
	}
}

func TestValidator(t *testing.T) {
	s := serve(t, make([]byte, 1000))
	first := openFile(t, local(s.URL)).Validator()
	if again := openFile(t, local(s.URL)).Validator(); again != first {
		t.Errorf("of one version %q and %q", first, again)
	}
	s.set(func(s *site) { s.etag = `"two"` })
	if other := openFile(t, local(s.URL)).Validator(); other == first {
		t.Errorf("of two versions %q", first)
	}
	s.set(func(s *site) { s.etag, s.content = `"one"`, make([]byte, 1001) })
	if other := openFile(t, local(s.URL)).Validator(); other == first {
		t.Errorf("of two sizes %q", first)
	}
}

// Connections are used again, and there are not more of them than allowed.
func TestConnections(t *testing.T) {
	content := random(t, 1<<20)
	s := serve(t, content)
	opt := local(s.URL)
	opt.MaxConnections = 3
	f := openFile(t, opt)
	p := make([]byte, 10_000)
	for i := range 50 {
		if _, err := f.ReadAt(t.Context(), p, int64(i)*20_000); err != nil || !bytes.Equal(p, content[i*20_000:][:len(p)]) {
			t.Fatal(i, err)
		}
	}
	if n := s.connections.Load(); n != 1 {
		t.Errorf("%d connections for one request after the other", n)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := make([]byte, 1000)
			for range 20 {
				if _, err := f.ReadAt(t.Context(), p, int64(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.connections.Load(); n > 3 {
		t.Errorf("%d connections, at most 3 are allowed", n)
	}
}

// Requests that wait for a connection, or for the server, end with their context
// or with the file.
func TestCancelAndClose(t *testing.T) {
	s := serve(t, random(t, 1000))
	asked, release := make(chan struct{}, 10), make(chan struct{})
	opt := local(s.URL)
	opt.MaxConnections = 1
	f := openFile(t, opt)
	s.set(func(s *site) {
		s.hook = func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
			asked <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return false
		}
	})
	defer close(release)
	read := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := f.ReadAt(ctx, make([]byte, 10), 0)
			done <- err
		}()
		return done
	}
	ctx, cancel := context.WithCancel(t.Context())
	under := read(ctx)
	<-asked
	waits, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if err := <-read(waits); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a connection ends with %v", err)
	}
	cancel()
	if err := <-under; !errors.Is(err, context.Canceled) {
		t.Errorf("a request under way ends with %v", err)
	}
	under = read(t.Context())
	<-asked
	queued := read(t.Context())
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, done := range []chan error{under, queued, read(t.Context())} {
		if err := <-done; !errors.Is(err, storage.ErrClosed) {
			t.Errorf("of a closed file: %v", err)
		}
	}
}

func TestName(t *testing.T) {
	for url, want := range map[string]string{
		"https://mirror.example/a/f.qcow2":                     "mirror.example/f.qcow2",
		"https://u:secret@mirror.example/f.qcow2?sig=secret#x": "mirror.example/f.qcow2",
		"http://[::1]:7080/v1/images/vm.qcow2/data":            "[::1]:7080/vm.qcow2",
		"http://h/v1/images/images/data":                       "h/images",
		"http://h/v1/images/data":                              "h/data",
		"http://h/":                                            "h",
		"http://h":                                             "h",
		"http://h/%2e%2e/a%0ab":                                "h/a%0ab",
		"ftp://h/f":                                            "http",
		"::":                                                   "http",
	} {
		if got := http.Name(url); got != want {
			t.Errorf("Name(%q) = %q, want %q", url, got, want)
		}
	}
}

func TestInvalidOptions(t *testing.T) {
	const url = "http://example.com/f"
	for name, at := range map[string]struct {
		opt   http.Options
		field string
	}{
		"no url":         {http.Options{}, "url"},
		"relative":       {http.Options{URL: "/secret"}, "url"},
		"scheme":         {http.Options{URL: "file:///secret"}, "url"},
		"no host":        {http.Options{URL: "http:///secret"}, "url"},
		"control":        {http.Options{URL: "http://h/secret\n"}, "url"},
		"opaque":         {http.Options{URL: "http:secret"}, "url"},
		"timeout":        {http.Options{URL: url, Timeout: -1}, "timeout"},
		"connections":    {http.Options{URL: url, MaxConnections: -1}, "max_connections"},
		"too many":       {http.Options{URL: url, MaxConnections: 1025}, "max_connections"},
		"header name":    {http.Options{URL: url, Headers: map[string]string{"a b": "secret"}}, "headers"},
		"no name":        {http.Options{URL: url, Headers: map[string]string{"": "secret"}}, "headers"},
		"header value":   {http.Options{URL: url, Headers: map[string]string{"a": "secret\r\nb: c"}}, "headers"},
		"reserved":       {http.Options{URL: url, Headers: map[string]string{"range": "secret"}}, "headers"},
		"twice":          {http.Options{URL: url, Headers: map[string]string{"a": "secret", "A": "secret"}}, "headers"},
		"two identities": {http.Options{URL: "http://u:secret@h/", Headers: map[string]string{"authorization": "secret"}}, "headers"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := http.Open(t.Context(), at.opt)
			var bad *storage.InvalidError
			if !errors.As(err, &bad) || bad.Field != at.field || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want one of %s without its value", err, at.field)
			}
		})
	}
}

// A read past the end does not ask, and one across it asks for what there is.
func TestReadAcrossTheEnd(t *testing.T) {
	s := serve(t, random(t, 100))
	f := openFile(t, local(s.URL))
	before := s.requests.Load()
	if n, err := f.ReadAt(t.Context(), make([]byte, 10), 100); n != 0 || err != io.EOF { //nolint:errorlint // must be bare
		t.Error(n, err)
	}
	if n := s.requests.Load() - before; n != 0 {
		t.Errorf("%d requests", n)
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 10), 95); n != 5 || err != io.EOF { //nolint:errorlint // must be bare
		t.Error(n, err)
	}
}
