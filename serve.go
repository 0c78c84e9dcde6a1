package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/service"
)

//go:embed openapi.yaml
var openAPI []byte

// cutOffTime is how long requests that were cut off have to notice.
const cutOffTime = 5 * time.Second

// defaultDrainTime is how long requests under way have to end.
const defaultDrainTime = 10 * time.Second

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
	s, err := NewServer(ctx, config, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx))) }()
	if _, err := fmt.Fprintf(stdout, "listening on %s\n", strings.Join(append([]string{s.URL()}, s.nbd...), " ")); err != nil {
		return err
	}
	return s.Run(ctx)
}

// A Server is a configured server whose addresses are bound.
type Server struct {
	log       *slog.Logger
	service   *service.Service
	telemetry *api.Telemetry
	requests  api.Requests
	draining  atomic.Bool
	doors     []door // the first is for images
	admin     net.Listener
	nbd       []string // where NBD is spoken, URIs
	drainTime time.Duration
}

// A door is a listener and what answers there.
type door struct {
	admin    bool // only probes are answered there
	listener net.Listener
	server   interface {
		Serve(l net.Listener) error
		Shutdown(ctx context.Context) error
		Close() error
	}
}

// NewServer opens the directories and binds the addresses. Who gets a server
// closes it.
func NewServer(ctx context.Context, config Config, stderr io.Writer) (*Server, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return nil, fmt.Errorf("log-level is %q, must be debug, info, warn or error", config.LogLevel)
	}
	s := &Server{drainTime: defaultDrainTime, log: slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level}))}
	if err := s.open(ctx, config); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx)))
	}
	s.log.Info("serving", "url", s.URL(), "admin", s.AdminURL(), "nbd", s.nbd, "version", buildVersion())
	return s, nil
}

func (s *Server) open(ctx context.Context, config Config) error {
	options, err := config.service(wiring{log: s.log, scratch: openScratch})
	if err != nil {
		return err
	}
	options.OnError = func(image string, err error) {
		s.log.Error("an image could not be flushed or closed", "image", image, "error", err)
	}
	if s.service, err = service.New(options); err != nil {
		return err
	}
	if s.telemetry, err = api.NewTelemetry(ctx, buildVersion()); err != nil {
		return err
	}
	loopback, err := isLoopback(config.Listen)
	if err != nil {
		return err
	}
	opt := api.Options{Spec: openAPI, Logger: s.log, Telemetry: s.telemetry, Loopback: loopback, Ready: s.ready, Requests: &s.requests}
	if _, err := s.listen(config.Listen, api.New(s.service, opt)); err != nil {
		return err
	}
	if config.AdminListen != "" {
		opt.Loopback = false // no image can be read there
		if s.admin, err = s.listen(config.AdminListen, api.NewAdmin(opt)); err != nil {
			return err
		}
		s.doors[len(s.doors)-1].admin = true
	}
	return s.openNBD(&config)
}

func (s *Server) listen(addr string, handler http.Handler) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	h := api.NewServer(handler, s.log)
	h.Protocols = new(http.Protocols)
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	s.doors = append(s.doors, door{listener: conn.Wrap(l), server: h})
	return l, nil
}

// URL is where images are served.
func (s *Server) URL() string { return "http://" + s.doors[0].listener.Addr().String() }

// AdminURL is where probes are answered besides, "" for nowhere.
func (s *Server) AdminURL() string {
	if s.admin == nil {
		return ""
	}
	return "http://" + s.admin.Addr().String()
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
		go func() { failed <- d.server.Serve(d.listener) }()
	}
	var err error
	served := len(s.doors)
	select {
	case <-ctx.Done():
	case err = <-failed:
		served--
	}
	s.draining.Store(true)
	s.log.Info("stopping")
	s.drain(context.WithoutCancel(ctx))
	for range served {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, nbd.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	s.log.Info("stopped")
	return err
}

// drain lets requests under way end, and cuts off those that do not. Probes
// are answered meanwhile.
func (s *Server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.drainTime)
	defer cancel()
	var images sync.WaitGroup // one kind of client must not use up the time of another
	for _, d := range s.doors {
		if !d.admin {
			images.Go(func() { s.shut(ctx, d) })
		}
	}
	images.Wait()
	for _, d := range s.doors {
		if d.admin {
			s.shut(ctx, d)
		}
	}
}

func (s *Server) shut(ctx context.Context, d door) {
	if err := d.server.Shutdown(ctx); err != nil {
		s.log.Warn("requests are cut off", "error", err)
		_ = d.server.Close() // their clients see it
	}
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
	errs = append(errs, s.requests.Wait(waiting))
	if s.telemetry != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		errs = append(errs, s.telemetry.Shutdown(ctx))
	}
	if s.service != nil {
		errs = append(errs, s.service.Close())
	}
	return errors.Join(errs...)
}
