package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/test/certs"
)

// trust has the server's client trust an authority, and show a certificate of it
// if a name is given.
func (s *server) trust(a *certs.Authority, names ...string) {
	config := &tls.Config{RootCAs: a.Pool()}
	for _, name := range names {
		config.Certificates = append(config.Certificates, a.Pair(name))
	}
	s.client.Transport.(*http.Transport).TLSClientConfig = config
}

// TestTLS: curl speaks HTTP/1.1 and HTTP/2 under TLS 1.2 and 1.3, and gets the same
// bytes; who does not speak TLS is told.
func TestTLS(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", 5*mib)
	m.io(file, "write -P 7 1M 3M")
	want := readFile(t, m.path(file))
	a := certs.New(t)
	s := serve(t, m.dir, append(a.HTTP(), "--admin-listen", "unix:"+nbdSocket())...)
	if !strings.HasPrefix(s.url, "https://127.0.0.1:") {
		t.Fatalf("it is at %s", s.url)
	}
	ca := []string{"--cacert", a.Path("ca-cert.pem")}
	for _, version := range []string{"1.2", "1.3"} {
		for protocol, says := range map[string]string{"--http1.1": "HTTP/1.1", "--http2": "HTTP/2"} {
			args := append([]string{"--tlsv" + version, "--tls-max", version, protocol}, ca...)
			got := curl(t, s, imagePath(file, "/data"), args...)
			if i := firstDifference(got.body, want); got.status != http.StatusOK || i >= 0 {
				t.Errorf("%v: status %d, byte %d differs", args, got.status, i)
			}
			part := curl(t, s, imagePath(file, "/data"), append(args, "-r", "1048000-1050000", "-w", "%{http_version}")...)
			if !bytes.Equal(part.body, want[1048000:1050001]) {
				t.Errorf("%v: the range has %d bytes", args, len(part.body))
			}
			if out := mustTool(t, "curl", append(args, "-sSI", s.url+imagePath(file, "/data"))...); !strings.HasPrefix(out, says+" 200") {
				t.Errorf("%v: %.40s", args, out)
			}
		}
	}
	copy(want[3*mib:], bytes.Repeat([]byte{9}, int(mib)))
	must(t, os.WriteFile(m.path("new"), want[3*mib:4*mib], 0o600))
	if put := curl(t, s, imagePath(file, "/data"), append(ca, "-T", m.path("new"), "-H", "Content-Range: bytes 3145728-4194303/*")...); put.status != http.StatusNoContent {
		t.Errorf("PUT: status %d: %s", put.status, put.body)
	}
	if i := firstDifference(curl(t, s, imagePath(file, "/data"), ca...).body, want); i >= 0 {
		t.Errorf("after PUT byte %d differs", i)
	}
	for what, args := range map[string][]string{
		"another authority": {"--cacert", certs.New(t).Path("ca-cert.pem")}, "the system's": nil,
		"TLS 1.1": append([]string{"--tlsv1.1", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"}, ca...),
	} {
		if got, code, _ := tryCurl(t, s, "/healthz", args...); code == 0 {
			t.Errorf("%s: status %d", what, got.status)
		}
	}
	inClear := *s
	inClear.url = strings.Replace(s.url, "https:", "http:", 1)
	if got := curl(t, &inClear, "/v1/images"); got.status != http.StatusBadRequest || bytes.Contains(got.body, []byte(file)) {
		t.Errorf("without TLS: status %d: %s", got.status, got.body)
	}
	healthUnderTLS(t, s, a)
}

// healthUnderTLS asks by the verb.
func healthUnderTLS(t *testing.T, s *server, a *certs.Authority) {
	t.Helper()
	for _, test := range []struct {
		code int
		args []string
	}{
		{0, []string{"--listen", s.url, "--ca", a.Path("ca-cert.pem")}},
		{0, []string{"--listen", s.url, "--insecure"}},
		{1, []string{"--listen", s.url}},
		{1, []string{"--listen", s.url, "--ca", certs.New(t).Path("ca-cert.pem")}},
		{1, []string{"--listen", strings.TrimPrefix(s.url, "https://")}},
		{1, []string{"--listen", s.url, "--ca", a.Path("client-key.pem")}},
		{1, []string{"--listen", "ftp://127.0.0.1:1"}},
	} {
		out, errs, code := verb(t, t.TempDir(), append([]string{"health"}, test.args...)...)
		if code != test.code || out != "" || (errs == "") != (code == 0) {
			t.Errorf("health %v: exit code %d, %q, %q", test.args, code, out, errs)
		}
	}
}

// TestTLSClients: where clients need certificates, those without one of the right
// authority are not served, and those whose authority goes are not served anymore:
// neither anew, nor over connections that stand.
func TestTLSClients(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	a, other := certs.New(t), certs.New(t)
	authorities := filepath.Join(m.dir, "authorities.pem")
	must(t, os.WriteFile(authorities, readFile(t, a.Path("ca-cert.pem")), 0o600))
	s := serve(t, m.dir, append(a.HTTP(), "--tls-client-ca", authorities)...)
	path := imagePath(file, "/data")
	of := func(who *certs.Authority) []string {
		return []string{"--cacert", a.Path("ca-cert.pem"), "--cert", who.Path("client-cert.pem"), "--key", who.Path("client-key.pem")}
	}
	for _, version := range []string{"1.2", "1.3"} {
		tlsVersion := []string{"--tlsv" + version, "--tls-max", version}
		if got := curl(t, s, path, append(of(a), tlsVersion...)...); got.status != http.StatusOK || int64(len(got.body)) != mib {
			t.Errorf("TLS %s: status %d, %d bytes", version, got.status, len(got.body))
		}
		for what, args := range map[string][]string{"none": of(a)[:2], "another's": of(other)} {
			if got, code, _ := tryCurl(t, s, path, append(args, tlsVersion...)...); code == 0 || len(got.body) > 0 {
				t.Errorf("with the certificate %q, TLS %s: status %d, %d bytes", what, version, got.status, len(got.body))
			}
		}
	}
	s.trust(a, "client")
	s.expect(t, http.StatusOK, path) // over a connection that stays
	must(t, os.WriteFile(authorities, readFile(t, other.Path("ca-cert.pem")), 0o600))
	must(t, eventually(func() error {
		if _, code, errs := tryCurl(t, s, path, of(other)...); code != 0 {
			return fmt.Errorf("the new authority: curl: exit code %d: %s", code, errs)
		}
		return nil
	}))
	if got, code, _ := tryCurl(t, s, path, of(a)...); code == 0 {
		t.Errorf("of the authority that went: status %d", got.status)
	}
	s.expectProblem(t, http.StatusUnauthorized, "unauthenticated", path)
}

// TestNBDAuthorityTakenAway: a connection is cut off when the authority of its
// certificate goes, and one of another stays.
func TestNBDAuthorityTakenAway(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	a, other := certs.New(t), certs.New(t)
	authorities := filepath.Join(m.dir, "authorities.pem")
	must(t, os.WriteFile(authorities, append(readFile(t, a.Path("ca-cert.pem")), readFile(t, other.Path("ca-cert.pem"))...), 0o600))
	s := serve(t, m.dir, append(a.NBD(), "--nbd", "127.0.0.1:0", "--nbd-tls-client-ca", authorities)...)
	open := func(who *certs.Authority) *nbdClient {
		t.Helper()
		c := dialNBD(t, s.nbd[0])
		must(t, c.startTLS(&tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{who.Pair("client")}}, true))
		must(t, c.open(file, true))
		return c
	}
	goes, stays := open(a), open(other)
	for range 3 {
		_, err := goes.readAll(0, mib)
		must(t, err)
		time.Sleep(500 * time.Millisecond)
	}
	must(t, os.WriteFile(authorities, readFile(t, other.Path("ca-cert.pem")), 0o600))
	must(t, eventually(func() error {
		if _, err := goes.readAll(0, 4096); err == nil {
			return fmt.Errorf("the one whose authority went is still served")
		}
		return nil
	}))
	_, err := stays.readAll(0, mib)
	must(t, err)
	open(other)
}

// TestTLSReload changes certificates as Kubernetes does, under traffic: no request
// fails, over HTTP and NBD.
func TestTLSReload(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	a := certs.New(t)
	dir := t.TempDir()
	mount := newMount(t, dir, a)
	flags := []string{"--tls-cert", filepath.Join(dir, "server-cert.pem"), "--tls-key", filepath.Join(dir, "server-key.pem")}
	flags = append(flags, "--nbd", "127.0.0.1:0", "--nbd-tls-cert", flags[1], "--nbd-tls-key", flags[3])
	s := serve(t, m.dir, flags...)
	s.trust(a)
	s.client.Transport.(*http.Transport).DisableKeepAlives = true
	done := make(chan struct{})
	failed := make(chan error, 2)
	for range 2 {
		go func() {
			for {
				select {
				case <-done:
					failed <- nil
					return
				default:
				}
				if _, err := s.read(file, 0, 4096); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	for _, name := range []string{"one.example", "two.example"} {
		a.Server(name)
		mount.publish()
		must(t, eventually(func() error { return isServedAs(s, a, name) }))
	}
	must(t, os.WriteFile(a.Path("server-key.pem"), readFile(t, a.Path("client-key.pem")), 0o600))
	mount.publish()
	must(t, eventually(func() error {
		if !strings.Contains(s.stderr.String(), "cannot be used") {
			return fmt.Errorf("a key that does not match is not in the log")
		}
		return nil
	}))
	must(t, isServedAs(s, a, "two.example"))
	a.Server("three.example")
	mount.publish()
	must(t, eventually(func() error { return isServedAs(s, a, "three.example") }))
	close(done)
	for range 2 {
		must(t, <-failed)
	}
}

// isServedAs wants the certificate of a name, over HTTP and NBD.
func isServedAs(s *server, a *certs.Authority, name string) error {
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{RootCAs: a.Pool()})
	if err != nil {
		return err
	}
	defer c.Close()
	n, err := tryDialNBD(s.nbd[0])
	if err != nil {
		return err
	}
	defer n.conn.Close()
	if err := n.startTLS(&tls.Config{RootCAs: a.Pool(), ServerName: "127.0.0.1"}, true); err != nil {
		return err
	}
	for what, leaf := range map[string]*x509.Certificate{
		"HTTP": c.ConnectionState().PeerCertificates[0], "NBD": n.conn.(*tls.Conn).ConnectionState().PeerCertificates[0],
	} {
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// A mount is a secret that Kubernetes has mounted: files are links through ..data,
// which is a link that is replaced.
type mount struct {
	t   testing.TB
	dir string
	a   *certs.Authority
}

func newMount(t testing.TB, dir string, a *certs.Authority) *mount {
	v := &mount{t, dir, a}
	v.publish()
	for _, name := range []string{"server-cert.pem", "server-key.pem"} {
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	return v
}

func (v *mount) publish() {
	v.t.Helper()
	old, _ := os.Readlink(filepath.Join(v.dir, "..data")) // none at first
	version := fmt.Sprintf("..%d", time.Now().UnixNano())
	must(v.t, os.Mkdir(filepath.Join(v.dir, version), 0o700))
	for _, name := range []string{"server-cert.pem", "server-key.pem"} {
		must(v.t, os.WriteFile(filepath.Join(v.dir, version, name), readFile(v.t, v.a.Path(name)), 0o600))
	}
	must(v.t, os.Symlink(version, filepath.Join(v.dir, "..tmp")))
	must(v.t, os.Rename(filepath.Join(v.dir, "..tmp"), filepath.Join(v.dir, "..data")))
	if old != "" {
		must(v.t, os.RemoveAll(filepath.Join(v.dir, old)))
	}
}
