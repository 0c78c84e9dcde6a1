package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/extentd/extentd/service"
)

// linesRoom is how much of a list of digests is gathered before it is sent, bytes.
const linesRoom = 32 << 10

// stream computes the list of digests, and sends it as it goes. The first of it is
// there before the header is sent.
func (a *checksumAnswer) stream(ctx context.Context) (GetChecksumResponseObject, error) {
	l := &checksumLines{a: a, w: callOf(ctx).w, since: time.Now()}
	a.what.Each = l.add
	sum, err := a.s.sums.Compute(ctx, a.h.Device(), a.what)
	if err == nil {
		var last Checksum
		if last, err = a.finish(sum); err == nil {
			err = l.end(last)
		}
	}
	if err != nil && l.begun {
		a.s.abort(l.w, a.r, err)
	}
	if err != nil {
		return nil, err
	}
	return sentAlready{}, nil
}

// sentAlready answers what has been answered.
type sentAlready struct{}

// VisitGetChecksumResponse does nothing.
func (sentAlready) VisitGetChecksumResponse(http.ResponseWriter) error { return nil }

// checksumLines are a list on its way.
type checksumLines struct {
	a     *checksumAnswer
	w     http.ResponseWriter
	text  []byte
	since time.Time // when text was sent last
	begun bool
}

func (l *checksumLines) add(r service.BlockRun) error {
	l.text = append(l.text, `{"offset":`...)
	l.text = strconv.AppendInt(l.text, r.Offset, 10)
	l.text = append(l.text, `,"length":`...)
	l.text = strconv.AppendInt(l.text, r.Length, 10)
	l.text = append(l.text, `,"digest":"`...)
	l.text = hex.AppendEncode(l.text, r.Digest)
	l.text = append(l.text, '"')
	if r.Zero {
		l.text = append(l.text, `,"zero":true`...)
	}
	l.text = append(l.text, "}\n"...)
	if len(l.text) < linesRoom && time.Since(l.since) < pieceTime {
		return nil
	}
	if err := l.flush(); err != nil {
		return err
	}
	if f, ok := l.w.(http.Flusher); ok {
		f.Flush()
	}
	return nil
}

// end sends what is left, and what all of it comes to.
func (l *checksumLines) end(c Checksum) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	l.text = append(append(l.text, text...), '\n')
	return l.flush()
}

func (l *checksumLines) flush() error {
	if !l.begun {
		h := l.w.Header()
		h["Etag"] = []string{l.a.etag}
		h["Cache-Control"] = []string{cacheMap}
		h["Vary"] = []string{"Accept"}
		h["Content-Type"] = []string{ndjson}
		l.begun = true
		l.w.WriteHeader(http.StatusOK)
	}
	_, err := l.w.Write(l.text)
	l.text, l.since = l.text[:0], time.Now()
	return err
}
