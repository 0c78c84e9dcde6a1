package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/go-chi/chi/v5"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
)

// An Exchange is one request of a dialect, and its answer.
type Exchange struct {
	s *server
	w http.ResponseWriter
	r *http.Request
}

// Context is that of the request.
func (x *Exchange) Context() context.Context { return x.r.Context() }

// Request is what is asked.
func (x *Exchange) Request() *http.Request { return x.r }

// Header is that of the answer.
func (x *Exchange) Header() http.Header { return x.w.Header() }

// Path is the part of the path that the pattern calls name, decoded.
func (x *Exchange) Path(name string) string {
	part := chi.URLParam(x.r, name)
	if decoded, err := url.PathUnescape(part); err == nil && x.encoded() {
		return decoded
	}
	return part
}

// encoded reports whether routes were found by an encoded path.
func (x *Exchange) encoded() bool {
	resp, ok := x.w.(*response)
	return ok && resp.spoken != nil && resp.spoken.encoded
}

// Caller is who asks.
func (x *Exchange) Caller() *auth.Caller { return auth.FromContext(x.r.Context()) }

// Query are the parameters of the request. Those that are named may each be there
// once; others are ignored, as the servers do whose dialects these are.
func (x *Exchange) Query(names ...string) (url.Values, error) {
	if x.r.URL.RawQuery == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, invalid("query", ruleSyntax, "the query string cannot be decoded")
	}
	for _, name := range names {
		if len(values[name]) > 1 {
			return nil, invalid(name, ruleRepeated, "is given more than once")
		}
	}
	return values, nil
}

// Invalid says what is wrong with a field of a request. It is answered with 400.
func Invalid(field, detail string) error { return invalid(field, ruleValue, detail) }

// Outside says that what is asked for does not lie in an image of that size, bytes.
// It is answered with 416, and the size.
func Outside(size int64, detail string) error { return &rangeError{size, detail} }

// May is nil if the caller may do one of these with the image. One that it may know
// nothing of is not there.
func (x *Exchange) May(image string, verbs ...auth.Verbs) error {
	caller := x.Caller()
	if slices.ContainsFunc(verbs, func(v auth.Verbs) bool { return caller.May(v, image) }) {
		return nil
	}
	return may(caller, verbs[0], image)
}

// Acquire opens the image for callers that may do one of these with it. The caller
// releases it.
func (x *Exchange) Acquire(image string, verbs ...auth.Verbs) (*service.Handle, error) {
	if err := x.enterImage(image, verbs); err != nil {
		return nil, err
	}
	return x.s.acquire(x.Context(), image)
}

// AcquireWritable likewise opens it to be written to.
func (x *Exchange) AcquireWritable(image string, verbs ...auth.Verbs) (*service.Handle, error) {
	if err := x.enterImage(image, verbs); err != nil {
		return nil, err
	}
	return x.s.acquireWritable(x.Context(), image)
}

// enterImage makes sure of the name and of the caller.
func (x *Exchange) enterImage(image string, verbs []auth.Verbs) error {
	if !service.ValidName(image) {
		return invalid("image", rulePattern, namePattern)
	}
	if resp, ok := x.w.(*response); ok && resp.spoken != nil {
		resp.spoken.image = image
	}
	return x.May(image, verbs...)
}

// Note says what the request is to change, for the audit.
func (x *Exchange) Note(c audit.Change) {
	if resp, ok := x.w.(*response); ok && x.s.opt.Audit != nil {
		resp.change = &c
	}
}

// Body is the whole body, which may have at most limit bytes: a few KiB.
func (x *Exchange) Body(limit int64) ([]byte, error) {
	if err := checkCoding(x.w, x.r); err != nil {
		return nil, err
	}
	memory := x.s.opt.Load.Memory()
	if err := memory.Small(x.Context(), limit); err != nil {
		return nil, err
	}
	defer memory.Put(limit)
	text, err := io.ReadAll(io.LimitReader(x.r.Body, limit+1))
	countReceived(x.w, int64(len(text)))
	if int64(len(text)) > limit {
		return nil, &tooLargeError{limit, "bytes"}
	}
	if err != nil {
		return nil, bodyError(err)
	}
	x.s.bodyCame(x.w)
	return text, nil
}

// SendJSON answers with v, which is small and can be encoded.
func (x *Exchange) SendJSON(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("api: answer: %w", err)
	}
	h := x.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)+1))
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(append(text, '\n')) // the client is gone: nobody to tell
	}
	return nil
}
