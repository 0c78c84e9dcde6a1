package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/extentd/extentd/nbd"
)

// NBDConfig is what the NBD front end needs to know.
type NBDConfig struct {
	Addresses []string `koanf:"nbd"`
	Cert      string   `koanf:"nbd-tls-cert"`
	Key       string   `koanf:"nbd-tls-key"`
	ClientCA  string   `koanf:"nbd-tls-client-ca"`
}

const unixPrefix = "unix:"

// check refuses what is incomplete or unsafe.
func (c *NBDConfig) check(insecure bool) error {
	for _, f := range []struct{ has, flag, needs, needed string }{
		{c.Cert, "nbd-tls-cert", c.Key, "nbd-tls-key"},
		{c.Key, "nbd-tls-key", c.Cert, "nbd-tls-cert"},
		{c.ClientCA, "nbd-tls-client-ca", c.Cert, "nbd-tls-cert"},
	} {
		if f.has != "" && f.needs == "" {
			return fmt.Errorf("%s needs %s", f.flag, f.needed)
		}
	}
	for _, address := range c.Addresses {
		if path, isUnix := strings.CutPrefix(address, unixPrefix); isUnix {
			if path == "" {
				return fmt.Errorf("nbd is %q, must be HOST:PORT or unix:PATH", address)
			}
			continue
		}
		loopback, err := isLoopback(address)
		if err != nil {
			return fmt.Errorf("nbd is %q, must be HOST:PORT or unix:PATH: %w", address, err)
		}
		if !loopback && c.ClientCA == "" && !insecure {
			return fmt.Errorf("nbd is %s, which others can reach, and there is no authentication: "+
				"listen on 127.0.0.1 or a unix socket, give --nbd-tls-client-ca, or --insecure if everybody who reaches it may read and write every image", address)
		}
	}
	return nil
}

// tls is nil where clients are served without.
func (c *NBDConfig) tls() (*tls.Config, error) {
	if c.Cert == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("nbd-tls-cert and nbd-tls-key: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if c.ClientCA == "" {
		return config, nil
	}
	text, err := os.ReadFile(c.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("nbd-tls-client-ca: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("nbd-tls-client-ca: %s holds no certificate", c.ClientCA)
	}
	// Asked by a TLS 1.3 server of Go, GnuTLS 3.7 (qemu, libnbd) does not offer
	// an RSA certificate.
	config.MaxVersion = tls.VersionTLS12
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config, nil
}

// An nbdDoor closes as other servers do.
type nbdDoor struct{ *nbd.Server }

func (d nbdDoor) Close() error {
	d.Server.Close()
	return nil
}

// openNBD binds the addresses of the NBD front end.
func (s *Server) openNBD(config *Config) error {
	if len(config.NBD.Addresses) == 0 {
		return nil
	}
	secure, err := config.NBD.tls()
	if err != nil {
		return err
	}
	server := nbd.New(s.service, nbd.Options{TLS: secure, RequireTLS: secure != nil, ReadOnly: config.ReadOnly, Logger: s.log})
	for _, address := range config.NBD.Addresses {
		l, uri, err := listenNBD(address, secure != nil)
		if err != nil {
			server.Close()
			return err
		}
		s.doors = append(s.doors, door{listener: l, server: nbdDoor{server}})
		s.nbd = append(s.nbd, uri)
	}
	return nil
}

// listenNBD binds an address and says which URI leads there.
func listenNBD(address string, secure bool) (l net.Listener, uri string, err error) {
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	path, isUnix := strings.CutPrefix(address, unixPrefix)
	if !isUnix {
		if l, err = net.Listen("tcp", address); err != nil {
			return nil, "", err
		}
		return l, scheme + "://" + l.Addr().String(), nil
	}
	if err := removeDead(path); err != nil {
		return nil, "", err
	}
	if l, err = net.Listen("unix", path); err != nil {
		return nil, "", err
	}
	return l, scheme + "+unix:///?socket=" + url.QueryEscape(path), nil
}

// removeDead removes a socket on which nobody listens, such as a process leaves
// behind that was killed. What is not a socket stays.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil //nolint:nilerr // listening says what is wrong
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return nil
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil //nolint:nilerr // as above
	}
	return os.Remove(path)
}
