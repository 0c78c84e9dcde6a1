package api

import (
	"context"
	"net/http"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// defaultExtents is how many extents a page has if nobody says.
const defaultExtents = 1000

const ndjson = "application/x-ndjson"

// An extentQuery is what a request for a map asks for, complete and checked.
type extentQuery struct {
	size       int64  // of the image, when the answer began
	generation string // likewise
	off, n     int64
	limit      int // 0: unpaged
	one        bool
	ndjson     bool
	volunteer  bool
	topOnly    bool
}

// GetExtents implements GET /v1/images/{image}/extents.
func (s *server) GetExtents(ctx context.Context, request GetExtentsRequestObject) (GetExtentsResponseObject, error) {
	h, err := s.acquire(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	release := true
	defer func() {
		if release {
			h.Release()
		}
	}()
	r := callOf(ctx).r
	generation := h.Generation()
	etag := `"` + generation + `"`
	switch precondition(r.Header, etag) {
	case http.StatusPreconditionFailed:
		return nil, errPrecondition
	case http.StatusNotModified:
		return GetExtents304Response{Headers: GetExtents304ResponseHeaders{CacheControl: cacheMap, ETag: etag, Vary: "Accept"}}, nil
	}
	q, err := newExtentQuery(&request.Params, h.Device().Size(), wantsLines(r.Header))
	if err != nil {
		return nil, err
	}
	q.generation = generation
	body, err := startMap(ctx, h, q, s.opt.Load.Memory())
	if err != nil {
		return nil, err
	}
	release = false // by the answer, when it has been sent
	return &extentsResponse{s: s, r: r, h: h, etag: etag, ndjson: q.ndjson, body: body}, nil
}

// cacheMap: a copy of a map is good for as long as its generation is.
const cacheMap = "no-cache"

// newExtentQuery puts in the defaults, and checks the range.
func newExtentQuery(p *GetExtentsParams, size int64, lines bool) (extentQuery, error) {
	q := extentQuery{size: size, limit: defaultExtents, ndjson: lines}
	if p.Offset != nil {
		q.off = *p.Offset
	}
	if err := storage.CheckRange(q.off, 0, size); err != nil {
		return q, err
	}
	q.n = size - q.off
	if p.Length != nil {
		q.n = *p.Length
	}
	if q.n == 0 && size > 0 { // at the end: a page that says nothing would be taken for the last
		return q, storage.CheckRange(q.off, 1, size)
	}
	if err := storage.CheckRange(q.off, q.n, size); err != nil {
		return q, err
	}
	q.one, q.volunteer = valueOf(p.One), valueOf(p.Volunteer)
	q.topOnly = p.Resolve != nil && !*p.Resolve
	switch {
	case lines && p.Limit != nil:
		return q, invalid("limit", ruleConflict, "is for pages, and "+ndjson+" has none")
	case q.one:
		q.limit = 1
	case lines:
		q.limit = 0
	case p.Limit != nil:
		q.limit = *p.Limit
	}
	return q, nil
}

func (q *extentQuery) options() block.WalkOptions {
	return block.WalkOptions{TopOnly: q.topOnly, Volunteer: q.volunteer}
}

// An extentsResponse is a map on its way.
type extentsResponse struct {
	s      *server
	r      *http.Request
	h      *service.Handle
	etag   string
	ndjson bool
	body   *mapBody
}

// VisitGetExtentsResponse sends the map. Only the first piece is known to be
// good: whatever fails after it cuts the connection.
func (e *extentsResponse) VisitGetExtentsResponse(w http.ResponseWriter) error {
	defer e.h.Release()
	defer e.body.close()
	h := w.Header()
	h["Etag"] = []string{e.etag}
	h["Cache-Control"] = []string{cacheMap}
	h["Vary"] = []string{"Accept"}
	h["Content-Type"] = []string{"application/json"}
	if e.ndjson {
		h["Content-Type"] = []string{ndjson}
	}
	if err := e.body.writeTo(w); err != nil {
		e.s.abort(w, e.r, err)
	}
	return nil
}
