package certificate_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/certificate"
	"github.com/extentd/extentd/test/certs"
)

var pair = []string{"server-cert.pem", "server-key.pem"}

// Files may change in any way; the next handshake uses them.
func TestReload(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, a *certs.Authority){
		"written over": func(*testing.T, *certs.Authority) {}, // Server has done it
		"renamed": func(t *testing.T, a *certs.Authority) {
			for _, name := range pair {
				writeFile(t, a.Path("new"), readFile(t, a.Path(name)))
				must(t, os.Rename(a.Path("new"), a.Path(name)))
			}
		},
		"same size and times": func(t *testing.T, a *certs.Authority) {
			for _, name := range pair {
				must(t, os.Chtimes(a.Path(name), time.Unix(1, 0), time.Unix(1, 0)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := certs.New(t)
			f, log := open(t, at(a))
			is(t, f, a, "localhost")
			before := f.Config()
			a.Server("other.example")
			change(t, a)
			is(t, f, a, "other.example")
			if _, _, err := shake(before, speaks(a, "other.example")); err != nil {
				t.Errorf("a configuration that was made before: %v", err)
			}
			is(t, f, a, "other.example")
			if n := log.count("certificates have changed"); n != 1 {
				t.Errorf("%d lines in the log", n)
			}
		})
	}
}

// TestReloadLinks changes files as Kubernetes does: they are links into a
// directory that is one itself, and is replaced.
func TestReloadLinks(t *testing.T) {
	a := certs.New(t)
	dir := t.TempDir()
	publish := func(version string) {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		for _, name := range pair {
			writeFile(t, filepath.Join(dir, version, name), readFile(t, a.Path(name)))
		}
		must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("..1")
	opt := certificate.Options{Cert: filepath.Join(dir, pair[0]), Key: filepath.Join(dir, pair[1]), Every: time.Nanosecond}
	for _, name := range pair {
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	f, _ := open(t, opt)
	is(t, f, a, "localhost")
	a.Server("other.example")
	publish("..2")
	must(t, os.RemoveAll(filepath.Join(dir, "..1")))
	is(t, f, a, "other.example")
}

// What cannot be used is logged once, and what there was stays until there is
// something better.
func TestBroken(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, a *certs.Authority){
		"the key is another's": func(t *testing.T, a *certs.Authority) {
			writeFile(t, a.Path(pair[1]), readFile(t, a.Path("client-key.pem")))
		},
		"cut short": func(t *testing.T, a *certs.Authority) {
			writeFile(t, a.Path(pair[0]), readFile(t, a.Path(pair[0]))[:100])
		},
		"empty":    func(t *testing.T, a *certs.Authority) { writeFile(t, a.Path(pair[0]), nil) },
		"missing":  func(t *testing.T, a *certs.Authority) { must(t, os.Remove(a.Path(pair[0]))) },
		"too long": func(t *testing.T, a *certs.Authority) { writeFile(t, a.Path(pair[0]), make([]byte, 1<<20+1)) },
		"no authority": func(t *testing.T, a *certs.Authority) {
			writeFile(t, a.Path("ca-cert.pem"), readFile(t, a.Path("client-key.pem")))
		},
		"half an authority": func(t *testing.T, a *certs.Authority) {
			good := readFile(t, a.Path("ca-cert.pem"))
			writeFile(t, a.Path("ca-cert.pem"), append(good, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := certs.New(t)
			opt := at(a)
			opt.ClientCA, opt.ClientAuth = a.Path("ca-cert.pem"), tls.VerifyClientCertIfGiven
			f, log := open(t, opt)
			authorities := readFile(t, a.Path("ca-cert.pem"))
			damage(t, a)
			if _, err := certificate.Open(opt); err == nil {
				t.Error("a server starts with that")
			}
			for range 3 {
				is(t, f, a, "localhost")
			}
			if n := log.count("level=WARN"); n != 1 {
				t.Errorf("%d warnings in the log", n)
			}
			a.Server("other.example")
			writeFile(t, a.Path("ca-cert.pem"), authorities)
			is(t, f, a, "other.example")
			damage(t, a)
			is(t, f, a, "other.example")
			if n := log.count("level=WARN"); n != 2 {
				t.Errorf("%d warnings in the log after the second time", n)
			}
		})
	}
}

// Files are not looked at all the time.
func TestEvery(t *testing.T) {
	a := certs.New(t)
	opt := at(a)
	opt.Every = time.Hour
	f, _ := open(t, opt)
	a.Server("other.example")
	is(t, f, a, "localhost")
}

// Handshakes that race with changes of the files get one certificate or another,
// and never none.
func TestReloadUnderLoad(t *testing.T) {
	a := certs.New(t)
	f, log := open(t, at(a))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				config := speaks(a, "127.0.0.1")
				if _, _, err := shake(f.Config(), config); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		a.Server("localhost") // the certificate, and then the key
		time.Sleep(5 * time.Millisecond)
	}
	close(done)
	wg.Wait()
	a.Server("last.example")
	is(t, f, a, "last.example")
	if log.count("level=INFO") == 0 {
		t.Error("nothing was loaded")
	}
}

func TestOpenFailures(t *testing.T) {
	a := certs.New(t)
	good := certificate.Options{Cert: a.Path(pair[0]), Key: a.Path(pair[1]), ClientCA: a.Path("ca-cert.pem")}
	for name, change := range map[string]func(*certificate.Options){
		"missing.pem":     func(o *certificate.Options) { o.Cert = a.Path("missing.pem") },
		"no-key.pem":      func(o *certificate.Options) { o.Key = a.Path("no-key.pem") },
		"client-key.pem":  func(o *certificate.Options) { o.Key = a.Path("client-key.pem") },
		"holds no cert":   func(o *certificate.Options) { o.ClientCA = a.Path("client-key.pem") },
		"is a directory":  func(o *certificate.Options) { o.ClientCA = a.Dir },
		"server-cert.pem": func(o *certificate.Options) { o.Cert, o.Key = o.Key, o.Cert },
	} {
		opt := good
		change(&opt)
		if _, err := certificate.Open(opt); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}
