package api

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/extentd/extentd/auth"
)

// A Dialect is the protocol of another server, spoken beside that of openapi.yaml.
// Its requests go through what those under /v1 go through: who calls, limits,
// telemetry, the log and the audit. It has paths of its own, and tells what went
// wrong as text.
type Dialect struct {
	// Name is what it is asked for by: letters. Its contract is at
	// /NAME/openapi.yaml.
	Name string
	// Prefix is what all of its other paths begin with, and no others do: one
	// segment between slashes.
	Prefix string
	// Spec is its contract, YAML.
	Spec []byte
	// Credential takes what the caller presents out of the request, "" for nothing.
	// It may fail. What stands in headers as under /v1 is looked at if there is
	// nothing. Default: only that.
	Credential func(x *Exchange) (secret string, err error)
	// Secret: what comes after Prefix is not to be seen: not in the log, in traces,
	// or in answers. Default: it may be.
	Secret bool
	// Hidden: whoever may not do something gets 403, whatever the reason, and the
	// connection ends. Default: 401 for those who are not known.
	Hidden bool
	Routes []DialectRoute
}

// A DialectRoute is one method of one path of a dialect.
type DialectRoute struct {
	// Method is that of HTTP.
	Method string
	// Pattern is the path, with {NAME} for what Exchange.Path returns.
	Pattern string
	// Public reports whether nobody is asked who they are. Default: everybody is.
	Public func(x *Exchange) bool
	// Handler answers, or returns why it does not, before anything has been sent.
	Handler func(x *Exchange) error
}

// dialectRoutes are those of all dialects, and their contracts.
func (s *server) dialectRoutes() []dialectRoute {
	var all []dialectRoute
	for _, d := range s.opt.Dialects {
		spec := DialectRoute{Method: http.MethodGet, Pattern: "/" + d.Name + "/openapi.yaml", Public: Everybody, Handler: sendSpec(d.Spec)}
		all = append(all, dialectRoute{d, spec})
		for _, r := range d.Routes {
			all = append(all, dialectRoute{d, r})
		}
	}
	return all
}

// Everybody is for routes that are public.
func Everybody(*Exchange) bool { return true }

func sendSpec(spec []byte) func(x *Exchange) error {
	return func(x *Exchange) error {
		h := x.Header()
		h.Set("Content-Type", "application/yaml")
		h.Set("Content-Length", strconv.Itoa(len(spec)))
		_, _ = x.w.Write(spec) // the client is gone: nobody to tell
		return nil
	}
}

// A dialectRoute is a route in its dialect.
type dialectRoute struct {
	*Dialect
	DialectRoute
}

// serve lets callers pass that are known, as many as there is room for. What they
// may do is up to the handler, who knows the image.
func (d *dialectRoute) serve(s *server) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x := &Exchange{s: s, w: w, r: r}
		if err := d.handle(x); err != nil {
			s.fail(w, x.r, err)
		}
	}
}

func (d *dialectRoute) handle(x *Exchange) error {
	if d.Public != nil && d.Public(x) {
		return d.Handler(x)
	}
	if err := d.enter(x); err != nil {
		return err
	}
	done, err := x.s.admit(x.w, x.r)
	if err != nil {
		return err
	}
	defer done()
	return d.Handler(x)
}

// enter finds out who calls.
func (d *dialectRoute) enter(x *Exchange) error {
	find := credential
	if d.Credential != nil {
		secret, err := d.Credential(x)
		if err != nil {
			return err
		}
		if secret != "" {
			find = func(*http.Request) (string, error) { return secret, nil }
		}
	}
	var err error
	x.r, err = x.s.authenticateBy(x.w, x.r, find)
	return err
}

// dialectOf is the dialect that a path belongs to; nil if it is none's.
func (s *server) dialectOf(path string) *Dialect {
	for _, d := range s.opt.Dialects {
		if strings.HasPrefix(strings.TrimLeft(path, "/"), d.Prefix[1:]) {
			return d
		}
	}
	return nil
}

// spoken is what is known of a request of a dialect.
type spoken struct {
	dialect *Dialect
	asked   string // the path, as routes are found by it
	encoded bool   // it is encoded
	image   string // what it is about, "" if that is not known
}

// recognise notes which dialect a request is of, and takes what is secret out of
// its path. All that comes after it sees that path, but for who looks for routes.
func (s *server) recognise(resp *response, r *http.Request) {
	d := s.dialectOf(r.URL.Path)
	if d == nil {
		return
	}
	resp.spoken = &spoken{dialect: d, asked: routedPath(r), encoded: r.URL.RawPath != ""}
	if d.Secret {
		r.URL.Path, r.URL.RawPath = d.Prefix+"...", ""
	}
}

// askedPath is the path that the request was for, as routes are found by it.
func askedPath(w http.ResponseWriter, r *http.Request) string {
	if resp, ok := w.(*response); ok && resp.spoken != nil {
		return resp.spoken.asked
	}
	return routedPath(r)
}

// routedPath is the path that routes are found by.
func routedPath(r *http.Request) string {
	if r.URL.RawPath != "" {
		return r.URL.RawPath
	}
	return r.URL.Path
}

// answerText answers with the problem as a text.
func (d *Dialect) answerText(w http.ResponseWriter, r *http.Request, p *Problem, err error) {
	h := w.Header()
	status := p.Status
	refused := errors.Is(err, auth.ErrUnauthenticated) || errors.Is(err, auth.ErrForbidden)
	if refused && d.Hidden {
		status = http.StatusForbidden
		h.Del("WWW-Authenticate")
		h.Set("Connection", "close")
	}
	text := p.Detail + "\n"
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(text)) // the client is gone: nobody to tell
	}
}
