package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// Errors of HTTP itself, and of anything else.
var (
	errMethod        = errors.New("the path is not for this method")
	errHost          = errors.New("the Host header names another server")
	errPrecondition  = errors.New("the ETag is not what If-Match or If-None-Match wants")
	errTooLarge      = errors.New("too large")
	errNotAcceptable = errors.New("not acceptable")
	errMedia         = errors.New("unsupported media type")
	errNotReady      = errors.New("the server is about to stop")
	errStalled       = errors.New("the body came too slowly")
	errInvalid       = errors.New("invalid request")
	errUnsatisfiable = errors.New("range not satisfiable")
	errIO            = errors.New("input or output failed")
)

// A rangeError says that no range of a request can be sent. It wraps
// errUnsatisfiable.
type rangeError struct {
	size   int64
	detail string
}

func (e *rangeError) Error() string { return e.detail }

func (e *rangeError) Unwrap() error { return errUnsatisfiable }

// A kind is what all problems of one type share.
type kind struct {
	err         error // what they wrap
	status      int
	name, title string
}

// kinds is the one table from errors to what is told of them. The first that an
// error wraps counts; the last is for all others.
var kinds = [...]kind{
	{errInvalid, http.StatusBadRequest, "invalid-request", "The request is not valid"},
	{storage.ErrInvalid, http.StatusBadRequest, "invalid-request", "The request is not valid"},
	{errMethod, http.StatusMethodNotAllowed, "method-not-allowed", "The path is not for this method"},
	{errHost, http.StatusForbidden, "forbidden", "Not allowed"},
	{auth.ErrForbidden, http.StatusForbidden, "forbidden", "Not allowed"},
	{auth.ErrUnauthenticated, http.StatusUnauthorized, "unauthenticated", "Not authenticated"},
	{errPrecondition, http.StatusPreconditionFailed, "precondition-failed", "It has changed"},
	{service.ErrPrecondition, http.StatusPreconditionFailed, "precondition-failed", "It has changed"},
	{errTooLarge, http.StatusRequestEntityTooLarge, "too-large", "The body is too large"},
	{errNotAcceptable, http.StatusNotAcceptable, "not-acceptable", "There is no such representation"},
	{errMedia, http.StatusUnsupportedMediaType, "unsupported-media-type", "The body is of a type that is not understood"},
	{errUnsatisfiable, http.StatusRequestedRangeNotSatisfiable, "out-of-range", "Beyond the end of the image"},
	{errNotReady, http.StatusServiceUnavailable, "not-ready", "The server is not ready"},
	{load.ErrTooMany, http.StatusTooManyRequests, "too-many-requests", "Too many requests"},
	{load.ErrBusy, http.StatusServiceUnavailable, "busy", "The server is busy"},
	{storage.ErrOutOfService, http.StatusInternalServerError, "io-error", "The image could not be read or written"},
	{storage.ErrChanged, http.StatusInternalServerError, "io-error", "The image could not be read or written"},
	{storage.ErrMisaligned, http.StatusBadRequest, "misaligned", "Not a multiple of the minimum block size"},
	{storage.ErrOutOfRange, http.StatusBadRequest, "out-of-range", "Beyond the end of the image"},
	{storage.ErrReadOnly, http.StatusForbidden, "read-only", "Not to be written to"},
	{storage.ErrExists, http.StatusConflict, "exists", "There is such a thing already"},
	{storage.ErrBusy, http.StatusConflict, "image-busy", "Another program uses the image"},
	{storage.ErrConflict, http.StatusConflict, "conflict", "The state does not allow it"},
	{storage.ErrNoSpace, http.StatusInsufficientStorage, "no-space", "There is no room left"},
	{storage.ErrRefused, http.StatusUnprocessableEntity, "refused", "Refused by policy"},
	{storage.ErrBackingUnavailable, http.StatusUnprocessableEntity, "backing-unavailable", "A backing or data file is not available"},
	{storage.ErrUnsupported, http.StatusUnprocessableEntity, "unsupported-feature", "The image needs what is not supported"},
	{storage.ErrCorrupt, http.StatusUnprocessableEntity, "corrupt-image", "The image is corrupt"},
	{storage.ErrNotFound, http.StatusNotFound, "not-found", "There is no such thing"},
	{errIO, http.StatusInternalServerError, "io-error", "The image could not be read or written"},
	{nil, http.StatusInternalServerError, "internal", "The server failed"},
}

