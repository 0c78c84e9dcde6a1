package http

import (
	"context"
	"io"
	nethttp "net/http"
	"net/url"
	"time"

	"github.com/extentd/extentd/storage"
)

// drained is how much of an answer that is of no use is read, so that its
// connection can be used again.
const drained = 4 << 10

// An ask is what a request is for. The zero value asks the file's place for the
// whole of it, whichever version.
type ask struct {
	method    string
	at        *place // nil: where the file is, which may have moved
	rng       string // the value of Range, if any
	accept    string // of Accept, if any
	unchanged bool   // for the version that was opened alone
}

// An answer is a request under way whose header has arrived. It must be ended.
type answer struct {
	*nethttp.Response
	from place // who answered

	f      *File
	caller context.Context // who waits for it
	ctx    context.Context // the request's
	cancel context.CancelCauseFunc
	idle   *time.Timer // cancels ctx when nothing arrives
	ended  bool
}

// send sends a request and waits for the header, through redirects. The
// connections are bounded by the slots, so that nothing waits for one with its
// time running. When the file is closed so are its connections, which ends what is
// under way.
func (f *File) send(ctx context.Context, q ask) (*answer, error) {
	if err := f.usable(ctx); err != nil {
		return nil, err
	}
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.life.Done():
		return nil, storage.ErrClosed
	}
	a := &answer{f: f, caller: ctx}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	a.idle = time.AfterFunc(f.timeout, func() { a.cancel(errIdle) })
	if err := a.send(q); err != nil {
		a.end()
		return nil, a.failure(err)
	}
	return a, nil
}

// send remembers where the file was found: a mirror that redirects to one of
// many would have each read answered by another. What was remembered may be good
// for a time only, and the origin is asked again then.
func (a *answer) send(q ask) error {
	if q.at != nil {
		return a.follow(*q.at, &q)
	}
	f := a.f
	remembered := f.target.Load()
	if remembered != nil {
		err := a.follow(*remembered, &q)
		if err != nil || !gone(a.StatusCode) {
			return err
		}
		a.discard()
	}
	if err := a.follow(f.origin, &q); err != nil {
		return err
	}
	if a.from != f.origin && a.StatusCode < 300 {
		from := a.from
		f.target.CompareAndSwap(remembered, &from)
	}
	return nil
}

// gone reports whether a server no longer lets one have what it was asked for.
func gone(status int) bool {
	switch status {
	case nethttp.StatusPreconditionFailed, nethttp.StatusRequestedRangeNotSatisfiable, nethttp.StatusTooManyRequests:
		return false
	}
	return status/100 == 4
}

// follow asks at a place, and where that redirects to.
func (a *answer) follow(from place, q *ask) error {
	for hops := 0; ; hops++ {
		a.from = from
		resp, err := a.f.transport.RoundTrip(a.request(from.url, from.trust, q)) //nolint:bodyclose // end closes it
		a.Response = resp
		if err != nil {
			a.Response = nil
			return err
		}
		if !redirects(resp.StatusCode) {
			return nil
		}
		from, err = from.next(resp.Header.Get("Location"), hops)
		a.discard()
		if err != nil {
			return err
		}
	}
}

func (a *answer) request(u *url.URL, trust bool, q *ask) *nethttp.Request {
	h := nethttp.Header{"User-Agent": {"extentd"}}
	if trust {
		h = a.f.header.Clone()
	}
	h["Accept-Encoding"] = []string{"identity"}
	if q.rng != "" {
		h["Range"] = []string{q.rng}
	}
	if q.accept != "" {
		h["Accept"] = []string{q.accept}
	}
	if q.unchanged {
		a.f.validator.condition(h)
	}
	r := &nethttp.Request{
		Method: q.method, URL: u, Host: u.Host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return r.WithContext(a.ctx)
}

// Read reads the body. What arrives gives the server time for more.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.Body.Read(p)
	if n > 0 {
		a.idle.Reset(a.f.timeout)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // as readers return it
		err = a.failure(err)
	}
	return n, err
}

// discard closes the body of an answer that is of no use, if there is one.
func (a *answer) discard() {
	if a.Response == nil {
		return
	}
	if n := a.ContentLength; n >= 0 && n <= drained && a.Request.Method != nethttp.MethodHead {
		_, _ = io.CopyN(io.Discard, a.Body, n+1) // for the connection's sake; it may fail
	}
	_ = a.Body.Close() // of reading: nothing is lost
	a.Response = nil
}

// end gives back everything that the request holds. It may be called twice.
func (a *answer) end() {
	if a.ended {
		return
	}
	a.ended = true
	a.discard()
	a.idle.Stop()
	a.cancel(nil)
	<-a.f.slots
}
