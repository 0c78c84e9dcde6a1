package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
)

const (
	mediaJSON  = "application/json"
	mediaPatch = "application/merge-patch+json"

	// maxBody is how long the JSON of a request may be, and maxBatch that of a
	// batch of updates; bytes.
	maxBody  = 1 << 20
	maxBatch = 4 << 20
)

// A jsonBody is what the body of a route must be.
type jsonBody struct {
	shape *shape
	limit int64    // bytes
	media []string // what its Content-Type may be
}

// bodyOf is a body that is decoded into a T.
func bodyOf[T any](limit int64, media ...string) *jsonBody {
	return &jsonBody{shape: shapeOf(reflect.TypeFor[T]()), limit: limit, media: media}
}

// A tooLargeError says that a request holds more than is taken. It wraps
// errTooLarge.
type tooLargeError struct {
	limit int64
	unit  string
}

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("the body has more than %d %s", e.limit, e.unit)
}

func (e *tooLargeError) Unwrap() error { return errTooLarge }

// A heldBody is the body of a request that has been read.
type heldBody struct{ *bytes.Reader }

func (*heldBody) Close() error { return nil }

// check reads the body and makes sure of it, and puts it back for the generated
// code to decode, which would let most faults pass.
func (b *jsonBody) check(w http.ResponseWriter, r *http.Request) error {
	if err := checkCoding(w, r); err != nil {
		return err
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, given := params["charset"]
	if err != nil || !slices.Contains(b.media, media) || given && !strings.EqualFold(charset, "utf-8") {
		accept := "Accept-Post"
		if r.Method == http.MethodPatch {
			accept = "Accept-Patch"
		}
		list := strings.Join(b.media, ", ")
		w.Header().Set(accept, list)
		return fmt.Errorf("%w: the Content-Type must be one of %s", errMedia, list)
	}
	r.Header.Set("Content-Type", media) // as the generated code compares it
	text, err := b.read(r)
	if err != nil {
		return err
	}
	countReceived(w, int64(len(text)))
	if err := checkJSON(text, b.shape); err != nil {
		return err
	}
	r.Body = &heldBody{bytes.NewReader(text)}
	r.ContentLength = int64(len(text))
	return nil
}

// read reads the whole body, unless it is too long.
func (b *jsonBody) read(r *http.Request) ([]byte, error) {
	tooLarge := &tooLargeError{b.limit, "bytes"}
	if r.ContentLength > b.limit {
		return nil, tooLarge
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, b.limit+1))
	if int64(len(text)) > b.limit {
		return nil, tooLarge
	}
	if err != nil {
		return nil, bodyError(err)
	}
	return text, nil
}

// checkCoding refuses bodies that are compressed: a disk would get the
// compressed bytes.
func checkCoding(w http.ResponseWriter, r *http.Request) error {
	for _, coding := range r.Header["Content-Encoding"] {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			w.Header().Set("Accept-Encoding", "identity")
			return fmt.Errorf("%w: Content-Encoding must be absent", errMedia)
		}
	}
	return nil
}

// bodyError is what is told of a body that cannot be read to its end, if its
// client is there still.
func bodyError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(errStalled, invalid("body", ruleSyntax, "comes too slowly"))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("body", ruleLength, "ends too early")
	}
	return invalid("body", ruleSyntax, "breaks off, or is not sent as HTTP says")
}
