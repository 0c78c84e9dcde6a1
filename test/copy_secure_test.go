package test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/extentd/extentd/test/certs"
)

// TestCopyTLS: with certificates at both ends, over HTTP/2 and NBD.
func TestCopyTLS(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "tls")
	m.run("mkdir", "served")
	from := m.raw("-from.raw", 24*mib)
	m.io(from, m.write(0, 20*mib))
	a := certs.New(t)
	flags := append(append(a.HTTP(), a.NBD()...), "--tls-client-ca", a.Path("ca-cert.pem"), "--nbd-tls-client-ca", a.Path("ca-cert.pem"), "--nbd", "127.0.0.1:0")
	s := serve(t, m.path("served"), flags...)
	s.trust(a, "client")
	ca := []string{"--ca", a.Path("ca-cert.pem")}
	all := append([]string{"--cert", a.Path("client-cert.pem"), "--key", a.Path("client-key.pem")}, ca...)
	copyImage(t, m.dir, append(all, "--verify", from, s.url+"/a.qcow2")...)
	copyImage(t, m.dir, append(all, "--verify", s.url+"/a.qcow2", "b.raw")...)
	m.same(from, "b.raw")
	copyImage(t, m.dir, append(all, s.nbd[0]+"/a.qcow2", "c.raw")...)
	m.same(from, "c.raw")
	refuseCopy(t, m.dir, "certificate", s.url+"/a.qcow2", "x.raw")
	refuseCopy(t, m.dir, "certificate", append(ca, s.url+"/a.qcow2", "x.raw")...)
	refuseCopy(t, m.dir, "HTTPS", strings.Replace(s.url, "https", "http", 1)+"/a.qcow2", "x.raw")
	refuseCopy(t, m.dir, "missing", "--ca", "missing", s.url+"/a.qcow2", "x.raw")
	refuseCopy(t, m.dir, "come together", "--cert", "missing", s.url+"/a.qcow2", "x.raw")
}

// TestCopySocket: over the socket of a server.
func TestCopySocket(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "socket")
	m.run("mkdir", "served")
	from := m.raw("-from.raw", 3*mib)
	m.io(from, m.write(mib, mib))
	socket := nbdSocket()
	serveAt(t, "unix:"+socket, m.path("served"))
	at := "?socket=" + url.QueryEscape(socket)
	copyImage(t, m.dir, "--verify", from, "http+unix:///a.qcow2"+at)
	copyImage(t, m.dir, "http+unix:///v1/images/a.qcow2"+at, "b.raw")
	m.same(from, "b.raw")
	if out, errs, code := verb(t, m.dir, "ls", "http+unix:///"+at); code != 0 || !strings.Contains(out, "a.qcow2") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// TestCopyThrottled: a server that refuses most of what comes slows a copy down, and
// does not end it.
func TestCopyThrottled(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "throttled")
	m.run("mkdir", "served")
	from := m.raw("-from.raw", 40*mib)
	m.io(from, m.write(0, 40*mib))
	s := serve(t, m.path("served"), "--rate", "8", "--burst", "2")
	r := copyImage(t, m.dir, "--checkpoint", "300ms", from, s.url+"/a.qcow2")
	if want := checksumOf(readFile(t, m.path(from))); r.Checksum != want {
		t.Errorf("%+v, want %s", r, want)
	}
	copyImage(t, m.dir, s.url+"/a.qcow2", "b.raw")
	m.same(from, "b.raw")
}
