package test

import (
	"bytes"
	"crypto/tls"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
	"github.com/extentd/extentd/test/certs"
)

// An authority has certificates for a server of the tests and its clients.
type authority struct {
	*certs.Authority
	t testing.TB
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	return &authority{certs.New(t), t}
}

// flags are those of a server with its certificate; clients must have one too, if
// wanted.
func (a *authority) flags(clients bool) []string {
	flags := append(a.NBD(), "--nbd", "127.0.0.1:0", "--nbd", "unix:"+nbdSocket())
	if clients {
		flags = append(flags, "--nbd-tls-client-ca", a.Path("ca-cert.pem"))
	}
	return flags
}

// without is a directory of the same authority without the client's certificate.
func (a *authority) without() string {
	dir := a.t.TempDir()
	must(a.t, os.WriteFile(filepath.Join(dir, "ca-cert.pem"), readFile(a.t, a.Path("ca-cert.pem")), 0o600))
	return dir
}

// TestNBDTLS: with TLS required all works through it, and nothing before it.
func TestNBDTLS(t *testing.T) {
	for _, clients := range []bool{false, true} {
		name := "server"
		if clients {
			name = "both"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "x")
			file := m.create("-hidden.qcow2", 2*mib)
			m.io(file, m.write(0, mib))
			want, err := convert(m.dir, file)
			must(t, err)
			a, other := newAuthority(t), newAuthority(t)
			s := serve(t, m.dir, a.flags(clients)...)
			if !strings.HasPrefix(s.nbd[0], "nbds://") || !strings.HasPrefix(s.nbd[1], "nbds+unix://") {
				t.Errorf("the addresses are %v", s.nbd)
			}
			nothingBefore(t, s, file)
			for _, address := range s.nbd {
				throughTLS(t, address, file, want, a)
				for _, refused := range []string{other.Dir, other.without()} {
					if !clients && strings.Contains(address, "unix") {
						continue // libnbd does not verify who serves a socket
					}
					if out, _, err := tool("nbdinfo", "--list", uriOf(address, "", "tls-certificates", refused)); err == nil {
						t.Errorf("a client that trusts another authority is served:\n%s", out)
					}
				}
				_, _, err := tool("nbdinfo", "--size", uriOf(address, file, "tls-certificates", a.without()))
				if (err != nil) != clients {
					t.Errorf("a client without a certificate: %v", err)
				}
			}
			if clients {
				onlyWithCertificates(t, s, a, other)
			}
			s.stop()
			m.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, want)
			m.checkClean(t, file)
		})
	}
}

// nothingBefore: every option but STARTTLS is refused in the same way, whether
// there is such an export or not, and none shows anything.
func nothingBefore(t *testing.T, s *server, file string) {
	t.Helper()
	for _, address := range s.nbd {
		c := dialNBD(t, address)
		for _, name := range []string{file, "missing", ""} {
			export := wire.AppendGo(nil, &wire.GoRequest{Name: name})
			meta := wire.AppendMeta(nil, &wire.MetaRequest{Name: name})
			for o, data := range map[wire.Option][]byte{
				wire.OptList: nil, wire.OptInfo: export, wire.OptGo: export, wire.OptStructuredReply: nil,
				wire.OptListMetaContext: meta, wire.OptSetMetaContext: meta, wire.OptExtendedHeaders: nil, 77: nil,
			} {
				all, err := c.option(o, data)
				must(t, err)
				if len(all) != 1 || all[0].reply != wire.RepErrTLSReqd || bytes.Contains(all[0].data, []byte("hidden")) {
					t.Errorf("option %d of %q before TLS: %v", o, name, all)
				}
			}
			old := dialNBD(t, address)
			must(t, old.write(wire.AppendOption(nil, wire.OptExportName, []byte(name))))
			if p, err := old.read(1); err == nil {
				t.Errorf("an answer to EXPORT_NAME of %q: %x", name, p)
			}
		}
		plain := strings.Replace(address, "nbds", "nbd", 1)
		for _, args := range [][]string{{"--list"}, {"--json"}, {"--size"}} {
			out, errs, err := tool("nbdinfo", append(args, uriOf(plain, file))...)
			if err == nil || strings.Contains(out+strings.ReplaceAll(errs, uriOf(plain, file), ""), "qcow2 image") {
				t.Errorf("nbdinfo %v without TLS: %v\n%s%s", args, err, out, errs)
			}
		}
		c = dialNBD(t, address)
		must(t, c.startTLS(&tls.Config{InsecureSkipVerify: true}, false)) // starts, as it should
	}
}

