// Package api is the HTTP front of the service: the contract of openapi.yaml.
//
// Control calls go through the types and the interface that are generated from
// the contract. Data and maps are streamed by hand. It guarantees that a body
// never ends cleanly when it is not complete, that what can be known to be wrong
// before the first byte is told with a status, and that no answer holds a path
// of the host.
package api

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/go-playground/validator/v10"

	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/telemetry"
)

// Options configure the handler. The zero value logs nothing, measures nothing,
// and answers to every Host.
type Options struct {
	// Spec is openapi.yaml, which the server hands out. Default: empty.
	Spec []byte
	// Logger gets failures, and at the debug level every request. Default:
	// nothing is logged.
	Logger *slog.Logger
	// Telemetry measures and traces requests, and answers /metrics. Default:
	// nothing is measured.
	Telemetry *telemetry.Telemetry
	// Guard says who callers are, by what they present. Default: nobody is known.
	Guard *auth.Guard
	// Authenticate answers callers alone that the guard knows, and each only what
	// it may do. Default: everybody may do everything; who presents a ticket, what
	// it is for.
	Authenticate bool
	// Loopback says that the listener is meant for this machine alone and asks
	// for no authentication. Then only requests whose Host is localhost, a
	// loopback address or one of Hosts are answered, so that no web page can
	// reach the server through a name of its own. Default: false.
	Loopback bool
	// Hosts are further values of Host without a port. Default: none.
	Hosts []string
	// Load bounds what clients may make the server hold. Default: nothing does.
	Load *load.Limits
	// Audit takes a record of each request that may change something. Default:
	// nothing is recorded.
	Audit *audit.Log
	// State is where the answers to requests with an Idempotency-Key are kept.
	// Default: such requests are refused.
	State *state.DB
	// Requests counts the requests under way. Default: nobody wants to know.
	Requests *Requests
	// Dialects are the protocols of other servers that are spoken, too. Default:
	// none is.
	Dialects []*Dialect
	// Ready reports why no new requests are welcome, nil if they are.
	// Default: they are.
	Ready func() error
}

// server holds what all requests share.
type server struct {
	svc         *service.Service
	opt         Options
	log         *slog.Logger
	instruments *instruments
	ids         requestIDs
	validate    *validator.Validate
	limits      limitTexts
	answers     *answers
	sums        *service.Checksums
	leave       func() // of opt.Load.Requests: one for each request would be garbage
}

// New returns the handler of the whole contract. The service stays the
// caller's to close, after the last request.
func New(svc *service.Service, opt Options) http.Handler {
	s := newServer(opt)
	s.svc = svc
	return s.router(append(s.imageRoutes(), s.serverRoutes()...))
}

// NewAdmin returns a handler that answers healthz, readyz and metrics alone, for
// a listener of their own.
func NewAdmin(opt Options) http.Handler {
	s := newServer(opt)
	return s.router(s.adminRoutes(public()))
}

func newServer(opt Options) *server {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Telemetry == nil {
		opt.Telemetry = telemetry.None()
	}
	if opt.Requests == nil {
		opt.Requests = new(Requests)
	}
	return &server{opt: opt, log: opt.Logger, instruments: newInstruments(opt.Telemetry), ids: newRequestIDs(), validate: newValidator(), answers: newAnswers(opt.State), sums: service.NewChecksums(0), leave: opt.Load.Requests().Leave}
}

// Bounds of a connection. There is no bound on the time that a body takes, in
// either direction: an image may be large and its client slow. What is done about
// clients that send or take nothing is up to load.Options.Stall.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	// maxStreams is how many requests there are at a time on a connection of
	// HTTP/2, and receiveBuffer what of their bodies may wait there unread, bytes.
	maxStreams    = 100
	receiveBuffer = 256 << 10
)

// NewServer returns an http.Server for the handler, to be used with a listener
// of conn.Wrap. It cuts off clients that are slow with their header.
func NewServer(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            readHeaderTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ConnContext:                  conn.Context,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		DisableGeneralOptionsHandler: true,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: receiveBuffer,
			MaxReceiveBufferPerStream:     receiveBuffer,
		},
	}
}
