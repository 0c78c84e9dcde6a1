package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync/atomic"
	"time"
)

// A Server is what people use of this package: a server, and how one speaks to it.
// Safe for concurrent use.
//
// What fails in passing is tried again, with growing pauses, for as long as
// [Options] have patience: a connection that cannot be made or breaks, and the
// statuses 429, 502, 503 and 504, whose Retry-After is honoured. Only requests are
// that may be done twice: those that read, those that bear an Idempotency-Key,
// which creating and publishing do, and writes, zeroes, trims and flushes without a
// condition. A redirect is an error.
//
// Errors of the server are a *[Problem] each, for [errors.As], or [Kind].
type Server struct {
	// API is the generated client, for what is missing here. It authenticates,
	// and tries again, as the server's methods do.
	API *Client

	name   string
	http   *http.Client
	tries  time.Duration // for how long
	losses atomic.Int64
}

// Dial prepares to speak to a server. Nothing is sent; a token or certificate that
// cannot be read is an error.
func Dial(opt Options) (*Server, error) {
	base, socket, err := opt.complete()
	if err != nil {
		return nil, err
	}
	s := &Server{name: shown(base, socket), tries: opt.Patience}
	tokens, err := newTokens(&opt)
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(&opt, base, socket, &s.losses)
	if err != nil {
		return nil, err
	}
	s.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.API, err = NewClient(base, WithHTTPClient(&doer{
		http: s.http, tokens: tokens, patience: opt.Patience, stall: opt.Timeout,
		userAgent: opt.UserAgent, losses: &s.losses,
	}))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return s, nil
}

// String is the server's address, without what authenticates.
func (s *Server) String() string { return s.name }

// Close closes connections that are idle.
func (s *Server) Close() { s.http.CloseIdleConnections() }

// Losses is how often a connection was lost that the server had not announced to
// end, or a change failed on its way. If it has grown between a write and the flush
// after it, another process may have answered the flush, one that never saw the
// write: the write is to be done again.
func (s *Server) Losses() int64 { return s.losses.Load() }

func (s *Server) patience() time.Duration { return s.tries }

// Images yields the images in the order of their names. One that cannot be opened
// has a Problem.
func (s *Server) Images(ctx context.Context) iter.Seq2[ImageEntry, error] {
	return func(yield func(ImageEntry, error) bool) {
		params := &ListImagesParams{}
		for {
			var page ImageList
			resp, err := s.API.ListImages(ctx, params)
			if err == nil {
				err = decode(resp, &page, http.StatusOK)
			}
			if err != nil {
				yield(ImageEntry{}, fmt.Errorf("list images of %s: %w", s.name, err))
				return
			}
			for _, entry := range page.Images {
				if !yield(entry, nil) {
					return
				}
			}
			if page.Next == nil || *page.Next == "" {
				return
			}
			params.Cursor = page.Next
		}
	}
}

// Create makes an image. It is done once, however often the request is sent.
func (s *Server) Create(ctx context.Context, what ImageCreation) (*Image, error) {
	image := new(Image)
	resp, err := once(func(key *IdempotencyKey) (*http.Response, error) {
		return s.API.CreateImage(ctx, &CreateImageParams{IdempotencyKey: key}, what)
	})
	if err == nil {
		err = decode(resp, image, http.StatusCreated)
	}
	if err != nil {
		return nil, fmt.Errorf("create image %s: %w", what.Name, err)
	}
	return image, nil
}

// Delete removes an image. An ETag, if it is not "", is the data generation that the
// image must have still.
func (s *Server) Delete(ctx context.Context, image, etag string) error {
	resp, err := s.API.DeleteImage(ctx, image, &DeleteImageParams{IfMatch: optional(etag)})
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return fmt.Errorf("delete image %s: %w", image, err)
	}
	return nil
}

// Ready asks whether the server takes requests.
func (s *Server) Ready(ctx context.Context) error {
	resp, err := s.API.GetReadiness(ctx)
	if err == nil {
		err = done(resp, http.StatusOK)
	}
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", s.name, err)
	}
	return nil
}

// once makes a request with a new Idempotency-Key. A server that keeps nothing does
// not take one: then the request is made without, and a broken connection is an
// error.
func once(request func(key *IdempotencyKey) (*http.Response, error)) (*http.Response, error) {
	key := rand.Text()
	resp, err := request(&key)
	if err != nil || resp.StatusCode != http.StatusUnprocessableEntity {
		return resp, err
	}
	_ = resp.Body.Close() // whatever else it was about is told again
	return request(nil)
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// errShort: a body ended before it should have, and without an error.
var errShort = errors.New("the answer is cut off")
