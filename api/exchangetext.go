package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
)

// A Text is a body that is sent while it is made, in bounded memory. Nothing has
// been sent before the first piece is full: what fails until then is told with a
// status, and what fails later cuts the connection.
type Text struct {
	// B is the piece in the making: it is to be appended to, a few hundred bytes
	// before each Next.
	B []byte

	x       *Exchange
	h       *service.Handle
	release func() // of the map, which is held while a piece is made; nil: between
	since   time.Time
	count   int
	sent    bool
}

const (
	// textPiece is how much is encoded before it is sent.
	textPiece = load.Least - pieceRoom
	// textTime is how long a piece may be in the making: a map that is slow to walk
	// is sent as it comes.
	textTime = time.Second
)

// SendText answers with what fill appends, of which no part is left out. The map of
// the image does not change while one piece of it is made.
func (x *Exchange) SendText(h *service.Handle, contentType string, fill func(t *Text) error) error {
	ctx, memory := x.Context(), x.s.opt.Load.Memory()
	if err := memory.Long(ctx, load.Least); err != nil {
		return err
	}
	defer memory.Put(load.Least)
	buffer := smallBuffers.Get().(*[]byte)
	defer smallBuffers.Put(buffer)
	x.Header().Set("Content-Type", contentType)
	t := &Text{B: (*buffer)[:0], x: x, h: h}
	defer t.letGo()
	t.begin()
	err := fill(t)
	t.letGo()
	switch {
	case err == nil && !t.sent:
		x.Header().Set("Content-Length", strconv.Itoa(len(t.B)))
		_, _ = x.w.Write(t.B) // the client is gone: nobody to tell
		return nil
	case err == nil:
		_, err = x.w.Write(t.B)
	}
	if err != nil && t.sent {
		x.s.abort(x.w, x.r, err)
	}
	return err
}

// Next sends the piece if it is full, or has been waited for long.
func (t *Text) Next() error {
	t.count++
	if len(t.B) < textPiece && (t.count%64 != 0 || time.Since(t.since) < textTime) {
		return nil
	}
	t.letGo()
	t.sent = true
	_, err := t.x.w.Write(t.B)
	if f, ok := t.x.w.(http.Flusher); ok && err == nil {
		f.Flush()
	}
	t.B = t.B[:0]
	t.begin()
	return err
}

func (t *Text) begin() {
	t.since, t.release = time.Now(), t.h.HoldMap()
}

// letGo lets others change the map again.
func (t *Text) letGo() {
	if t.release != nil {
		t.release()
		t.release = nil
	}
}
