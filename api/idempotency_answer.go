package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
)

// An answer is what has been, or is to be, answered to a request.
type answer struct {
	status int
	header http.Header
	body   []byte
	again  bool // it is not the first time
}

// A recorder takes what a handler answers.
type recorder struct{ answer }

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if status >= http.StatusOK && r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	r.body = append(r.body, p...)
	return len(p), nil
}

// record is what next answers, which goes nowhere yet.
func record(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) *answer {
	rec := &recorder{answer{header: http.Header{}}}
	resp, ok := w.(*response)
	if !ok { // outside of the middleware
		next(rec, r)
		return &rec.answer
	}
	to := resp.ResponseWriter
	defer func() { // after a panic, too
		resp.ResponseWriter, resp.status, resp.sent = to, 0, 0
	}()
	resp.ResponseWriter = rec
	next(resp, r)
	rec.WriteHeader(http.StatusOK)
	return &rec.answer
}

// isDone reports whether the answer says that something was done.
func (a *answer) isDone() bool {
	if a.status < http.StatusMultipleChoices {
		return true
	}
	var p struct {
		Applied int `json:"applied"`
	}
	return json.Unmarshal(a.body, &p) == nil && p.Applied > 0
}

// send sends the answer.
func (a *answer) send(w http.ResponseWriter) {
	h := w.Header()
	maps.Copy(h, a.header)
	if a.again {
		h.Set(headerReplayed, "true")
	}
	if a.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	if len(a.body) > 0 {
		_, _ = w.Write(a.body) // the client is gone: nobody to tell
	}
}

// kept is the answer as it is kept; without its body if that is too long.
func (a *answer) kept() *keptAnswer {
	k := &keptAnswer{Status: a.status, Header: map[string]string{}, Large: len(a.body) > maxAnswer}
	if !k.Large {
		k.Body = a.body
	}
	for _, name := range []string{"Content-Type", "Location", "Etag", "Cache-Control"} {
		if value := a.header.Get(name); value != "" {
			k.Header[name] = value
		}
	}
	return k
}
