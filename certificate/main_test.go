package certificate_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/certificate"
	"github.com/extentd/extentd/test/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A log collects what is logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count is how often a text was logged.
func (l *log) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// at is a configuration of the files of an authority.
func at(a *certs.Authority) certificate.Options {
	return certificate.Options{Cert: a.Path("server-cert.pem"), Key: a.Path("server-key.pem"), Every: time.Nanosecond}
}

// open opens the files, and logs.
func open(t testing.TB, opt certificate.Options) (*certificate.Files, *log) {
	t.Helper()
	l := new(log)
	opt.Logger = slog.New(slog.NewTextHandler(l, nil))
	f, err := certificate.Open(opt)
	must(t, err)
	return f, l
}

// shake makes a handshake, and has one byte come back, so that the client has
// its ticket and knows whether it was let in.
func shake(server, client *tls.Config) (served, seen tls.ConnectionState, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return served, seen, err
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		_, err = io.CopyN(s, s, 1)
		served = s.ConnectionState()
		ended <- errors.Join(err, s.Close())
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return served, seen, errors.Join(err, l.Close(), <-ended)
	}
	defer nc.Close()
	c := tls.Client(nc, client)
	if _, err = c.Write([]byte{7}); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	seen = c.ConnectionState()
	_ = nc.Close()
	if e := <-ended; err == nil {
		err = e
	}
	return served, seen, err
}

// speaks are clients of an authority's server.
func speaks(a *certs.Authority, name string) *tls.Config {
	return &tls.Config{RootCAs: a.Pool(), ServerName: name, MinVersion: tls.VersionTLS12}
}

// is says how a server is called.
func is(t testing.TB, f *certificate.Files, a *certs.Authority, name string) {
	t.Helper()
	if _, _, err := shake(f.Config(), speaks(a, name)); err != nil {
		t.Errorf("it is not %q: %v", name, err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return text
}

func writeFile(t testing.TB, path string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(path, text, 0o600))
}
