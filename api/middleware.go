package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
)

// observed is the one middleware, on every route: request id, check of the
// host, span, metrics, log, and what becomes of a panic. A stack of single ones
// would cost several times as much on a small read.
type observed struct {
	s       *server
	pattern string // as in the contract, "" for what is on no route
	name    string // of spans
	next    http.HandlerFunc
	metrics routeMetrics
}

func (s *server) observe(method, pattern string, next http.HandlerFunc) http.Handler {
	name := "no route"
	if pattern != "" {
		name = method + " " + pattern
	}
	return &observed{s: s, pattern: pattern, name: name, next: next, metrics: s.instruments.route(method, pattern)}
}

func (o *observed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.s.opt.Requests.begin()
	defer o.s.opt.Requests.end()
	start := time.Now()
	resp := &response{ResponseWriter: w, id: [1]string{o.s.ids.of(r)}}
	w.Header()["X-Request-Id"] = resp.id[:]
	o.s.begin(resp, r, start)
	if r.ProtoMajor > 1 {
		resp.stall = o.s.opt.Load.Stall()
	}
	var span traced
	if o.s.instruments.tracing {
		r, span = o.s.instruments.begin(r, o.name)
	}
	defer func() {
		aborted := o.recovered(recover(), resp, r)
		took := time.Since(start)
		o.finish(r, resp, span, took, aborted)
		if o.s.opt.Audit != nil && changes(r.Method) {
			o.audit(r, resp, start, took, aborted)
		}
		if aborted {
			panic(http.ErrAbortHandler)
		}
	}()
	if o.s.opt.Dialects != nil {
		o.s.recognise(resp, r)
	}
	if !o.s.hostAllowed(r.Host) {
		o.s.fail(resp, r, errHost)
		return
	}
	o.next(resp, r)
}

// recovered deals with a panic, and reports whether the connection must be cut
// because the body is not complete.
func (o *observed) recovered(p any, resp *response, r *http.Request) (aborted bool) {
	if p == nil {
		return false
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return true
	}
	err := fmt.Errorf("panic: %v", p)
	o.s.log.LogAttrs(r.Context(), slog.LevelError, "panic",
		slog.String("request", resp.id[0]), slog.Any("error", err), slog.String("stack", string(debug.Stack())))
	if resp.status != 0 {
		return true
	}
	o.s.fail(resp, r, err)
	return false
}

func (o *observed) finish(r *http.Request, resp *response, span traced, took time.Duration, aborted bool) {
	if resp.status == 0 && !aborted {
		resp.status = http.StatusOK // as net/http will say
	}
	resp.end()
	ctx := r.Context()
	o.metrics.record(ctx, resp, took, aborted)
	span.end(r, o.pattern, resp, aborted)
	if o.s.log.Enabled(ctx, slog.LevelDebug) {
		o.s.log.LogAttrs(ctx, slog.LevelDebug, "request",
			slog.String("request", resp.id[0]), slog.String("method", r.Method), slog.String("path", pathOf(r)),
			slog.String("remote", r.RemoteAddr), slog.Int("status", resp.status), slog.Int64("bytes", resp.sent), slog.Int64("received", resp.read),
			slog.Duration("took", took), slog.Bool("aborted", aborted))
	}
}

// A response is the writer that handlers get. It forwards what net/http's own
// can do, so that a stream is sent without copies.
type response struct {
	http.ResponseWriter
	status int // 0 until the header is sent
	sent   int64
	read   int64         // of the request's body
	id     [1]string     // an array, so that it serves as the value of a header
	stall  time.Duration // see writePaced; 0: it is not for this response

	caller  *auth.Caller  // who was found to call; nil: nobody was asked, or is known
	spoken  *spoken       // nil: the contract of this server
	problem string        // the type of the problem that was answered, "" for none
	change  *audit.Change // what was asked for, where that is known; nil otherwise
}

var (
	_ io.ReaderFrom = (*response)(nil)
	_ http.Flusher  = (*response)(nil)
)

// Unwrap is for http.ResponseController.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *response) WriteHeader(status int) {
	if status >= http.StatusOK && r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	if r.stall > 0 {
		n, err := r.writePaced(p)
		r.sent += int64(n)
		return n, err
	}
	n, err := r.ResponseWriter.Write(p)
	r.sent += int64(n)
	return n, err
}

// ReadFrom reaches the connection where the protocol allows it.
func (r *response) ReadFrom(src io.Reader) (int64, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	var n int64
	var err error
	if to, ok := r.ResponseWriter.(io.ReaderFrom); ok {
		n, err = to.ReadFrom(src)
	} else {
		n, err = io.Copy(struct{ io.Writer }{r.ResponseWriter}, src)
	}
	r.sent += n
	return n, err
}

func (r *response) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// countReceived counts n bytes of the body of the request that w answers.
func countReceived(w http.ResponseWriter, n int64) {
	if r, ok := w.(*response); ok {
		r.read += n
	}
}

// requestID is the id of the request that w answers, "" outside of the
// middleware.
func requestID(w http.ResponseWriter) string {
	if r, ok := w.(*response); ok {
		return r.id[0]
	}
	return ""
}

// requestIDs makes ids that are unique among servers as well.
type requestIDs struct {
	prefix string
	count  *atomic.Uint64
}

func newRequestIDs() requestIDs {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	return requestIDs{prefix: hex.EncodeToString(random[:]) + "-", count: new(atomic.Uint64)}
}

// of is the id that the client chose, or a new one.
func (g requestIDs) of(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	var buf [32]byte
	id := append(buf[:0], g.prefix...)
	return string(strconv.AppendUint(id, g.count.Add(1), 36))
}

func validRequestID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// gone reports whether a body could not be sent because its client went away.
func gone(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}

// abort ends a body that has begun and cannot be completed: by cutting the
// connection, so that nobody takes it for whole.
func (s *server) abort(w http.ResponseWriter, r *http.Request, err error) {
	level := slog.LevelError
	if gone(r.Context(), err) {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(r.Context(), level, "body not sent to its end",
		slog.String("request", requestID(w)), slog.String("path", pathOf(r)), slog.Any("error", err))
	panic(http.ErrAbortHandler)
}
