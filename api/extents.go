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
	mark       *mark // nil: extents say nothing but their bits
	only       bool  // the extents of which the mark is true
}

// GetExtents implements GET /v1/images/{image}/extents.
func (s *server) GetExtents(ctx context.Context, request GetExtentsRequestObject) (GetExtentsResponseObject, error) {
	h, err := s.acquire(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	return s.answerMap(ctx, h, &request.Params)
}

// answerMap answers with the map of an origin, which it releases.
func (s *server) answerMap(ctx context.Context, from origin, p *GetExtentsParams) (_ *extentsResponse, err error) {
	r := callOf(ctx).r
	e := &extentsResponse{s: s, r: r, from: from}
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	generation := from.Generation()
	if err := e.mark(ctx, p); err != nil {
		return nil, err
	}
	if p.Only != nil {
		if e.marks == nil || e.marks.member != string(*p.Only) {
			return nil, invalid("only", ruleConflict, "is for changed beside since, and for dirty beside dirty")
		}
		e.of += ".only"
	}
	e.etag = `"` + generation + e.of + `"`
	switch precondition(r.Header, e.etag) {
	case http.StatusPreconditionFailed:
		return nil, errPrecondition
	case http.StatusNotModified:
		return e, nil
	}
	q, err := newExtentQuery(p, from.Device().Size(), wantsLines(r.Header))
	if err != nil {
		return nil, err
	}
	q.generation, q.mark = generation, e.marks
	q.only = p.Only != nil
	e.ndjson = q.ndjson
	e.body, err = startMap(ctx, from, q, s.opt.Load.Memory())
	return e, err
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
	from   origin
	since  *service.Difference // nil: extents do not say what has changed
	marks  *mark               // what they say; nil: nothing but their bits
	of     string              // what the ETag has beside the generation
	etag   string
	ndjson bool
	body   *mapBody // nil: it has not changed
}

// mark finds what extents are to say beside their bits.
func (e *extentsResponse) mark(ctx context.Context, p *GetExtentsParams) (err error) {
	if p.Dirty != nil {
		e.marks, err = dirtyMark(ctx, e.from, p)
		if err == nil {
			e.of = "." + e.from.DataGeneration()
		}
		return err
	}
	if p.Since == nil {
		return nil
	}
	if valueOf(p.Volunteer) {
		return invalid("volunteer", ruleConflict, "does not go with since")
	}
	if e.since, err = e.from.Since(ctx, *p.Since); err != nil {
		return err
	}
	e.marks = &mark{member: "changed", walk: e.since.Changes}
	e.of = "." + e.since.Generation()
	return nil
}

func (e *extentsResponse) release() {
	if e.since != nil {
		e.since.Release()
	}
	e.from.Release()
}

// VisitGetExtentsResponse sends the map. Only the first piece is known to be
// good: whatever fails after it cuts the connection.
func (e *extentsResponse) VisitGetExtentsResponse(w http.ResponseWriter) error {
	defer e.release()
	h := w.Header()
	h["Etag"] = []string{e.etag}
	h["Cache-Control"] = []string{cacheMap}
	h["Vary"] = []string{"Accept"}
	if e.body == nil {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	defer e.body.close()
	h["Content-Type"] = []string{"application/json"}
	if e.ndjson {
		h["Content-Type"] = []string{ndjson}
	}
	if err := e.body.writeTo(w); err != nil {
		e.s.abort(w, e.r, err)
	}
	return nil
}

// VisitGetSnapshotExtentsResponse likewise sends that of a snapshot.
func (e *extentsResponse) VisitGetSnapshotExtentsResponse(w http.ResponseWriter) error {
	return e.VisitGetExtentsResponse(w)
}
