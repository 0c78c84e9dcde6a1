package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/client"
)

// A fake answers requests one after the other, and remembers them.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	answers  []http.HandlerFunc // the last one is for all that follow
}

func newFake(t *testing.T, answers ...http.HandlerFunc) *fake {
	f := &fake{answers: answers}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		answer := f.answers[0]
		if len(f.answers) > 1 {
			f.answers = f.answers[1:]
		}
		f.requests, f.bodies = append(f.requests, r), append(f.bodies, string(body))
		f.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) seen() ([]*http.Request, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests, f.bodies
}

func dial(t *testing.T, opt client.Options) *client.Server {
	t.Helper()
	s, err := client.Dial(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

func hangUp(w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = c.Close()
	}
}

// piece answers a range request with bytes that tell their offsets, and breaks off
// after some of them.
func piece(most int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		n := last - first + 1
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/1000000", first, last))
		w.Header().Set("Content-Length", fmt.Sprint(n))
		w.WriteHeader(http.StatusPartialContent)
		for i := range min(n, most) {
			_, _ = w.Write([]byte{byte(first + i)})
		}
	}
}

// What is tried again, and what is not.
func TestRepeats(t *testing.T) {
	ok := status(http.StatusNoContent)
	image := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"name":"a.raw"}`)
	}
	ctx := t.Context()
	write := func(s *client.Server) error { _, err := s.Disk("a").WriteAt(ctx, []byte("hello"), 5); return err }
	writeIf := func(s *client.Server) error {
		_, err := s.Disk("a").IfMatch(`"x"`).WriteAt(ctx, []byte("hello"), 5)
		return err
	}
	flush := func(s *client.Server) error { return s.Disk("a").Flush(ctx) }
	remove := func(s *client.Server) error { return s.Delete(ctx, "a", "") }
	create := func(s *client.Server) error {
		_, err := s.Create(ctx, client.ImageCreation{Name: "a.raw"})
		return err
	}
	for name, test := range map[string]struct {
		do       func(*client.Server) error
		answers  []http.HandlerFunc
		requests int
		fails    bool
	}{
		"write, broken":            {write, []http.HandlerFunc{hangUp, hangUp, ok}, 3, false},
		"write, too many":          {write, []http.HandlerFunc{status(429, "Retry-After", "0"), ok}, 2, false},
		"write, busy":              {write, []http.HandlerFunc{status(503), ok}, 2, false},
		"write, a proxy":           {write, []http.HandlerFunc{status(502), status(504), ok}, 3, false},
		"write, an error":          {write, []http.HandlerFunc{status(500), ok}, 1, true},
		"write, Retry-After: long": {write, []http.HandlerFunc{status(503, "Retry-After", "3600"), ok}, 1, true},
		"write on condition":       {writeIf, []http.HandlerFunc{hangUp, ok}, 1, true},
		"flush, broken":            {flush, []http.HandlerFunc{hangUp, ok}, 2, false},
		"delete, broken":           {remove, []http.HandlerFunc{hangUp, ok}, 1, true},
		"create, broken":           {create, []http.HandlerFunc{hangUp, status(503), image}, 3, false},
		"redirect":                 {flush, []http.HandlerFunc{status(307, "Location", "/elsewhere"), ok}, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, test.answers...)
			s := dial(t, client.Options{URL: f.URL, Token: "secret-token", Patience: 20 * time.Second})
			err := test.do(s)
			requests, bodies := f.seen()
			if (err != nil) != test.fails || len(requests) != test.requests {
				t.Errorf("%v after %d requests", err, len(requests))
			}
			for i, r := range requests {
				if r.Header.Get("Authorization") != "Bearer secret-token" || bodies[i] != bodies[0] ||
					r.Header.Get("Idempotency-Key") != requests[0].Header.Get("Idempotency-Key") {
					t.Errorf("request %d: %v %q", i, r.Header, bodies[i])
				}
			}
			if strings.HasPrefix(name, "create") && requests[0].Header.Get("Idempotency-Key") == "" {
				t.Error("no Idempotency-Key")
			}
			if err != nil && strings.Contains(err.Error(), "secret-token") {
				t.Error(err)
			}
		})
	}
}

// A range arrives whole, however often it breaks off.
func TestReadGoesOn(t *testing.T) {
	f := newFake(t, piece(100), hangUp, piece(0), piece(1), piece(1000000))
	s := dial(t, client.Options{URL: f.URL, Patience: 30 * time.Second})
	p := make([]byte, 5000)
	if n, err := s.Disk("a").ReadAt(t.Context(), p, 7); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
	for i := range p {
		if p[i] != byte(i+7) {
			t.Fatalf("byte %d is %d", i, p[i])
		}
	}
	requests, _ := f.seen()
	if last := requests[len(requests)-1].Header.Get("Range"); last != "bytes=108-5006" {
		t.Errorf("the last range is %s", last)
	}
	cut := newFake(t, piece(100))
	impatient := dial(t, client.Options{URL: cut.URL, Patience: -1})
	var out bytes.Buffer
	if err := impatient.Disk("a").WriteRangeTo(t.Context(), &out, 0, 5000); err == nil || out.Len() != 100 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
	full := errors.New("full")
	if err := s.Disk("a").WriteRangeTo(t.Context(), failingWriter{full}, 0, 500); !errors.Is(err, full) {
		t.Error(err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// A map that breaks off is gone on with, of the same generation; one that is not
// whole is an error.
func TestMapGoesOn(t *testing.T) {
	line := func(off, n int64) string {
		return fmt.Sprintf(`{"offset":%d,"length":%d,"local":true,"zero":false,"alloc":true,"offset_valid":false,"depth":0}`+"\n", off, n)
	}
	text := func(content string, cut bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"m-1"`)
			_, _ = io.WriteString(w, content)
			if cut {
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		}
	}
	read := func(f *fake, opt client.ExtentsOptions) (end int64, err error) {
		s := dial(t, client.Options{URL: f.URL, Patience: 20 * time.Second})
		for e, err := range s.Disk("a").Extents(t.Context(), opt) {
			if err != nil {
				return end, err
			}
			end = e.Offset + e.Length
		}
		return end, nil
	}
	f := newFake(t, text(line(0, 10)+line(10, 5)+`{"off`, true), text("", true), text(line(15, 5), false))
	if end, err := read(f, client.ExtentsOptions{Length: 20}); end != 20 || err != nil {
		t.Errorf("%d, %v", end, err)
	}
	requests, _ := f.seen()
	if r := requests[2]; r.FormValue("offset") != "15" || r.FormValue("length") != "5" || r.Header.Get("If-Match") != `"m-1"` {
		t.Errorf("%v %v", r.URL, r.Header)
	}
	for name, content := range map[string]string{
		"a gap": line(0, 10) + line(11, 5), "an overlap": line(0, 10) + line(9, 5), "an early end": line(0, 19),
		"nonsense": "what?\n", "a long line": strings.Repeat("x", 100000) + "\n",
	} {
		if end, err := read(newFake(t, text(content, false)), client.ExtentsOptions{Length: 20}); err == nil {
			t.Errorf("%s: read to %d", name, end)
		}
	}
	endless := newFake(t, text(line(0, 10)+`{"offset":10`, false), status(500))
	if _, err := read(endless, client.ExtentsOptions{Length: 20}); err == nil {
		t.Error("half a line is an extent")
	}
}

