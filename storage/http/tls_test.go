package http_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	nethttp "net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
	"github.com/extentd/extentd/storage/storagetest"
)

// secure starts a site with a certificate for 127.0.0.1, and returns its authority.
func secure(s *site, http2 bool) *x509.CertPool {
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = quiet
	s.StartTLS()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func TestTLS(t *testing.T) {
	for name, http2 := range map[string]bool{"http/1.1": false, "http/2": true} {
		t.Run(name, func(t *testing.T) {
			storagetest.TestFile(t, 1, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
				s := newSite(t, content)
				var other atomic.Bool
				s.hook = func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
					if (r.ProtoMajor == 2) != http2 {
						other.Store(true)
					}
					return false
				}
				opt := http.Options{AllowPrivate: true, CA: secure(s, http2)}
				opt.URL = s.URL
				t.Cleanup(func() {
					if other.Load() {
						t.Errorf("a request was not %s", name)
					}
					if n := s.connections.Load(); http2 && n > 1 {
						t.Errorf("%d connections", n)
					}
				})
				return openFile(t, opt)
			})
		})
	}
}

// A certificate of nobody that is known, or for another name, is refused: trying
// again does not help.
func TestUntrusted(t *testing.T) {
	s := newSite(t, make([]byte, 10))
	pool := secure(s, true)
	_, err := http.Open(t.Context(), local(s.URL))
	if !errors.Is(err, storage.ErrRefused) {
		t.Errorf("unknown authority: %v", err)
	}
	opt := local(strings.Replace(s.URL, "127.0.0.1", "localhost", 1))
	opt.CA = pool
	if _, err := http.Open(t.Context(), opt); !errors.Is(err, storage.ErrRefused) {
		t.Errorf("another name: %v", err)
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// From http to https a redirect may go, with the credentials only to the same
// host and port as they were meant for; back it may not.
func TestRedirectBetweenSchemes(t *testing.T) {
	content := random(t, 1000)
	plain, safe := serve(t, content), newSite(t, content)
	pool := secure(safe, true)
	plain.set(func(s *site) { s.hook = redirecting(308, func() string { return safe.URL + "/f" }) })
	var leaked atomic.Bool
	safe.set(func(s *site) {
		s.hook = both(redirecting(308, func() string { return plain.URL + "/f" }), func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
			if r.Header.Get("X-Key") != "" {
				leaked.Store(true)
			}
			return false
		})
	})
	opt := local(plain.URL + "/r")
	opt.CA, opt.Headers = pool, map[string]string{"X-Key": "secret"}
	f := openFile(t, opt)
	p := make([]byte, 100)
	if _, err := f.ReadAt(t.Context(), p, 3); err != nil || !bytes.Equal(p, content[3:103]) {
		t.Error(err)
	}
	if leaked.Load() {
		t.Error("the header went to another port")
	}
	before := plain.requests.Load()
	opt.URL = safe.URL + "/r"
	if _, err := http.Open(t.Context(), opt); !errors.Is(err, storage.ErrRefused) {
		t.Errorf("%v, want %v", err, storage.ErrRefused)
	}
	if plain.requests.Load() != before {
		t.Error("the plain server was asked")
	}
}

// A server that accepts connections and says nothing is given up; nothing is left
// behind when the file was never opened, nor when the caller goes away.
func TestSilentServer(t *testing.T) {
	others := goleak.IgnoreCurrent()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	opt := local("https://" + l.Addr().String() + "/f")
	opt.Timeout = 50 * time.Millisecond
	if _, err := http.Open(t.Context(), opt); !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	opt.Timeout = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := http.Open(ctx, opt); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	goleak.VerifyNone(t, others)
}
