package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// Bounds of the pauses between attempts.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// A doer sends requests for the generated client: authenticated, and again where
// that can do no harm.
type doer struct {
	http      *http.Client
	tokens    *tokens
	patience  time.Duration
	stall     time.Duration
	userAgent string
	losses    *atomic.Int64
}

// repeatKey marks requests of which a second one changes nothing.
type repeatKey struct{}

// repeatable marks what a context is for as such.
func repeatable(ctx context.Context) context.Context {
	return context.WithValue(ctx, repeatKey{}, true)
}

// mayRepeat reports whether a request may be sent again although it may have been
// done: then a condition would no longer hold.
func mayRepeat(r *http.Request) bool {
	switch {
	case r.Body != nil && r.Body != http.NoBody && r.GetBody == nil:
		return false
	case r.Method == http.MethodGet, r.Method == http.MethodHead, r.Header.Get("Idempotency-Key") != "":
		return true
	case r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "":
		return false
	}
	return r.Method == http.MethodPut || r.Context().Value(repeatKey{}) != nil
}

// Do implements HttpRequestDoer.
func (d *doer) Do(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		resp, err := d.once(r)
		wait := pause/2 + rand.N(pause)
		switch {
		case err != nil:
			if r.Context().Err() != nil || hopeless(err) {
				return nil, err
			}
		case !passing(resp.StatusCode):
			return resp, nil
		default:
			wait = max(wait, retryAfter(resp, time.Now()))
		}
		if !mayRepeat(r) || time.Since(begin)+wait > d.patience {
			return resp, err
		}
		if resp != nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProblem))
			_ = resp.Body.Close()
		}
		if e := sleep(r.Context(), wait); e != nil {
			return nil, e
		}
		if r, err = again(r, err != nil); err != nil {
			return nil, err
		}
	}
}

// passing reports whether a status says that it may be another one soon.
func passing(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// again is the request for another attempt. After a broken connection the server is
// asked before the body is sent: a refusal may have got lost under it.
func again(r *http.Request, broken bool) (*http.Request, error) {
	next := r.Clone(r.Context())
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		next.Body = body
		if broken {
			next.Header.Set("Expect", "100-continue")
		}
	}
	return next, nil
}

// once sends a request. The body of the answer fails if the server stalls.
func (d *doer) once(r *http.Request) (*http.Response, error) {
	token, err := d.tokens.current()
	if err != nil {
		return nil, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	r.Header.Set("User-Agent", d.userAgent)
	ctx, cancel := context.WithCancelCause(r.Context())
	var used atomic.Pointer[httptrace.GotConnInfo]
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { used.Store(&info) },
	})
	resp, err := d.http.Do(r.WithContext(traced))
	if err != nil {
		if changes(r) && r.Context().Err() == nil {
			d.losses.Add(1)
		}
		cancel(err)
		return nil, withoutURL(err)
	}
	if info := used.Load(); resp.Close && info != nil {
		announced(info.Conn)
	}
	if changes(r) && (resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout) {
		d.losses.Add(1)
	}
	resp.Request = r
	resp.Body = newBody(resp.Body, ctx, cancel, d.stall)
	return resp, nil
}

func changes(r *http.Request) bool { return r.Method != http.MethodGet && r.Method != http.MethodHead }

// withoutURL is the error of a request without its method and URL: the caller says
// what it was about.
func withoutURL(err error) error {
	if where, ok := errors.AsType[*url.Error](err); ok {
		return where.Err
	}
	return err
}

// sleep waits, or until the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retryAfter is for how long the server wants to be left alone, 0 if it does not
// say.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	text := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// goOn makes requests until one ends well, as long as those that break off get
// further, or there is patience left. at is how far they have come.
func (s *Server) goOn(ctx context.Context, at func() int64, once func() error) error {
	begin, pause := time.Now(), firstPause
	for {
		before := at()
		err := once()
		if err == nil {
			return nil
		}
		broken, ok := errors.AsType[*brokenError](err)
		if !ok {
			return err
		}
		if at() > before {
			begin, pause = time.Now(), firstPause
		}
		if ctx.Err() != nil || time.Since(begin)+pause > s.patience() {
			return broken.cause
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, mostPause)
	}
}
