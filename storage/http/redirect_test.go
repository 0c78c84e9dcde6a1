package http_test

import (
	"bytes"
	"errors"
	"fmt"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
)

// redirecting redirects everything under /r to where.
func redirecting(status int, where func() string) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/r") {
			return false
		}
		w.Header().Set("Location", where())
		w.WriteHeader(status)
		return true
	}
}

func TestRedirects(t *testing.T) {
	content := random(t, 1000)
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := serve(t, content)
			s.set(func(s *site) { s.hook = redirecting(status, func() string { return "/elsewhere?secret" }) })
			f := openFile(t, local(s.URL+"/r"))
			p := make([]byte, 100)
			before := s.requests.Load()
			for range 3 {
				if _, err := f.ReadAt(t.Context(), p, 5); err != nil || !bytes.Equal(p, content[5:105]) {
					t.Error(err)
				}
			}
			if n := s.requests.Load() - before; n != 3 {
				t.Errorf("%d requests for 3 reads: the redirect is not remembered", n)
			}
			if n := s.connections.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestRefusedRedirects(t *testing.T) {
	for name, where := range map[string]string{
		"loop":       "/r?secret",
		"to a file":  "file:///secret",
		"to nowhere": "",
		"malformed":  "http://h:secret/",
		"no host":    "http:///secret",
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, make([]byte, 10))
			s.set(func(s *site) { s.hook = redirecting(302, func() string { return where }) })
			_, err := http.Open(t.Context(), local(s.URL+"/r"))
			if !errors.Is(err, storage.ErrRefused) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %v", err, storage.ErrRefused)
			}
			if n := s.requests.Load(); n > 6 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Five redirects are followed, and six are not.
func TestRedirectBound(t *testing.T) {
	s := serve(t, make([]byte, 10))
	s.set(func(s *site) {
		s.hook = func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			if left := r.URL.Path[1:]; left != "" {
				w.Header().Set("Location", "/"+left[1:])
				w.WriteHeader(nethttp.StatusFound)
				return true
			}
			return false
		}
	})
	openFile(t, local(s.URL+"/rrrrr"))
	if _, err := http.Open(t.Context(), local(s.URL+"/rrrrrr")); !errors.Is(err, storage.ErrRefused) {
		t.Error(err)
	}
}

// What the operator gave goes to his host alone, and not back to it from another.
func TestHeadersStayAtHome(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]nethttp.Header{}
	record := func(_ nethttp.ResponseWriter, r *nethttp.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Path] = r.Header.Clone()
		return false
	}
	home, away := serve(t, make([]byte, 1000)), serve(t, make([]byte, 1000))
	to := func(at map[string]string) hook {
		return both(record, func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			where, ok := at[r.URL.Path]
			if ok {
				w.Header().Set("Location", where)
				w.WriteHeader(nethttp.StatusFound)
			}
			return ok
		})
	}
	home.set(func(s *site) { s.hook = to(map[string]string{"/a": "/b", "/b": away.URL + "/c"}) })
	away.set(func(s *site) {
		s.hook = to(map[string]string{"/c": "/c2", "/c2": strings.Replace(home.URL, "http://", "http://u:stolen@", 1) + "/d"})
	})
	opt := local(strings.Replace(home.URL, "http://", "http://user:secret@", 1) + "/a?secret")
	opt.Headers = map[string]string{"X-Key": "secret"}
	f := openFile(t, opt)
	if _, err := f.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	for path, given := range map[string]bool{"/a": true, "/b": true, "/c": false, "/c2": false, "/d": false} {
		h, asked := seen[path]
		if !asked || (h.Get("X-Key") != "") != given || (h.Get("Authorization") != "") != given || h.Get("Referer") != "" {
			t.Errorf("%s was asked (%v) with %v", path, asked, h)
		}
	}
}

// Where a redirect leads may be good for a time only.
func TestRedirectExpires(t *testing.T) {
	content := random(t, 1000)
	s := serve(t, content)
	var mu sync.Mutex
	good := 1
	s.set(func(s *site) {
		s.hook = func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			switch now := fmt.Sprintf("/signed/%d", good); r.URL.Path {
			case "/r":
				w.Header().Set("Location", now)
				w.WriteHeader(nethttp.StatusFound)
			case now:
				return false
			default:
				w.WriteHeader(nethttp.StatusForbidden)
			}
			return true
		}
	})
	f := openFile(t, local(s.URL+"/r"))
	p := make([]byte, 10)
	for i := range 3 {
		for range 2 {
			if _, err := f.ReadAt(t.Context(), p, 50); err != nil || !bytes.Equal(p, content[50:60]) {
				t.Errorf("%d: %v", i, err)
			}
		}
		mu.Lock()
		good++
		mu.Unlock()
	}
	s.set(func(s *site) { s.etag = `"two"` })
	if _, err := f.ReadAt(t.Context(), p, 50); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("%v, want %v", err, storage.ErrChanged)
	}
	s.set(func(s *site) { s.hook = answering(404, nil, "") })
	if _, err := f.ReadAt(t.Context(), p, 50); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("%v, want %v", err, storage.ErrNotFound)
	}
}
