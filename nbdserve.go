package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/certificate"
	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/telemetry"
)

// NBDConfig is what the NBD front end needs to know.
type NBDConfig struct {
	Addresses []string `koanf:"nbd"`
	Cert      string   `koanf:"nbd-tls-cert"`
	Key       string   `koanf:"nbd-tls-key"`
	ClientCA  string   `koanf:"nbd-tls-client-ca"`
}

// check refuses what is incomplete or unsafe: without certificates of clients
// there is no telling who they are. authenticated: that has to be known.
func (c *NBDConfig) check(authenticated, insecure bool) error {
	if err := needs([]need{
		{c.Cert, "nbd-tls-cert", c.Key, "nbd-tls-key"},
		{c.Key, "nbd-tls-key", c.Cert, "nbd-tls-cert"},
		{c.ClientCA, "nbd-tls-client-ca", c.Cert, "nbd-tls-cert"},
	}); err != nil {
		return err
	}
	for _, address := range c.Addresses {
		from, err := reach("nbd", address)
		switch {
		case err != nil:
			return err
		case c.ClientCA != "" || insecure || from == socket:
		case from == anywhere:
			return fmt.Errorf("nbd is %s, which others can reach, and there is no authentication: "+
				"listen on 127.0.0.1 or a unix socket, give --nbd-tls-client-ca, or --insecure if everybody who reaches it may read and write every image", address)
		case authenticated:
			return fmt.Errorf("nbd is %s, which everybody on this machine can reach, while clients of HTTP have to authenticate: "+
				"listen on a unix socket, give --nbd-tls-client-ca, or --insecure if everybody who reaches it may read and write every image", address)
		}
	}
	return nil
}

// certificates are nil where clients are served without TLS.
func (c *NBDConfig) certificates(log *slog.Logger) (*certificate.Files, error) {
	if c.Cert == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	opt := certificate.Options{Cert: c.Cert, Key: c.Key, ClientCA: c.ClientCA, Logger: log}
	if c.ClientCA != "" {
		// Asked by a TLS 1.3 server of Go, GnuTLS 3.7 (qemu, libnbd) does not offer
		// an RSA certificate.
		opt.MaxVersion = tls.VersionTLS12
	}
	files, err := certificate.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("nbd-tls: %w", err)
	}
	return files, nil
}

// An nbdDoor closes as other servers do.
type nbdDoor struct{ *nbd.Server }

func (d nbdDoor) Close() error {
	d.Server.Close()
	return nil
}

// openNBD binds the addresses of the NBD front end.
func (s *Server) openNBD(ctx context.Context, config *Config) error {
	if len(config.NBD.Addresses) == 0 {
		return nil
	}
	mode, err := config.TLS.socketMode()
	if err != nil {
		return err
	}
	files, err := config.NBD.certificates(s.log)
	if err != nil {
		return err
	}
	opt := nbd.Options{RequireTLS: files != nil, ReadOnly: config.ReadOnly, MaxMemory: config.Load.quarter(), Audit: s.audit, Logger: s.log}
	s.traceNBD(&opt)
	if files != nil {
		opt.TLS = files.Config()
	}
	if config.NBD.ClientCA != "" {
		opt.Identify = s.identify(files, config.authenticated())
	}
	server := nbd.New(s.service, opt)
	if err := telemetry.Watch(s.telemetry, server.Stats, nbdMetrics()...); err != nil {
		server.Close()
		return err
	}
	for _, address := range config.NBD.Addresses {
		l, err := bind(ctx, address, mode)
		if err != nil {
			server.Close()
			return err
		}
		s.doors = append(s.doors, &door{bound: l, listener: l, server: nbdDoor{server}, ended: make(chan struct{})})
		s.nbd = append(s.nbd, nbdURI(l, files != nil))
	}
	return nil
}

// identify says who a client of NBD is by its certificate, as long as that is one
// of an authority that clients may have.
func (s *Server) identify(files *certificate.Files, authenticated bool) func([]*x509.Certificate) (*auth.Caller, error) {
	return func(chain []*x509.Certificate) (*auth.Caller, error) {
		if err := files.Verify(chain); err != nil {
			return nil, fmt.Errorf("%w: %w", auth.ErrUnauthenticated, err)
		}
		if !authenticated {
			return auth.Anyone(), nil
		}
		return s.guard.Certificate(chain)
	}
}

// nbdURI leads to where a listener is.
func nbdURI(l *listener, secure bool) string {
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	if l.path != "" {
		return scheme + "+unix:///?socket=" + url.QueryEscape(l.path)
	}
	return scheme + "://" + l.Addr().String()
}
