package http_test

import (
	"bytes"
	"io"
	"log"
	"math/rand/v2"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage/http"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A site is a server with one file, at every path. Its fields may be changed
// through set while it serves.
type site struct {
	*httptest.Server
	requests    atomic.Int64
	connections atomic.Int64

	mu       sync.Mutex
	content  []byte
	etag     string    // "" for none
	modified time.Time // zero for none
	hook     hook
}

// A hook may answer a request instead of the site, and reports whether it has.
type hook func(w nethttp.ResponseWriter, r *nethttp.Request) bool

// newSite serves the content with a strong ETag. It is not started.
func newSite(t testing.TB, content []byte) *site {
	t.Helper()
	s := &site{content: content, etag: `"one"`}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ConnState = func(_ net.Conn, state nethttp.ConnState) {
		if state == nethttp.StateNew {
			s.connections.Add(1)
		}
	}
	t.Cleanup(s.Close)
	return s
}

// serve starts one.
func serve(t testing.TB, content []byte) *site {
	t.Helper()
	s := newSite(t, content)
	s.Start()
	return s
}

func (s *site) set(change func(*site)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *site) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	s.requests.Add(1)
	s.mu.Lock()
	content, etag, modified, hook := s.content, s.etag, s.modified, s.hook
	s.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if etag != "" {
		w.Header().Set("Etag", etag)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	nethttp.ServeContent(w, r, "", modified, bytes.NewReader(content))
}

// local are options for a server on this machine.
func local(url string) http.Options {
	return http.Options{URL: url, AllowPrivate: true, Timeout: 5 * time.Second}
}

func openFile(t testing.TB, opt http.Options) *http.File {
	t.Helper()
	f, err := http.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// random is content without zeros.
func random(t testing.TB, n int) []byte {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("content of seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + r.IntN(255))
	}
	return p
}

// quiet is where servers log what is meant to go wrong.
var quiet = log.New(io.Discard, "", 0)
