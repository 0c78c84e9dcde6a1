package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/block"
)

// putData implements PUT /v1/images/{image}/data.
func (s *server) putData(w http.ResponseWriter, r *http.Request) {
	h, err := s.acquireWritable(r.Context(), imageName(r))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer h.Release()
	a := &dataAnswer{s: s, w: w, r: r, d: h.Device(), size: h.Device().Size()}
	if err = a.describe(r.Context()); err == nil {
		err = a.receive(r.Context(), h)
	}
	a.set(0, "Etag", `"`+h.DataGeneration()+`"`) // as it is after what was written
	if err != nil {
		h.Report(err)
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// receive writes the body where it belongs, when everything else has been
// checked.
func (a *dataAnswer) receive(ctx context.Context, h *service.Handle) error {
	match := writeCondition(a.r.Header)
	if match != nil && !match(h.DataGeneration()) {
		return errPrecondition
	}
	if err := checkCoding(a.w, a.r); err != nil {
		return err
	}
	part, err := bodyRange(a.r.Header, a.size)
	if err != nil {
		return err
	}
	if err := a.d.CheckWrite(ctx, part.off, part.n); err != nil {
		return err
	}
	if err := checkLength(a.r, part.n); err != nil {
		return err
	}
	digest, err := newBodyDigest(a.r)
	if err != nil {
		return err
	}
	u := upload{s: a.s, w: a.w, r: a.r, to: a.d, part: part, unit: a.d.Units().Alloc, digest: digest}
	if err := u.reserve(ctx); err != nil {
		return err
	}
	defer u.release()
	if match != nil && !h.ClaimDataGeneration(match) { // another one was faster
		return errPrecondition
	}
	return a.store(ctx, &u)
}

// store writes the body, and flushes it if that is asked for.
func (a *dataAnswer) store(ctx context.Context, u *upload) error {
	if err := u.run(ctx); err != nil {
		return err
	}
	if !wantsFlush(a.r) {
		return nil
	}
	return a.d.Flush(ctx)
}

// wantsFlush looks at a query that has been checked: flush is all there can be.
func wantsFlush(r *http.Request) bool {
	return r.URL.RawQuery != "" && strings.EqualFold(r.URL.Query().Get("flush"), "true")
}

var (
	_ sink = (*block.Device)(nil)
	_ sink = (*service.AllocationWriter)(nil)
)

// putAllocationData implements PUT /v1/images/{image}/allocations/{allocation}/data.
func (s *server) putAllocationData(w http.ResponseWriter, r *http.Request) {
	if err := s.fillAllocation(w, r); err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) fillAllocation(w http.ResponseWriter, r *http.Request) error {
	image := imageName(r)
	to, err := s.svc.OpenAllocation(r.Context(), image, pathParameter(r, "allocation"))
	if err != nil {
		return named(image, err)
	}
	defer to.Release()
	if err := checkCoding(w, r); err != nil {
		return err
	}
	part, err := bodyRange(r.Header, to.Length())
	if err != nil {
		return err
	}
	if err := checkLength(r, part.n); err != nil {
		return err
	}
	digest, err := newBodyDigest(r)
	if err != nil {
		return err
	}
	u := upload{s: s, w: w, r: r, to: to, part: part, digest: digest}
	if err := u.reserve(r.Context()); err != nil {
		return err
	}
	defer u.release()
	return u.run(r.Context())
}
