package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// ticketParameter is the query parameter that holds a ticket, for URLs that are
// handed to programs that send no header.
const ticketParameter = "ticket"

var errNoCredential = fmt.Errorf("%w: send a token as Authorization: Bearer, or a client certificate", auth.ErrUnauthenticated)

// enter lets callers pass that may call the route, as many as there is room for.
func (s *server) enter(to *route, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if to.access.public {
			next(w, r)
			return
		}
		r, err := s.authenticate(w, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		done, err := s.admit(w, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		defer done()
		if err := authorise(&to.access, r); err != nil {
			s.fail(w, r, err)
			return
		}
		next(w, r)
	}
}

// authenticate returns the request with its caller in the context, and without
// what the caller presented in the query. It always returns a request.
func (s *server) authenticate(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	return s.authenticateBy(w, r, credential)
}

// authenticateBy likewise finds the caller by what find takes out of the request.
func (s *server) authenticateBy(w http.ResponseWriter, r *http.Request, find func(r *http.Request) (string, error)) (*http.Request, error) {
	secret, err := find(r)
	if err != nil {
		return r, err
	}
	if !s.opt.Authenticate && !auth.IsTicket(secret) {
		return r, nil // everybody is anyone, who needs no place in the context
	}
	caller, err := s.identify(r, secret)
	if err != nil {
		return r, tooMany(err)
	}
	if resp, ok := w.(*response); ok {
		resp.caller = caller
	}
	return r.WithContext(auth.NewContext(r.Context(), caller)), nil
}

func (s *server) identify(r *http.Request, secret string) (*auth.Caller, error) {
	switch {
	case s.opt.Guard == nil:
		return nil, errNoCredential
	case secret != "":
		return s.opt.Guard.Bearer(r.Context(), remoteAddr(r), secret)
	case r.TLS != nil && len(r.TLS.VerifiedChains) > 0:
		return s.opt.Guard.Certificate(r.TLS.VerifiedChains[0])
	}
	return nil, errNoCredential
}

// tooMany is err, or what is told of failures that were too many.
func tooMany(err error) error {
	if slow := new(auth.SlowDownError); errors.As(err, &slow) {
		return slowed{slow}
	}
	return err
}

// slowed is a client that has presented too much that was wrong.
type slowed struct{ err *auth.SlowDownError }

func (s slowed) Error() string { return s.err.Error() }

func (s slowed) Unwrap() error { return load.ErrTooMany }

// RetryAfter is when the client may try again.
func (s slowed) RetryAfter() time.Duration { return s.err.RetryAfter }

// remoteAddr is where the request comes from; invalid for a unix socket.
func remoteAddr(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// credential is what the caller presents, "" for nothing. It is taken out of the
// query, which is logged and checked by others.
func credential(r *http.Request) (string, error) {
	secret := ""
	if lines := r.Header["Authorization"]; len(lines) > 0 {
		scheme, rest, _ := strings.Cut(lines[0], " ")
		rest = strings.Trim(rest, " ")
		if len(lines) == 1 && strings.EqualFold(scheme, "Bearer") {
			secret = rest
		}
	}
	if !strings.Contains(r.URL.RawQuery, ticketParameter) {
		return secret, nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || !values.Has(ticketParameter) {
		return secret, nil // the check of the query says what is wrong
	}
	tickets := values[ticketParameter]
	values.Del(ticketParameter)
	r.URL.RawQuery = values.Encode()
	switch {
	case len(tickets) > 1:
		return "", invalid(ticketParameter, ruleRepeated, "is given more than once")
	case secret != "":
		return "", invalid(ticketParameter, ruleConflict, "is given beside Authorization: send one of them")
	case !auth.IsTicket(tickets[0]):
		return "", fmt.Errorf("%w: the query holds no ticket", auth.ErrUnauthenticated)
	}
	return tickets[0], nil
}

// pathOf is the path of the request as it is logged and answered: without a secret
// that somebody has put there.
func pathOf(r *http.Request) string {
	if masked := auth.Mask(r.URL.Path); masked != r.URL.Path {
		return (&url.URL{Path: masked}).EscapedPath()
	}
	return r.URL.EscapedPath()
}

// authorise makes sure that the caller may do what a route is for. An image that
// the caller may know nothing of is one that is not there.
func authorise(a *access, r *http.Request) error {
	if a.verbs == 0 {
		return nil
	}
	name := imageName(r)
	if !service.ValidName(name) {
		return invalid("image", rulePattern, namePattern)
	}
	return may(auth.FromContext(r.Context()), a.verbs, name)
}

// may is nil if the caller may do the verbs on the image.
func may(c *auth.Caller, v auth.Verbs, image string) error {
	switch has := c.Grants.Verbs(image); {
	case has.Has(v):
		return nil
	case has == 0:
		return noImage(image)
	default:
		return fmt.Errorf("%w: %s on image %q", auth.ErrForbidden, v, image)
	}
}

// noImage is what service says of an image that is not there.
func noImage(name string) error { return fmt.Errorf("image %q: %w", name, storage.ErrNotFound) }

// challenge tells what the answer to err says beside its problem.
func challenge(h http.Header, err error) {
	if !errors.Is(err, auth.ErrUnauthenticated) {
		return
	}
	text := `Bearer realm="extentd"`
	if !errors.Is(err, errNoCredential) {
		text += `, error="invalid_token"`
	}
	h.Set("WWW-Authenticate", text)
}
