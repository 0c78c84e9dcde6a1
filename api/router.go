package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/extentd/extentd/storage"
)

// A route is one method of one path of the contract.
type route struct {
	method, pattern string
	query           query     // its parameters; others are refused
	body            *jsonBody // nil: none, or bytes
	handler         http.HandlerFunc
}

// imageRoutes are the calls about images.
func (s *server) imageRoutes() []route {
	control := ServerInterfaceWrapper{
		Handler: NewStrictHandlerWithOptions(s, []StrictMiddlewareFunc{s.checked}, StrictHTTPServerOptions{
			RequestErrorHandlerFunc:  s.fail,
			ResponseErrorHandlerFunc: s.fail,
		}),
		ErrorHandlerFunc: s.fail,
	}
	return slices.Concat(imageRoutes(&control), dataRoutes(s, &control), allocationRoutes(s, &control))
}

func imageRoutes(c *ServerInterfaceWrapper) []route {
	return []route{
		{http.MethodGet, "/v1/images", query{"limit": integer, "cursor": text}, nil, c.ListImages},
		{http.MethodPost, "/v1/images", nil, bodyOf[ImageCreation](maxBody, mediaJSON), c.CreateImage},
		{http.MethodGet, "/v1/images/{image}", nil, nil, c.GetImage},
		{http.MethodPatch, "/v1/images/{image}", nil, bodyOf[ImagePatch](maxBody, mediaPatch, mediaJSON), joinConditions(c.PatchImage)},
		{http.MethodDelete, "/v1/images/{image}", nil, nil, joinConditions(c.DeleteImage)},
		{http.MethodGet, "/v1/images/{image}/limits", nil, nil, c.GetLimits},
		{http.MethodPost, "/v1/images/{image}/check", nil, bodyOf[CheckRequest](maxBody, mediaJSON), c.CheckImage},
	}
}

func dataRoutes(s *server, c *ServerInterfaceWrapper) []route {
	return []route{
		{http.MethodGet, "/v1/images/{image}/extents", query{
			"offset": integer, "length": integer, "limit": integer,
			"one": boolean, "volunteer": boolean, "resolve": boolean,
		}, nil, joinConditions(c.GetExtents)},
		{http.MethodGet, "/v1/images/{image}/data", nil, nil, s.getData},
		{http.MethodHead, "/v1/images/{image}/data", nil, nil, s.headData},
		{http.MethodPut, "/v1/images/{image}/data", query{"flush": boolean}, nil, s.putData},
		{http.MethodPost, "/v1/images/{image}/zero", nil, bodyOf[ZeroRange](maxBody, mediaJSON), joinConditions(c.ZeroData)},
		{http.MethodPost, "/v1/images/{image}/trim", nil, bodyOf[TrimRange](maxBody, mediaJSON), joinConditions(c.TrimData)},
		{http.MethodPost, "/v1/images/{image}/flush", nil, bodyOf[FlushRequest](maxBody, mediaJSON), c.FlushData},
	}
}

func allocationRoutes(s *server, c *ServerInterfaceWrapper) []route {
	const all, one = "/v1/images/{image}/allocations", "/v1/images/{image}/allocations/{allocation}"
	return []route{
		{http.MethodPost, all, nil, bodyOf[AllocationRequest](maxBody, mediaJSON), c.CreateAllocation},
		{http.MethodGet, all, nil, nil, c.ListAllocations},
		{http.MethodGet, one, nil, nil, c.GetAllocation},
		{http.MethodDelete, one, nil, nil, c.DeleteAllocation},
		{http.MethodPut, one + "/data", nil, nil, s.putAllocationData},
		{http.MethodPost, "/v1/images/{image}/mappings", nil, bodyOf[MappingUpdates](maxBatch, mediaJSON), joinConditions(c.UpdateMappings)},
	}
}

// adminRoutes are the calls that probes and scrapers make.
func (s *server) adminRoutes() []route {
	return []route{
		{http.MethodGet, "/healthz", nil, nil, s.getHealth},
		{http.MethodGet, "/readyz", nil, nil, s.getReadiness},
		{http.MethodGet, "/metrics", nil, nil, s.telemetry.metrics.ServeHTTP},
	}
}

// serverRoutes are the calls about the server itself.
func (s *server) serverRoutes() []route {
	return append(s.adminRoutes(), route{http.MethodGet, "/openapi.yaml", nil, nil, s.getOpenAPI})
}

func (s *server) router(routes []route) http.Handler {
	r := chi.NewRouter()
	for _, route := range routes {
		r.Method(route.method, route.pattern, s.observe(route.method, route.pattern, s.strict(&route)))
	}
	r.NotFound(s.observe("", "", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, fmt.Errorf("%w: there is nothing at this path", storage.ErrNotFound))
	}).ServeHTTP)
	r.MethodNotAllowed(s.observe("", "", methodNotAllowed(s, r)).ServeHTTP)
	return r
}

// methodNotAllowed answers what a path is not for.
func methodNotAllowed(s *server, router *chi.Mux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.RawPath
		if path == "" {
			path = r.URL.Path
		}
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete} {
			if router.Match(chi.NewRouteContext(), method, path) {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) == 0 { // a method that nobody knows, and no path either
			s.fail(w, r, fmt.Errorf("%w: there is nothing at this path", storage.ErrNotFound))
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		s.fail(w, r, errMethod)
	}
}

// strict passes on only requests whose parameters and body are as the route
// wants them.
func (s *server) strict(to *route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			if err := to.query.check(r.URL.RawQuery); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		if to.body != nil {
			if err := to.body.check(w, r); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		to.handler(w, r)
	}
}
