package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/go-chi/chi/v5"

	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

const (
	octets    = "application/octet-stream"
	cacheData = "no-cache, no-transform"
)

func (s *server) getData(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery != "" {
		s.getSparse(w, r)
		return
	}
	s.answerData(w, r, (*dataAnswer).send)
}

// headData answers as a GET of the whole image would, without the body.
func (s *server) headData(w http.ResponseWriter, r *http.Request) {
	s.answerData(w, r, (*dataAnswer).sendHead)
}

// A dataAnswer answers one request for data. The values of its header stand in
// an array: all of them are one allocation.
type dataAnswer struct {
	s      *server
	w      http.ResponseWriter
	r      *http.Request
	d      *block.Device
	from   origin
	size   int64 // of the image, when the answer began
	etag   string
	values [9]string
}

// answerData opens the image, or the snapshot of it, and evaluates the conditions of the request
// before it is answered by send, which returns an error only while nothing has
// been sent.
func (s *server) answerData(w http.ResponseWriter, r *http.Request, send func(*dataAnswer) error) {
	h, err := s.openOrigin(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer h.Release()
	a := &dataAnswer{s: s, w: w, r: r, d: h.Device(), from: h, size: h.Device().Size(), etag: `"` + h.DataGeneration() + `"`}
	a.set(0, "Etag", a.etag)
	err = a.describe(r.Context())
	if err == nil {
		switch precondition(r.Header, a.etag) {
		case http.StatusPreconditionFailed:
			err = errPrecondition
		case http.StatusNotModified:
			w.WriteHeader(http.StatusNotModified)
		default:
			err = send(a)
		}
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

// imageName is the name in the path, decoded.
func imageName(r *http.Request) string { return pathParameter(r, "image") }

func pathParameter(r *http.Request, key string) string {
	name := chi.URLParam(r, key)
	if r.URL.RawPath != "" {
		if decoded, err := url.PathUnescape(name); err == nil {
			return decoded
		}
	}
	return name
}

// acquire opens the image. A name that no image can have is told from one that
// none has.
func (s *server) acquire(ctx context.Context, name string) (*service.Handle, error) {
	h, err := s.svc.Acquire(ctx, name)
	return h, named(name, err)
}

// acquireWritable likewise opens it for writing.
func (s *server) acquireWritable(ctx context.Context, name string) (*service.Handle, error) {
	h, err := s.svc.AcquireWritable(ctx, name)
	return h, named(name, err)
}

const namePattern = "must be 1 to 255 of A-Z a-z 0-9 . _ -, the first of them a letter or digit"

// named is what went wrong with an image, if something did, or with its name.
func named(name string, err error) error {
	if err != nil && !service.ValidName(name) {
		return invalid("image", rulePattern, namePattern)
	}
	return err
}

// describe sets what every answer about the data of an image says, but for the
// ETag, which is the first value.
func (a *dataAnswer) describe(ctx context.Context) error {
	limits, err := a.d.Limits(ctx)
	if err != nil {
		return err
	}
	texts := a.s.limits.of(limits)
	a.set(1, "Accept-Ranges", "bytes")
	a.set(2, "Cache-Control", cacheData)
	a.set(3, "Block-Size-Minimum", texts.minimum)
	a.set(4, "Block-Size-Preferred", texts.preferred)
	a.set(5, "Block-Size-Maximum", texts.maximum)
	return nil
}

// describeBody sets what an answer with a body says.
func (a *dataAnswer) describeBody(contentType string, length int64) {
	a.set(6, "Content-Type", contentType)
	a.set(7, "Content-Length", strconv.FormatInt(length, 10))
}

// set sets value i of the header. The key must be canonical.
func (a *dataAnswer) set(i int, key, value string) {
	a.values[i] = value
	a.w.Header()[key] = a.values[i : i+1 : i+1]
}

func (a *dataAnswer) sendHead() error {
	if err := a.d.Check(a.r.Context(), 0, a.size); err != nil {
		return err
	}
	a.describeBody(octets, a.size)
	a.w.WriteHeader(http.StatusOK)
	return nil
}

// send answers with the whole image or with ranges of it.
func (a *dataAnswer) send() error {
	var few [4]byteRange
	ranges, verdict := few[:0], rangeNone
	if given := a.r.Header["Range"]; len(given) == 1 && rangeApplies(a.r.Header, a.etag) {
		ranges, verdict = parseRanges(given[0], a.size, ranges)
	}
	switch verdict {
	case rangeOutside:
		return &rangeError{a.size, fmt.Sprintf("the image has %d bytes, and no range lies in them", a.size)}
	case rangeTooMany:
		return &rangeError{a.size, fmt.Sprintf("one request may ask for %d ranges, together twice as long as the image", maxRanges)}
	case rangePartial:
		if len(ranges) > 1 {
			return a.sendParts(ranges)
		}
	case rangeNone:
		return a.sendOne(byteRange{0, a.size}, http.StatusOK)
	}
	return a.sendOne(ranges[0], http.StatusPartialContent)
}

// sendOne sends one range, with its digest if the client wants that.
func (a *dataAnswer) sendOne(part byteRange, status int) error {
	if want := wantedDigest(a.r.Header); want != nil {
		if done, err := a.sendDigested(part, status, want); done || err != nil {
			return err
		}
	}
	return a.sendRange(part, status)
}

// sendRange sends one range as the body. Its first piece is read before the
// header is sent.
func (a *dataAnswer) sendRange(part byteRange, status int) error {
	text := ""
	if status == http.StatusPartialContent {
		text = contentRange(part, a.size)
	}
	return a.sendAs(part, status, text)
}

// sendAs likewise sends one, whose Content-Range is as given, "" for none.
func (a *dataAnswer) sendAs(part byteRange, status int, contentRange string) error {
	ctx, memory := a.r.Context(), a.s.opt.Load.Memory()
	take := memory.Long
	if part.n <= block.StreamLeast {
		take = memory.Small
	}
	if err := take(ctx, block.StreamLeast); err != nil {
		return err
	}
	defer memory.Put(block.StreamLeast)
	stream, err := a.d.StreamWithin(ctx, part.off, part.n, memory)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	a.describeBody(octets, part.n)
	if contentRange != "" {
		a.set(8, "Content-Range", contentRange)
	}
	a.w.WriteHeader(status)
	n, err := conn.Send(a.w, a.r, stream, part.n)
	if err == nil && n != part.n {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, part.n, part.off)
	}
	if err != nil {
		a.s.abort(a.w, a.r, err)
	}
	return nil
}

func contentRange(part byteRange, size int64) string {
	var buf [80]byte
	text := append(buf[:0], "bytes "...)
	text = strconv.AppendInt(text, part.off, 10)
	text = append(text, '-')
	text = strconv.AppendInt(text, part.off+part.n-1, 10)
	text = append(text, '/')
	return string(strconv.AppendInt(text, size, 10))
}

// limitTexts keeps the limits of the last image in decimal: most images have
// the same.
type limitTexts struct{ last atomic.Pointer[limitText] }

type limitText struct {
	limits                      storage.Limits
	minimum, preferred, maximum string
}

func (t *limitTexts) of(l storage.Limits) *limitText {
	if last := t.last.Load(); last != nil && last.limits == l {
		return last
	}
	text := &limitText{
		limits:    l,
		minimum:   strconv.FormatInt(l.Minimum, 10),
		preferred: strconv.FormatInt(l.Preferred, 10),
		maximum:   strconv.FormatInt(l.MaxData, 10),
	}
	t.last.Store(text)
	return text
}
