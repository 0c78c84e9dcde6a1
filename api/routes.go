package api

import (
	"net/http"
	"slices"

	"github.com/extentd/extentd/auth"
)

// A route is one method of one path of the contract.
type route struct {
	method, pattern string
	access          access
	query           query     // its parameters; others are refused
	body            *jsonBody // nil: none, or bytes
	handler         http.HandlerFunc
	once            bool // it honours Idempotency-Key
}

// access is who may call a route: whoever may do the verbs on the image of the
// path. Where there is none, or the body names more, its handler sees to it.
type access struct {
	public bool // nobody is asked who they are
	verbs  auth.Verbs
}

// on is for callers that may do the verbs on the image of the path.
func on(v auth.Verbs) access { return access{verbs: v} }

// known is for every caller that there is a grant for.
func known() access { return access{} }

// public is for everybody.
func public() access { return access{public: true} }

// imageRoutes are the calls about images, and who may see them.
func (s *server) imageRoutes() []route {
	control := ServerInterfaceWrapper{
		Handler: NewStrictHandlerWithOptions(s, []StrictMiddlewareFunc{s.checked}, StrictHTTPServerOptions{
			RequestErrorHandlerFunc:  s.fail,
			ResponseErrorHandlerFunc: s.fail,
		}),
		ErrorHandlerFunc: s.fail,
	}
	return slices.Concat(imageRoutes(&control), dataRoutes(s, &control), allocationRoutes(s, &control), snapshotRoutes(s, &control), bitmapRoutes(&control), ticketRoutes(&control))
}

func imageRoutes(c *ServerInterfaceWrapper) []route {
	const all, one = "/v1/images", "/v1/images/{image}"
	return []route{
		{http.MethodGet, all, known(), query{"limit": integer, "cursor": text}, nil, c.ListImages, false},
		{http.MethodPost, all, known(), nil, bodyOf[ImageCreation](maxBody, mediaJSON), c.CreateImage, true},
		{http.MethodGet, one, on(auth.Map), nil, nil, c.GetImage, false},
		{http.MethodPatch, one, on(auth.Admin), nil, bodyOf[ImagePatch](maxBody, mediaPatch, mediaJSON), joinConditions(c.PatchImage), false},
		{http.MethodDelete, one, on(auth.Admin), nil, nil, joinConditions(c.DeleteImage), false},
		{http.MethodGet, one + "/limits", on(auth.Map), nil, nil, c.GetLimits, false},
		{http.MethodPost, one + "/check", on(auth.Map), nil, bodyOf[CheckRequest](maxBody, mediaJSON), c.CheckImage, false},
	}
}

func dataRoutes(s *server, c *ServerInterfaceWrapper) []route {
	const one = "/v1/images/{image}"
	extents := query{
		"offset": integer, "length": integer, "limit": integer,
		"one": boolean, "volunteer": boolean, "resolve": boolean,
		"since": text, "dirty": text, "only": text,
	}
	return []route{
		{http.MethodGet, one + "/extents", on(auth.Map), extents, nil, joinConditions(c.GetExtents), false},
		{http.MethodGet, one + "/data", on(auth.Read), sparseParams(true), nil, s.getData, false},
		{http.MethodHead, one + "/data", on(auth.Read), nil, nil, s.headData, false},
		{http.MethodPut, one + "/data", on(auth.Write), query{"flush": boolean}, nil, s.putData, false},
		{http.MethodGet, one + "/checksum", on(auth.Read), checksumParams(), nil, joinConditions(c.GetChecksum), false},
		{http.MethodPost, one + "/zero", on(auth.Write), nil, bodyOf[ZeroRange](maxBody, mediaJSON), joinConditions(c.ZeroData), false},
		{http.MethodPost, one + "/trim", on(auth.Write), nil, bodyOf[TrimRange](maxBody, mediaJSON), joinConditions(c.TrimData), false},
		{http.MethodPost, one + "/flush", on(auth.Write), nil, bodyOf[FlushRequest](maxBody, mediaJSON), c.FlushData, false},
	}
}

