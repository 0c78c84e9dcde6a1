package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/certificate"
	"github.com/extentd/extentd/nbd"
)

// A door is a listener and what answers there.
type door struct {
	bound    *listener
	listener net.Listener // bound, and what is around it
	server   interface {
		Serve(l net.Listener) error
		Shutdown(ctx context.Context) error
		Close() error
	}
	gently bool          // it is HTTP of images: nobody who has connected is turned away
	secure bool          // it is HTTPS
	open   atomic.Int64  // how many connections there are, of HTTP
	ended  chan struct{} // closed when nobody is accepted anymore
}

// serve answers until the server is stopped, or fails.
func (d *door) serve() error {
	defer close(d.ended)
	return d.server.Serve(d.listener)
}

// stopped reports whether serving ended as it should.
func stopped(err error) bool {
	return errors.Is(err, http.ErrServerClosed) || errors.Is(err, nbd.ErrServerClosed) || errors.Is(err, net.ErrClosed)
}

// url is where an HTTP door is: unix:PATH has no other name.
func (d *door) url() string {
	switch {
	case d.bound.path != "":
		return d.bound.Address()
	case d.secure:
		return "https://" + d.bound.Address()
	}
	return "http://" + d.bound.Address()
}

// openHTTP binds the address where images are served.
func (s *Server) openHTTP(ctx context.Context, config *Config, handler http.Handler) error {
	files, err := config.certificates(s.log)
	if err != nil {
		return err
	}
	d, err := s.listenHTTP(ctx, config, config.Listen, s.closing(trusted(files, handler)), files, false)
	if err != nil {
		return err
	}
	d.gently = true
	return nil
}

// openAdmin binds the address of probes. They are asked without TLS: a kubelet has
// no certificate, and there is nothing to hide.
func (s *Server) openAdmin(ctx context.Context, config *Config, handler http.Handler) (err error) {
	s.admin, err = s.listenHTTP(ctx, config, config.AdminListen, handler, nil, true)
	return err
}

// listenHTTP binds an address of HTTP, or of HTTPS where there are files. Probes
// have room of their own there.
func (s *Server) listenHTTP(ctx context.Context, config *Config, address string, handler http.Handler, files *certificate.Files, probes bool) (*door, error) {
	mode, err := config.TLS.socketMode()
	if err != nil {
		return nil, err
	}
	l, err := bind(ctx, address, mode)
	if err != nil {
		return nil, err
	}
	d := &door{bound: l, secure: files != nil, ended: make(chan struct{})}
	h := api.NewServer(handler, s.log)
	h.ConnState = d.count
	h.ErrorLog = slog.NewLogLogger(calm{s.log.Handler()}, slog.LevelWarn)
	h.Protocols = new(http.Protocols)
	h.Protocols.SetHTTP1(true)
	d.listener = s.within(l, files == nil, probes) // below TLS
	if files != nil {
		h.Protocols.SetHTTP2(true)
		h.TLSConfig = files.Config()
		d.server = httpsServer{h}
	} else {
		h.Protocols.SetUnencryptedHTTP2(true)
		d.server = h
	}
	s.doors = append(s.doors, d)
	return d, nil
}

// count keeps the number of connections.
func (d *door) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		d.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		d.open.Add(-1)
	}
}

// calm takes handshakes that came to nothing for what they are: whoever looks
// whether a port is open, as load balancers do every few seconds, makes one.
type calm struct{ slog.Handler }

func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "http: TLS handshake error") {
		r.Level = slog.LevelDebug
	}
	if !c.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// An httpsServer serves under TLS.
type httpsServer struct{ *http.Server }

func (s httpsServer) Serve(l net.Listener) error { return s.ServeTLS(l, "", "") }

// closing has clients go elsewhere with their next request once the server is
// stopping: it says so with each answer, and HTTP/2 makes GOAWAY of that.
func (s *Server) closing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// trusted forgets the certificate of a connection whose authority has been taken
// away since.
func trusted(files *certificate.Files, next http.Handler) http.Handler {
	if files == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && !files.Trusts(r.TLS.VerifiedChains) {
			w.Header().Set("Connection", "close")
			unknown := *r.TLS
			unknown.PeerCertificates, unknown.VerifiedChains = nil, nil
			r = r.WithContext(r.Context()) // its own copy
			r.TLS = &unknown
		}
		next.ServeHTTP(w, r)
	})
}

// certificates are nil without TLS.
func (c *Config) certificates(log *slog.Logger) (*certificate.Files, error) {
	if c.TLS.Cert == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	opt := certificate.Options{
		Cert: c.TLS.Cert, Key: c.TLS.Key, ClientCA: c.TLS.ClientCA,
		ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"}, Logger: log,
	}
	if c.certificateAlone() {
		opt.ClientAuth = tls.RequireAndVerifyClientCert
	}
	files, err := certificate.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return files, nil
}