// The token file is read again when it changes, and its absence for a moment does
// not matter.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	put := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Dial(client.Options{URL: "http://localhost", TokenFile: path}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	put("first\n")
	f := newFake(t, status(http.StatusNoContent))
	s := dial(t, client.Options{URL: f.URL, TokenFile: path})
	for i, change := range []func(){func() {}, func() { put(" second-one\n") }, func() { _ = os.Remove(path) }} {
		change()
		if err := s.Disk("a").Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		requests, _ := f.seen()
		want := []string{"Bearer first", "Bearer second-one", "Bearer second-one"}[i]
		if got := requests[i].Header.Get("Authorization"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, text := range []string{"", " \n", "two tokens", strings.Repeat("x", 100000)} {
		put(text)
		if _, err := client.Dial(client.Options{URL: "http://localhost", TokenFile: path}); err == nil {
			t.Errorf("%.20q is a token", text)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, opt := range []client.Options{
		{},
		{URL: "localhost:7080"},
		{URL: "ftp://localhost"},
		{URL: "http://user:hidden@localhost"},
		{URL: "http://localhost?ticket=hidden&more=1"},
		{URL: "http://localhost?token=hidden"},
		{URL: "http://localhost?ticket=hidden&ticket=hidden"},
		{URL: "http://hidden host"},
		{URL: "unix:"},
		{URL: "http://localhost", CertFile: "x"},
		{URL: "http://localhost", CertFile: "x", KeyFile: "y"},
		{URL: "http://localhost", CAFile: "missing"},
		{URL: "http://localhost", CAFile: "options.go"},
		{URL: "http://localhost", Token: "hidden", TokenFile: "x"},
		{URL: "http://localhost", Timeout: -1},
	} {
		if _, err := client.Dial(opt); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%+v: %v", opt, err)
		}
	}
}

// A ticket in the URL is sent as a bearer token, and is in no error.
func TestTicket(t *testing.T) {
	f := newFake(t, status(http.StatusNoContent))
	s := dial(t, client.Options{URL: f.URL + "/?ticket=hidden", Token: "other"})
	if err := s.Disk("a").Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	requests, _ := f.seen()
	if r := requests[0]; r.Header.Get("Authorization") != "Bearer hidden" || r.URL.RawQuery != "" || strings.Contains(s.String(), "hidden") {
		t.Errorf("%v %v, %s", r.URL, r.Header, s)
	}
	f.Close()
	gone := dial(t, client.Options{URL: f.URL + "/?ticket=hidden", Patience: -1})
	if err := gone.Disk("a").Flush(t.Context()); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: status(http.StatusOK), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	s := dial(t, client.Options{URL: "unix:" + path})
	if err := s.Ready(t.Context()); err != nil || s.String() != "unix:"+path {
		t.Errorf("%v, %s", err, s)
	}
	missing := dial(t, client.Options{URL: "unix:" + path + "x"})
	if err := missing.Ready(t.Context()); err == nil {
		t.Error("there is no such socket")
	}
}

// A server that stops sending is not waited for.
func TestStall(t *testing.T) {
	held := make(chan struct{})
	stall := func(w http.ResponseWriter, r *http.Request) {
		piece(10)(w, r)
		w.(http.Flusher).Flush()
		<-held
	}
	f := newFake(t, stall)
	defer close(held)
	s := dial(t, client.Options{URL: f.URL, Timeout: 300 * time.Millisecond, Patience: -1})
	if _, err := s.Disk("a").ReadAt(t.Context(), make([]byte, 100), 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	silent := newFake(t, func(http.ResponseWriter, *http.Request) { <-held })
	s = dial(t, client.Options{URL: silent.URL, Timeout: 300 * time.Millisecond, Patience: -1})
	if err := s.Ready(t.Context()); err == nil {
		t.Error("an answer from a silent server")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	patient := dial(t, client.Options{URL: silent.URL})
	if err := patient.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// What is no problem is told too, and drives no terminal.
func TestPlainError(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not\x1b[2J here"+strings.Repeat("!", 1000)+"\nmore", http.StatusTeapot)
	})
	err := dial(t, client.Options{URL: f.URL}).Ready(t.Context())
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Status != http.StatusTeapot || client.Kind(err) != "" {
		t.Errorf("%v", err)
	}
	if text := err.Error(); strings.Contains(text, "\x1b") || strings.Contains(text, "more") || !strings.Contains(text, "not\ufffd[2J here") || len(text) > 400 {
		t.Errorf("%q", text)
	}
}

// Losses counts connections that end out of the blue, and no others.
func TestLosses(t *testing.T) {
	f := newFake(t, status(http.StatusNoContent), status(http.StatusNoContent, "Connection", "close"), status(http.StatusNoContent), hangUp, status(http.StatusNoContent))
	s := dial(t, client.Options{URL: f.URL})
	for i, want := range []bool{false, false, false, true} {
		before := s.Losses()
		if err := s.Disk("a").Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.Losses() != before; got != want {
			t.Errorf("request %d: a loss: %v", i, got)
		}
	}
	before := s.Losses()
	f.CloseClientConnections()
	for deadline := time.Now().Add(10 * time.Second); s.Losses() == before && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if s.Losses() == before {
		t.Error("an idle connection that the server closed is no loss")
	}
}
