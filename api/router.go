package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/extentd/extentd/storage"
)

func (s *server) router(routes []route) http.Handler {
	r := chi.NewRouter()
	for _, route := range routes {
		r.Method(route.method, route.pattern, s.observe(route.method, route.pattern, s.enter(&route, s.strict(&route))))
	}
	for _, route := range s.dialectRoutes() {
		r.Method(route.Method, route.Pattern, s.observe(route.Method, route.Pattern, route.serve(s)))
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
		path := askedPath(w, r)
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
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
	handler := to.handler
	if to.once {
		handler = s.idempotent(to, handler)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			if err := to.query.check(r.URL.RawQuery); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		if to.body != nil {
			n, err := s.room(r, to.body)
			if err == nil {
				defer s.opt.Load.Memory().Put(n)
				err = to.body.check(w, r)
			}
			if err != nil {
				s.fail(w, r, err)
				return
			}
			s.bodyCame(w)
		}
		handler(w, r)
	}
}
