package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/extentd/extentd/storage"
)

// A route is one method of one path of the contract.
type route struct {
	method, pattern string
	query           query // its parameters; others are refused
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
	return []route{
		{http.MethodGet, "/v1/images", query{"limit": integer, "cursor": text}, control.ListImages},
		{http.MethodGet, "/v1/images/{image}", nil, control.GetImage},
		{http.MethodGet, "/v1/images/{image}/limits", nil, control.GetLimits},
		{http.MethodGet, "/v1/images/{image}/extents", query{
			"offset": integer, "length": integer, "limit": integer,
			"one": boolean, "volunteer": boolean, "resolve": boolean,
		}, joinConditions(control.GetExtents)},
		{http.MethodGet, "/v1/images/{image}/data", nil, s.getData},
		{http.MethodHead, "/v1/images/{image}/data", nil, s.headData},
	}
}

// adminRoutes are the calls that probes and scrapers make.
func (s *server) adminRoutes() []route {
	return []route{
		{http.MethodGet, "/healthz", nil, s.getHealth},
		{http.MethodGet, "/readyz", nil, s.getReadiness},
		{http.MethodGet, "/metrics", nil, s.telemetry.metrics.ServeHTTP},
	}
}

// serverRoutes are the calls about the server itself.
func (s *server) serverRoutes() []route {
	return append(s.adminRoutes(), route{http.MethodGet, "/openapi.yaml", nil, s.getOpenAPI})
}

func (s *server) router(routes []route) http.Handler {
	r := chi.NewRouter()
	for _, route := range routes {
		r.Method(route.method, route.pattern, s.observe(route.method, route.pattern, s.strict(route.query, route.handler)))
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
		for _, method := range []string{http.MethodGet, http.MethodHead} {
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

// strict passes on only requests whose parameters the route has.
func (s *server) strict(q query, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			if err := q.check(r.URL.RawQuery); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		next(w, r)
	}
}
