package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/telemetry"
)

//go:embed openapi.yaml
var openAPI []byte

// cutOffTime is how long requests that were cut off have to notice.
const cutOffTime = 5 * time.Second

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve [DIR]",
		Short: "Serve the images in DIR (default ./" + defaultDir + ") over HTTP",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := loadConfig(cmd.Flags(), args)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), config, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	configFlags(cmd.Flags())
	return cmd
}

// serve runs a server until the context is done.
func serve(ctx context.Context, config Config, stdout, stderr io.Writer) (err error) {
	config.Load.collect()
	s, err := NewServer(ctx, config, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx))) }()
	defer s.heed(&config)()
	if _, err := fmt.Fprintf(stdout, "listening on %s\n", strings.Join(append([]string{s.URL()}, s.nbd...), " ")); err != nil {
		return err
	}
	return s.Run(ctx)
}

// A Server is a configured server whose addresses are bound.
type Server struct {
	log       *slog.Logger
	state     *state.DB // closed last
	service   *service.Service
	telemetry *telemetry.Telemetry
	audit     *audit.Log
	guard     *auth.Guard
	failures  func() uint64 // of authentication; nil: nobody counts them
	limits    *load.Limits
	requests  api.Requests
	draining  atomic.Bool
	doors     []*door       // the first is for images
	admin     *door         // nil for none
	nbd       []string      // where NBD is spoken, URIs
	delay     time.Duration // from the signal until no more connections are accepted
	grace     time.Duration // from then until requests under way are cut off
}

// NewServer opens the directories and binds the addresses. Who gets a server
// closes it.
func NewServer(ctx context.Context, config Config, stderr io.Writer) (*Server, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return nil, fmt.Errorf("log-level is %q, must be debug, info, warn or error", config.LogLevel)
	}
	logs := &lockedWriter{w: stderr}
	s := &Server{delay: config.TLS.DrainDelay, grace: config.TLS.Grace, log: newLogger(logs, level)}
	if err := s.open(ctx, config, logs); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx)))
	}
	s.log.Info("serving", "url", s.URL(), "admin", s.AdminURL(), "nbd", s.nbd, "version", buildVersion())
	return s, nil
}

func (s *Server) open(ctx context.Context, config Config, logs io.Writer) error {
	if err := s.openTelemetry(ctx, &config, logs); err != nil {
		return err
	}
	options, err := config.service(wiring{log: s.log, scratch: openScratch})
	if err != nil {
		return err
	}
	options.OnError = func(image string, err error) {
		s.log.Error("an image could not be flushed or closed", "image", image, "error", err)
	}
	s.limits = config.Load.limits(len(config.NBD.Addresses) > 0)
	s.state = state.New(config.state())
	options.State = s.state
	s.trace(&options)
	if s.service, err = service.New(options); err != nil {
		return err
	}
	if err := s.openGuard(ctx, &config); err != nil {
		return err
	}
	if err := s.watch(&config); err != nil {
		return err
	}
	from, err := reach("listen", config.Listen)
	if err != nil {
		return err
	}
	opt := api.Options{Spec: openAPI, Logger: s.log, Telemetry: s.telemetry, Loopback: from == thisMachine && !config.authenticated(), Guard: s.guard, Authenticate: config.authenticated(), Ready: s.ready, Requests: &s.requests, Load: s.limits, Audit: s.audit, State: s.state}
	if opt.Dialects, err = config.Dialects.dialects(); err != nil {
		return err
	}
	if err := s.openHTTP(ctx, &config, api.New(s.service, opt)); err != nil {
		return err
	}
	if config.AdminListen != "" {
		opt.Loopback = false // no image can be read there
		if err := s.openAdmin(ctx, &config, api.NewAdmin(opt)); err != nil {
			return err
		}
	}
	return s.openNBD(ctx, &config)
}

// URL is where images are served.
func (s *Server) URL() string { return s.doors[0].url() }

// AdminURL is where probes are answered besides, "" for nowhere.
func (s *Server) AdminURL() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.url()
}

// ready says why no more requests are welcome.
func (s *Server) ready() error {
	if s.draining.Load() {
		return errors.New("the server is stopping")
	}
	return nil
}

// Run serves until the context is done, then waits a while for the requests
// that are under way. It is called once.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.doors))
	for _, d := range s.doors {
		go func() { failed <- d.serve() }()
	}
	var err error
	served := len(s.doors)
	select {
	case <-ctx.Done():
	case err = <-failed:
		served--
	}
	s.draining.Store(true)
	s.log.Info("stopping", "delay", s.delay.String(), "grace", s.grace.String())
	if err == nil {
		s.linger(failed)
	}
	s.drain(context.WithoutCancel(ctx))
	for range served {
		if e := <-failed; !stopped(e) {
			err = errors.Join(err, e)
		}
	}
	s.log.Info("stopped")
	return err
}

// Close closes everything, after Run. The context bounds how long it waits for
// requests that were cut off, and the last of the telemetry may take, neither of
// which is long.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	for _, d := range s.doors {
		errs = append(errs, d.server.Close())
		if err := d.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	// One that is writing would leave its image behind not closed.
	waiting, cancel := context.WithTimeout(ctx, cutOffTime)
	defer cancel()
	s.requests.Stop()
	errs = append(errs, s.requests.Wait(waiting))
	s.stopTelemetry(ctx)
	if s.service != nil {
		errs = append(errs, s.service.Close())
	}
	if s.guard != nil {
		errs = append(errs, s.guard.Close())
	}
	errs = append(errs, s.state.Close(), s.audit.Close())
	return errors.Join(errs...)
}
