package api

import (
	"fmt"
	"io"
	"net/http"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/block"
)

// A Window is a part of an image, bytes: what one URL stands for.
type Window struct{ Offset, Length int64 }

// data prepares an answer about data, and looks at the conditions of the request.
// done: it has been answered.
func (x *Exchange) data(h *service.Handle) (a *dataAnswer, done bool, err error) {
	d := h.Device()
	a = &dataAnswer{s: x.s, w: x.w, r: x.r, d: d, size: d.Size(), etag: `"` + h.DataGeneration() + `"`}
	a.set(0, "Etag", a.etag)
	if err := a.describe(x.Context()); err != nil {
		return nil, false, err
	}
	switch precondition(x.r.Header, a.etag) {
	case http.StatusPreconditionFailed:
		return nil, false, errPrecondition
	case http.StatusNotModified:
		x.w.WriteHeader(http.StatusNotModified)
		return nil, true, nil
	}
	return a, false, nil
}

// SendWindow answers with the window, or with the one range of it that Range asks
// for; and to HEAD with how long it is. More ranges are not looked at.
func (x *Exchange) SendWindow(h *service.Handle, win Window) error {
	a, done, err := x.data(h)
	if err != nil || done {
		return err
	}
	whole := byteRange{win.Offset, win.Length}
	if x.r.Method == http.MethodHead {
		if err := a.d.Check(x.Context(), whole.off, whole.n); err != nil {
			return err
		}
		a.describeBody(octets, whole.n)
		x.w.WriteHeader(http.StatusOK)
		return nil
	}
	var few [4]byteRange
	ranges, verdict := few[:0], rangeNone
	if given := x.r.Header["Range"]; len(given) == 1 && rangeApplies(x.r.Header, a.etag) {
		ranges, verdict = parseRanges(given[0], win.Length, ranges)
	}
	switch {
	case verdict == rangeOutside:
		return &rangeError{win.Length, fmt.Sprintf("there are %d bytes, and no range lies in them", win.Length)}
	case verdict == rangePartial && len(ranges) == 1:
		part := ranges[0]
		return a.sendAs(byteRange{win.Offset + part.off, part.n}, http.StatusPartialContent, contentRange(part, win.Length))
	}
	return a.sendAs(whole, http.StatusOK, "")
}

// SendRange answers with a range of the image, whatever the request's header asks
// for: with 206 and a Content-Range, or 200 without.
func (x *Exchange) SendRange(h *service.Handle, win Window, partial bool) error {
	a, done, err := x.data(h)
	if err != nil || done {
		return err
	}
	part := byteRange{win.Offset, win.Length}
	if partial {
		return a.sendAs(part, http.StatusPartialContent, contentRange(part, a.size))
	}
	return a.sendAs(part, http.StatusOK, "")
}

// Receive writes the body to a range, which it must fill, and flushes it if that is
// asked for. It reports failures to the service.
func (x *Exchange) Receive(h *service.Handle, win Window, flush bool) error {
	err := x.receive(h, win)
	if err == nil && flush {
		err = h.Device().Flush(x.Context())
	}
	if err != nil {
		h.Report(err)
	}
	return err
}

func (x *Exchange) receive(h *service.Handle, win Window) error {
	ctx, d := x.Context(), h.Device()
	if err := checkCoding(x.w, x.r); err != nil {
		return err
	}
	if err := claimData(x, h, win); err != nil {
		return err
	}
	u := upload{s: x.s, w: x.w, r: x.r, to: d, part: byteRange{win.Offset, win.Length}, unit: d.Units().Alloc}
	if err := u.reserve(ctx); err != nil {
		return err
	}
	defer u.release()
	return u.run(ctx)
}

// Change changes the data of a range without bytes of the request, unless its
// conditions forbid it. It reports failures to the service.
func (x *Exchange) Change(h *service.Handle, win Window, do func(d *block.Device) error) error {
	err := claimData(x, h, win)
	if err == nil {
		err = do(h.Device())
	}
	if err != nil {
		h.Report(err)
	}
	return err
}

// claimData makes sure of a range that is to be written, and then that the data is
// what the conditions of the request want.
func claimData(x *Exchange, h *service.Handle, win Window) error {
	match := writeCondition(x.r.Header)
	if match != nil && !match(h.DataGeneration()) {
		return errPrecondition
	}
	if err := h.Device().CheckWrite(x.Context(), win.Offset, win.Length); err != nil {
		return err
	}
	if match != nil && !h.ClaimDataGeneration(match) { // another one was faster
		return errPrecondition
	}
	return nil
}

// CopyTo writes a range of the image to to, which takes what it is given.
func (x *Exchange) CopyTo(to io.Writer, h *service.Handle, win Window) error {
	memory := x.s.opt.Load.Memory()
	if err := memory.Long(x.Context(), block.StreamLeast); err != nil {
		return err
	}
	defer memory.Put(block.StreamLeast)
	stream, err := h.Device().StreamWithin(x.Context(), win.Offset, win.Length, memory)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	n, err := stream.WriteTo(to)
	if err == nil && n != win.Length {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, win.Length, win.Offset)
	}
	return err
}
