package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
)

// changes reports whether requests of a method may change something.
func changes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

// audit writes down a request that may have changed something, or tried to.
func (o *observed) audit(r *http.Request, resp *response, start time.Time, took time.Duration, aborted bool) {
	rec := audit.Record{
		Time: start.UTC(), Protocol: "http", Request: resp.id[0], Caller: o.caller(resp), Remote: r.RemoteAddr,
		Method: plain(r.Method), Route: o.pattern, Image: plain(imageName(r)), Change: resp.change,
		Status: resp.status, Result: resultOf(resp.status, aborted), Problem: resp.problem,
		Replayed: resp.Header().Get(headerReplayed) != "", Received: resp.read, Seconds: took.Seconds(),
	}
	if span := trace.SpanContextFromContext(r.Context()); span.IsValid() {
		rec.Trace = span.TraceID().String()
	}
	switch {
	case resp.spoken != nil:
		rec.Image = plain(resp.spoken.image)
	case r.Method == http.MethodPut:
		rec.Change = putChange(r)
	}
	o.s.opt.Audit.Write(&rec)
}

// caller is who made a request, as far as that was found out.
func (o *observed) caller(resp *response) audit.Caller {
	switch c := resp.caller; {
	case c != nil:
		return audit.Caller{Kind: string(c.Kind), Name: c.Name, Subject: c.Subject, Ticket: c.Ticket}
	case o.s.opt.Authenticate:
		return audit.Caller{Kind: "unknown"}
	}
	return audit.Caller{Kind: "anyone"}
}

func resultOf(status int, aborted bool) string {
	switch {
	case aborted:
		return audit.Aborted
	case status < http.StatusBadRequest:
		return audit.OK
	case status < http.StatusInternalServerError, status == http.StatusServiceUnavailable:
		return audit.Refused
	}
	return audit.Failed
}

// putChange is what a request with bytes was to change: what its headers say.
func putChange(r *http.Request) *audit.Change {
	c := &audit.Change{Allocation: plain(pathParameter(r, "allocation"))}
	if given := r.Header["Content-Range"]; len(given) == 1 {
		if part, _, ok := parseContentRange(given[0]); ok && part.n >= 0 {
			c.Offset, c.Length = &part.off, &part.n
		}
	} else if len(given) == 0 && c.Allocation == "" && r.ContentLength >= 0 {
		c.Offset, c.Length = new(int64), &r.ContentLength
	}
	return c
}

// changeOf is what a request was to change; nil where the route says it all.
func changeOf(request any) *audit.Change {
	switch r := request.(type) {
	case CreateImageRequestObject:
		return &audit.Change{Name: plain(r.Body.Name), Size: r.Body.Size}
	case PatchImageRequestObject:
		if r.JSONBody != nil {
			return &audit.Change{Size: r.JSONBody.Size}
		}
		return &audit.Change{Size: r.ApplicationMergePatchPlusJSONBody.Size}
	case ZeroDataRequestObject:
		return &audit.Change{Offset: &r.Body.Offset, Length: &r.Body.Length}
	case TrimDataRequestObject:
		return &audit.Change{Offset: &r.Body.Offset, Length: &r.Body.Length}
	case CheckImageRequestObject:
		if r.Body.Repair != nil {
			return &audit.Change{Repair: plain(string(*r.Body.Repair))}
		}
	case CreateAllocationRequestObject:
		if a := r.Body.Anchored; a != nil {
			return &audit.Change{Offset: &a.Offset, Length: &a.Length}
		}
		return &audit.Change{Length: r.Body.Length}
	case DeleteAllocationRequestObject:
		return &audit.Change{Allocation: plain(r.Allocation)}
	case CreateBitmapRequestObject:
		return &audit.Change{Name: plain(r.Body.Name)}
	case PatchBitmapRequestObject, DeleteBitmapRequestObject, ClearBitmapRequestObject, MergeBitmapRequestObject, ChangeBitmapsRequestObject:
		return bitmapChangeOf(r)
	case UpdateMappingsRequestObject:
		return &audit.Change{Updates: len(r.Body.Updates)}
	case CreateSnapshotRequestObject:
		return &audit.Change{Name: plain(r.Body.Name)}
	case DeleteSnapshotRequestObject:
		return &audit.Change{Snapshot: plain(r.Snapshot)}
	case RevertSnapshotRequestObject:
		return &audit.Change{Snapshot: plain(r.Snapshot)}
	case MintTicketRequestObject:
		c := &audit.Change{Name: plain(r.Body.Image)}
		for _, v := range r.Body.Verbs {
			c.Verbs = append(c.Verbs, plain(string(v)))
		}
		return c
	case RevokeTicketRequestObject:
		return &audit.Change{Ticket: plain(auth.Mask(r.Id))}
	}
	return nil
}

// bitmapChangeOf is what a request was to change of bitmaps that there are. Of
// several images their names are told, as many as a record holds.
func bitmapChangeOf(request any) *audit.Change {
	switch r := request.(type) {
	case PatchBitmapRequestObject:
		return &audit.Change{Bitmap: plain(r.Bitmap), Enabled: r.Body.Enabled}
	case DeleteBitmapRequestObject:
		return &audit.Change{Bitmap: plain(r.Bitmap)}
	case ClearBitmapRequestObject:
		return &audit.Change{Bitmap: plain(r.Bitmap)}
	case MergeBitmapRequestObject:
		return &audit.Change{Bitmap: plain(r.Bitmap)}
	case ChangeBitmapsRequestObject:
		c := &audit.Change{Updates: len(r.Body.Changes)}
		for i := range r.Body.Changes {
			image := plain(r.Body.Changes[i].Image)
			if len(c.Images) < service.MaxBitmapImages && !slices.Contains(c.Images, image) {
				c.Images = append(c.Images, image)
			}
		}
		return c
	}
	return nil
}

// noteChange keeps what a request is about for its record.
func noteChange(w http.ResponseWriter, request any) {
	if r, ok := w.(*response); ok {
		r.change = changeOf(request)
	}
}

// maxPlain is the most of a client's text that a record holds, bytes: as much as
// an image's name may have.
const maxPlain = 255

func plain(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxPlain)], "\uFFFD") }
