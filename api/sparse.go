package api

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/extentd/extentd/storage"
)

const byteRanges = "multipart/byteranges"

// A sparseQuery asks for the parts of an image that matter, in place of all its
// bytes: those that hold data, or those that have changed.
type sparseQuery struct {
	since, dirty *string // at most one of them; nil for both: what holds data
	off          int64
	n            int64 // -1: to the end
}

// sparseParams are the parameters of data that ask for parts. Those of an image
// have dirty as well.
func sparseParams(bitmaps bool) query {
	q := query{"only": text, "since": text, "offset": integer, "length": integer}
	if bitmaps {
		q["dirty"] = text
	}
	return q
}

// getSparse answers a GET of data that has parameters.
func (s *server) getSparse(w http.ResponseWriter, r *http.Request) {
	send, err := sparseSender(r) //nolint:contextcheck // it is the request's
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answerData(w, r, send)
}

// sparseSender is what answers a request for parts, whose parameters the router has
// looked at.
func sparseSender(r *http.Request) (func(*dataAnswer) error, error) {
	q, err := newSparseQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if len(r.Header["Range"]) > 0 {
		return nil, invalid("Range", ruleConflict, "does not go with a request for parts: offset and length say where")
	}
	if !accepts(r.Header, byteRanges) {
		return nil, fmt.Errorf("%w: parts are sent as %s, which the Accept header excludes", errNotAcceptable, byteRanges)
	}
	if q.since != nil || q.dirty != nil { // a snapshot of the name, or a bitmap, may be another one
		r.Header.Del("If-None-Match")
	}
	return func(a *dataAnswer) error { return a.sendSparse(&q) }, nil
}

// newSparseQuery reads parameters that are integers where they must be.
func newSparseQuery(values url.Values) (sparseQuery, error) {
	q := sparseQuery{n: -1}
	given := 0
	if values.Has("only") {
		if given++; values.Get("only") != "data" {
			return q, invalid("only", "oneof", "must be data")
		}
	}
	for name, to := range map[string]**string{"since": &q.since, "dirty": &q.dirty} {
		if values.Has(name) {
			value := values.Get(name)
			*to = &value
			given++
		}
	}
	switch given {
	case 0:
		return q, invalid("only", ruleRequired, "is missing: parameters are for a request for parts, which has only, since or dirty")
	case 1:
	default:
		return q, invalid("only", ruleConflict, "only, since and dirty exclude each other")
	}
	if text := values.Get("offset"); text != "" {
		q.off, _ = strconv.ParseInt(text, 10, 64) // the router has looked at it
	}
	if text := values.Get("length"); text != "" {
		if q.n, _ = strconv.ParseInt(text, 10, 64); q.n < 1 {
			return q, invalid("length", "min", "must be at least 1")
		}
	}
	if q.off < 0 {
		return q, invalid("offset", "min", "must be at least 0")
	}
	return q, nil
}

// sendSparse sends the parts as multipart/byteranges, in the order of their
// offsets. The first piece of them is read before the header is sent. Unlike the
// other senders it may not know how long the body is.
func (a *dataAnswer) sendSparse(q *sparseQuery) error {
	ctx := a.r.Context()
	part := byteRange{q.off, q.n}
	if err := storage.CheckRange(part.off, 0, a.size); err != nil {
		return err
	}
	if part.n < 0 {
		part.n = a.size - part.off
	}
	if err := a.d.Check(ctx, part.off, part.n); err != nil {
		return err
	}
	limits, err := a.d.Limits(ctx)
	if err != nil {
		return err
	}
	b := &sparseBody{a: a, boundary: rand.Text()}
	if err := b.reserve(ctx); err != nil {
		return err
	}
	defer b.release()
	parts := &partJoiner{minimum: max(1, limits.Minimum), size: part.off + part.n, visit: b.add}
	if err = q.walk(ctx, a, part, parts); err == nil {
		if err = parts.flush(); err == nil {
			err = b.end()
		}
	}
	if err != nil && b.begun {
		a.s.abort(a.w, a.r, err)
	}
	return err
}

// begin sends the header. length is that of the body, -1 if it is not known.
func (b *sparseBody) begin(length int64) {
	a := b.a
	a.set(6, "Content-Type", byteRanges+"; boundary="+b.boundary)
	if length >= 0 {
		a.set(7, "Content-Length", strconv.FormatInt(length, 10))
	}
	a.set(8, "Image-Size", strconv.FormatInt(a.size, 10))
	b.begun = true
	a.w.WriteHeader(http.StatusOK)
}

// end sends what is left, and that this is the end.
func (b *sparseBody) end() error {
	closing := "\r\n--" + b.boundary + "--\r\n"
	if !b.begun {
		b.begin(int64(len(b.text) + len(closing)))
	}
	if err := b.flush(); err != nil {
		return err
	}
	_, err := io.WriteString(b.a.w, closing)
	return err
}