func snapshotRoutes(s *server, c *ServerInterfaceWrapper) []route {
	const all, one = "/v1/images/{image}/snapshots", "/v1/images/{image}/snapshots/{snapshot}"
	extents := query{
		"offset": integer, "length": integer, "limit": integer,
		"one": boolean, "volunteer": boolean, "resolve": boolean,
		"since": text, "only": text,
	}
	return []route{
		{http.MethodGet, all, on(auth.Map), nil, nil, c.ListSnapshots, false},
		{http.MethodPost, all, on(auth.Write), nil, bodyOf[SnapshotCreation](maxBody, mediaJSON), c.CreateSnapshot, true},
		{http.MethodGet, one, on(auth.Map), nil, nil, c.GetSnapshot, false},
		{http.MethodDelete, one, on(auth.Write), nil, nil, joinConditions(c.DeleteSnapshot), false},
		{http.MethodPost, one + "/revert", on(auth.Write), nil, bodyOf[RevertRequest](maxBody, mediaJSON), joinConditions(c.RevertSnapshot), false},
		{http.MethodGet, one + "/extents", on(auth.Map), extents, nil, joinConditions(c.GetSnapshotExtents), false},
		{http.MethodGet, one + "/data", on(auth.Read), sparseParams(false), nil, s.getData, false},
		{http.MethodHead, one + "/data", on(auth.Read), nil, nil, s.headData, false},
	}
}

func allocationRoutes(s *server, c *ServerInterfaceWrapper) []route {
	const all, one = "/v1/images/{image}/allocations", "/v1/images/{image}/allocations/{allocation}"
	return []route{
		{http.MethodPost, all, on(auth.Write), nil, bodyOf[AllocationRequest](maxBody, mediaJSON), c.CreateAllocation, true},
		{http.MethodGet, all, on(auth.Write), nil, nil, c.ListAllocations, false},
		{http.MethodGet, one, on(auth.Write), nil, nil, c.GetAllocation, false},
		{http.MethodDelete, one, on(auth.Write), nil, nil, c.DeleteAllocation, false},
		{http.MethodPut, one + "/data", on(auth.Write), nil, nil, s.putAllocationData, false},
		{http.MethodPost, "/v1/images/{image}/mappings", on(auth.Write), nil, bodyOf[MappingUpdates](maxBatch, mediaJSON), joinConditions(c.UpdateMappings), true},
	}
}

func bitmapRoutes(c *ServerInterfaceWrapper) []route {
	const all, one = "/v1/images/{image}/bitmaps", "/v1/images/{image}/bitmaps/{bitmap}"
	return []route{
		{http.MethodGet, all, on(auth.Map), nil, nil, c.ListBitmaps, false},
		{http.MethodPost, all, on(auth.Write), nil, bodyOf[BitmapCreation](maxBody, mediaJSON), c.CreateBitmap, true},
		{http.MethodGet, one, on(auth.Map), nil, nil, c.GetBitmap, false},
		{http.MethodPatch, one, on(auth.Write), nil, bodyOf[BitmapPatch](maxBody, mediaPatch), c.PatchBitmap, false},
		{http.MethodDelete, one, on(auth.Write), nil, nil, c.DeleteBitmap, false},
		{http.MethodPost, one + "/clear", on(auth.Write), nil, bodyOf[BitmapClear](maxBody, mediaJSON), c.ClearBitmap, true},
		{http.MethodPost, one + "/merge", on(auth.Write), nil, bodyOf[BitmapMerge](maxBody, mediaJSON), c.MergeBitmap, true},
		{http.MethodPost, "/v1/bitmaps", known(), nil, bodyOf[BitmapChanges](maxBatch, mediaJSON), c.ChangeBitmaps, true},
	}
}

func ticketRoutes(c *ServerInterfaceWrapper) []route {
	return []route{
		{http.MethodPost, "/v1/tickets", known(), nil, bodyOf[TicketRequest](maxBody, mediaJSON), c.MintTicket, true},
		{http.MethodDelete, "/v1/tickets/{id}", known(), nil, nil, c.RevokeTicket, false},
	}
}

// adminRoutes are the calls that probes and scrapers make. On a listener of their
// own the metrics are public too.
func (s *server) adminRoutes(metrics access) []route {
	return []route{
		{http.MethodGet, "/healthz", public(), nil, nil, s.getHealth, false},
		{http.MethodGet, "/readyz", public(), nil, nil, s.getReadiness, false},
		{http.MethodGet, "/metrics", metrics, nil, nil, s.opt.Telemetry.Metrics().ServeHTTP, false},
	}
}

// serverRoutes are the calls about the server itself.
func (s *server) serverRoutes() []route {
	return append(s.adminRoutes(known()), route{http.MethodGet, "/openapi.yaml", public(), nil, nil, s.getOpenAPI, false})
}
