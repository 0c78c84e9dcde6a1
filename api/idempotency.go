package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage"
)

const (
	headerKey      = "Idempotency-Key"
	headerReplayed = "Idempotency-Replayed"

	// maxKey is how long a key may be, bytes.
	maxKey = 255
)

var (
	errKeyReused  = fmt.Errorf("%w: the Idempotency-Key is that of another request", storage.ErrConflict)
	errKeyUnknown = fmt.Errorf("%w: a request with this Idempotency-Key broke off, and what became of it is not known: "+
		"look at the image, and go on with another key", storage.ErrConflict)
	errKeyLarge = fmt.Errorf("%w: the request with this Idempotency-Key was done, and its answer was too long to be kept: "+
		"look at the image, and go on with another key", storage.ErrConflict)
	errKeyUnkept = fmt.Errorf("%w: Idempotency-Key needs a directory to keep answers in, and this server has none (--state)", storage.ErrUnsupported)
)

// A digest tells requests, and those who make them, from each other.
type digest [sha256.Size]byte

// idempotent lets a request that has an Idempotency-Key be made once: the same
// one again gets the same answer again. The route has a JSON body, which strict
// has read.
func (s *server) idempotent(to *route, next http.HandlerFunc) http.HandlerFunc {
	if to.body == nil {
		panic("api: " + to.pattern + " is to honour Idempotency-Key, and has no JSON body") // found when the server is made
	}
	return func(w http.ResponseWriter, r *http.Request) {
		lines := r.Header[headerKey]
		if len(lines) == 0 {
			next(w, r)
			return
		}
		a, err := s.once(w, r, lines, next)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		a.send(w)
	}
}

// once is the answer to a request with a key: what next answers, or has answered.
// Nothing has been sent.
func (s *server) once(w http.ResponseWriter, r *http.Request, lines []string, next http.HandlerFunc) (*answer, error) {
	key, err := parseKey(lines)
	if err != nil {
		return nil, err
	}
	if !s.answers.db.Kept() {
		return nil, errKeyUnkept
	}
	c := auth.FromContext(r.Context())
	e := entry{
		id:    digestOf(string(c.Kind), c.Name, c.Subject, c.Ticket, key),
		owner: digestOf(string(c.Kind), c.Name, c.Subject),
	}
	if e.request, err = digestRequest(r); err != nil {
		return nil, err
	}
	land, err := s.answers.takeOff(r.Context(), e.id)
	if err != nil {
		return nil, err
	}
	defer land()
	a, err := s.answers.begin(&e)
	if a != nil || err != nil {
		return a, err
	}
	return s.answer(w, r, &e, next), nil
}

// answer has the request answered, and keeps the answer if something was done.
// The client may go away meanwhile: what it asked for is brought to an end, so
// that it is known what became of it. If that is not known, because the server is
// about to stop, or the handler panics, the entry stays as it is: without an
// answer, and never to be done again.
func (s *server) answer(w http.ResponseWriter, r *http.Request, e *entry, next http.HandlerFunc) *answer {
	ctx, cancel := s.opt.Requests.outlive(r.Context())
	defer cancel()
	a := record(w, r.WithContext(ctx), next)
	done := a.isDone()
	var err error
	switch {
	case done:
		err = s.answers.finish(e, a)
	case ctx.Err() == nil:
		err = s.answers.forget(e)
	}
	if err != nil { // the client is told all the same what became of this one
		s.log.LogAttrs(ctx, slog.LevelError, "the answer to an Idempotency-Key could not be kept",
			slog.String("request", requestID(w)), slog.String("path", pathOf(r)), slog.Any("error", err))
	}
	return a
}

// parseKey is the key in the header.
func parseKey(lines []string) (string, error) {
	if len(lines) > 1 {
		return "", invalid(headerKey, ruleRepeated, "is given more than once")
	}
	key := lines[0]
	isPrintable := strings.IndexFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }) < 0
	if key == "" || len(key) > maxKey || !isPrintable {
		return "", invalid(headerKey, rulePattern, fmt.Sprintf("must be 1 to %d printable ASCII characters without spaces", maxKey))
	}
	return key, nil
}

// digestRequest covers all that decides what a request does. The body is read
// where it lies, and can be read again.
func digestRequest(r *http.Request) (d digest, err error) {
	h := sha256.New()
	add(h, r.Method)
	add(h, r.URL.EscapedPath())
	for _, name := range []string{"If-Match", "If-None-Match"} {
		add(h, strings.Join(r.Header[name], ","))
	}
	body, ok := r.Body.(*heldBody)
	if !ok {
		return d, fmt.Errorf("%w: the body of %s has not been read", storage.ErrContract, r.URL.EscapedPath())
	}
	if _, err := body.WriteTo(h); err != nil {
		return d, err
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return d, err
	}
	h.Sum(d[:0])
	return d, nil
}

func digestOf(parts ...string) (d digest) {
	h := sha256.New()
	for _, part := range parts {
		add(h, part)
	}
	h.Sum(d[:0])
	return d
}

// add adds a part and its length, so that parts do not flow together.
func add(h hash.Hash, part string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(part)))
	_, _ = h.Write(n[:]) // never fails
	_, _ = io.WriteString(h, part)
}

// takeOff waits until no other request has the key, for as long as the context
// lives. land must be called.
func (s *answers) takeOff(ctx context.Context, id digest) (land func(), err error) {
	for {
		s.mu.Lock()
		other, busy := s.flights[id]
		if !busy {
			if err := ctx.Err(); err != nil { // nothing is begun for somebody who is gone
				s.mu.Unlock()
				return nil, err
			}
			mine := make(chan struct{})
			s.flights[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.flights, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
