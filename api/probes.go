package api

import (
	"io"
	"net/http"
)

func (s *server) getHealth(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok\n") }

func (s *server) getReadiness(w http.ResponseWriter, r *http.Request) {
	if s.opt.Ready != nil {
		if err := s.opt.Ready(); err != nil {
			s.fail(w, r, errNotReady)
			return
		}
	}
	writeText(w, "ok\n")
}

func (s *server) getOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(s.opt.Spec) // the client is gone: nobody to tell
}

func writeText(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, body) // likewise
}