// kindOf finds the kind of an error. An error of the operating system beside a
// sentinel is its cause; alone, it is an I/O error.
func kindOf(err error) *kind {
	last := len(kinds) - 1
	for i := range kinds[:last] {
		if errors.Is(err, kinds[i].err) {
			return &kinds[i]
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return kindOf(errIO)
	}
	return &kinds[last]
}

// secret reports whether only the log may say what happened.
func (k *kind) secret() bool { return k.status == http.StatusInternalServerError }

// problemOf is what a client is told of an error.
func problemOf(err error, instance, id string) Problem {
	if request := asRequestError(err); request != nil {
		err = request
	}
	k := kindOf(err)
	p := Problem{
		Type:     "/problems/" + k.name,
		Title:    k.title,
		Status:   k.status,
		Detail:   auth.Mask(detailOf(err, k, id)),
		Instance: instance,
	}
	if id != "" {
		p.RequestId = &id
	}
	var request *requestError
	var misaligned *storage.MisalignedError
	var outside *rangeError
	var large *tooLargeError
	var batch *service.BatchError
	switch {
	case errors.As(err, &request):
		p.Errors = &request.fields
	case errors.As(err, &misaligned):
		p.Minimum, p.Offset, p.Length = &misaligned.Minimum, &misaligned.Offset, &misaligned.Length
	case errors.As(err, &outside):
		p.Size = &outside.size
	case errors.As(err, &large):
		p.Limit = &large.limit
	}
	if errors.As(err, &batch) {
		p.Applied = &batch.Applied
	}
	return p
}

// detailOf is the error's text, unless that is for the log alone.
func detailOf(err error, k *kind, id string) string {
	if errors.Is(err, storage.ErrOutOfService) {
		return fmt.Sprintf("A write failed, and the image was taken out of service. The next request opens it anew. The log says more of request %s.", id)
	}
	if errors.Is(err, storage.ErrChanged) {
		return fmt.Sprintf("What the image stands on has changed underneath. The next request opens it anew. The log says more of request %s.", id)
	}
	if k.secret() {
		return fmt.Sprintf("The server could not answer. Its log says more of request %s.", id)
	}
	var path *fs.PathError
	if errors.As(err, &path) { // none should come with a sentinel: it holds a path of the host
		return k.title
	}
	return strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\n", "; "), "\uFFFD")
}

// fail answers with the problem that err is. Nothing must have been sent. When
// the client is gone there is nobody to tell, and the connection is dropped.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	ctx := r.Context()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler)
	}
	p := problemOf(err, pathOf(r), requestID(w))
	if resp, ok := w.(*response); ok {
		resp.problem = p.Type
	}
	s.logFailure(ctx, p, err)
	h := w.Header()
	retryAfter(h, err)
	if errors.Is(err, errStalled) { // what comes on this connection is still the body
		s.opt.Load.Counts().Stalled.Add(1)
		h.Set("Connection", "close")
	}
	challenge(h, err)
	if p.Size != nil {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(*p.Size, 10))
	}
	if resp, ok := w.(*response); ok && resp.spoken != nil {
		resp.spoken.dialect.answerText(w, r, &p, err)
		return
	}
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n')) // the client is gone: nobody to tell
	}
}

// logFailure tells the operator what the client is not told.
func (s *server) logFailure(ctx context.Context, p Problem, err error) {
	if p.Status == http.StatusInternalServerError {
		id := ""
		if p.RequestId != nil {
			id = *p.RequestId
		}
		s.log.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("request", id), slog.String("path", p.Instance), slog.Any("error", err))
	}
}
