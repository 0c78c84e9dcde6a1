package api

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
)

// scraped is the one path that has no bound, and asks who calls: it is for who
// looks what is wrong.
const scraped = "/metrics"

// admit lets a request pass that its client may make now, and for which there is
// room. Its error wraps load.ErrTooMany or load.ErrBusy. done is called when the
// request has been answered.
func (s *server) admit(_ http.ResponseWriter, r *http.Request) (done func(), err error) {
	if r.URL.Path == scraped {
		return func() {}, nil
	}
	if rates := s.opt.Load.Rates(); rates != nil {
		if err := rates.Allow(clientOf(r)); err != nil {
			return nil, err
		}
	}
	if err := s.opt.Load.Requests().Enter(r.Context()); err != nil {
		return nil, err
	}
	return s.leave, nil
}

// clientOf is whose requests are counted together: those of a caller by name, and
// of anybody else by address.
func clientOf(r *http.Request) load.Client {
	if c := auth.FromContext(r.Context()); c.Kind != auth.KindAnyone {
		return load.Client{Name: c.String()}
	}
	return load.ClientAt(r.RemoteAddr)
}

// jsonRoom is what a JSON body takes, by its length: as text, and decoded.
const jsonRoom = 2

// room takes the memory for a JSON body, and returns how much, to be put back when
// the request has been answered.
func (s *server) room(r *http.Request, body *jsonBody) (int64, error) {
	n := r.ContentLength
	switch {
	case n < 0:
		n = body.limit
	case n > body.limit: // it is refused by its length alone
		n = 0
	}
	n = max(jsonRoom*n, tinyBody)
	if n > load.Least {
		return s.opt.Load.Memory().Bulk(r.Context(), n)
	}
	return n, s.opt.Load.Memory().Small(r.Context(), n)
}

// retryAfter says when a request that failed may be made again, if err knows.
func retryAfter(h http.Header, err error) {
	var later interface{ RetryAfter() time.Duration }
	if errors.As(err, &later) {
		seconds := (later.RetryAfter() + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(int64(max(seconds, 1)), 10))
	}
}