// startTLS begins TLS; handshake: waits for it to stand.
func (c *nbdClient) startTLS(config *tls.Config, handshake bool) error {
	if err := c.agree(wire.OptStartTLS, nil, nil); err != nil {
		return err
	}
	secure := tls.Client(c.conn, config)
	c.conn = secure
	if handshake {
		return secure.Handshake()
	}
	return nil
}

// throughTLS has libnbd and QEMU work.
func throughTLS(t *testing.T, address, file, want string, a *authority) {
	t.Helper()
	uri := uriOf(address, file, "tls-certificates", a.Dir)
	if e := nbdExport(t, uri); e["export-name"] != file {
		t.Errorf("nbdinfo over TLS: %v", e)
	}
	if out := mustTool(t, "nbdinfo", "--list", uriOf(address, "", "tls-certificates", a.Dir)); !strings.Contains(out, file) {
		t.Errorf("nbdinfo --list over TLS:\n%s", out)
	}
	if !nbdSays(t, "--is", "tls", uri) {
		t.Error("nbdinfo says that it is not over TLS")
	}
	mustTool(t, "nbdcopy", "--connections=4", want, uri)
	copied := filepath.Join(t.TempDir(), "copied.raw")
	mustTool(t, "nbdcopy", "--connections=4", uri, copied)
	if i := firstDifference(readFile(t, copied), readFile(t, want)); i >= 0 {
		t.Errorf("byte %d differs over TLS", i)
	}
	u, err := url.Parse(address)
	must(t, err)
	node := "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=" + u.Port()
	if socket := u.Query().Get("socket"); socket != "" {
		node = "driver=nbd,tls-hostname=localhost,server.type=unix,server.path=" + socket
	}
	mustTool(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+a.Dir,
		"--image-opts", node+",tls-creds=tls0,export="+file, "driver=raw,file.driver=file,file.filename="+want)
}

// onlyWithCertificates: who has none, or one of somebody else, learns nothing.
func onlyWithCertificates(t *testing.T, s *server, a, other *authority) {
	t.Helper()
	for what, of := range map[string]*authority{"none": nil, "another's": other, "its own": a} {
		config := &tls.Config{RootCAs: a.Pool(), ServerName: "localhost"}
		if of != nil {
			config.Certificates = []tls.Certificate{of.Pair("client")}
		}
		c := dialNBD(t, s.nbd[0])
		err := c.startTLS(config, true)
		var all []optionAnswer
		if err == nil {
			all, err = c.option(wire.OptList, nil)
		}
		if (of == a) != (err == nil) || (len(all) > 0) != (of == a) {
			t.Errorf("with the certificate %q: %v, %d answers", what, err, len(all))
		}
	}
}

// TestNBDWithoutTLS: a server that has none serves without, and says so to who
// wants it.
func TestNBDWithoutTLS(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	s := serve(t, m.dir, overNBD()...)
	c := dialNBD(t, s.nbd[0])
	if r := c.last(t, wire.OptStartTLS, nil); r != wire.RepErrPolicy && r != wire.RepErrUnsup {
		t.Errorf("STARTTLS is answered with %#x", uint32(r))
	}
	must(t, c.open(file, true))
	if _, _, err := tool("nbdinfo", strings.Replace(s.uri(file), "nbd+", "nbds+", 1)); err == nil {
		t.Error("nbdinfo had TLS of a server without")
	}
	nbdExport(t, s.uri(file))
}
