package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
)

// A onceServer has one route that honours Idempotency-Key, and a clock of its own.
type onceServer struct {
	dir      string
	handler  http.HandlerFunc
	runs     atomic.Int64 // of the handler
	ahead    atomic.Int64 // of the clock, ns
	requests *Requests
	db       *state.DB
	s        *server
	web      *httptest.Server
}

func startOnce(t *testing.T, dir string, handler http.HandlerFunc) *onceServer {
	t.Helper()
	o := &onceServer{dir: dir, handler: handler}
	o.open(t)
	t.Cleanup(func() { o.close(t) })
	return o
}

// callers are who may be meant by the header Caller of a test.
func callers() map[string]*auth.Caller {
	return map[string]*auth.Caller{
		"":         auth.Anyone(),
		"token":    {Kind: auth.KindToken, Name: "ab", Subject: "c"},
		"other":    {Kind: auth.KindToken, Name: "a", Subject: "bc"},
		"jwt":      {Kind: auth.KindJWT, Name: "ab", Subject: "c"},
		"ticket":   {Kind: auth.KindTicket, Name: "ab", Subject: "c", Ticket: "1"},
		"ticket 2": {Kind: auth.KindTicket, Name: "ab", Subject: "c", Ticket: "2"},
	}
}

func (o *onceServer) open(t *testing.T) {
	o.db, o.requests = state.New(o.dir), new(Requests)
	o.s = newServer(Options{State: o.db, Requests: o.requests})
	o.s.answers.now = func() time.Time { return time.Now().Add(time.Duration(o.ahead.Load())) }
	type body struct {
		N *int64 `json:"n,omitempty"`
	}
	run := func(w http.ResponseWriter, r *http.Request) {
		o.runs.Add(1)
		o.handler(w, r)
	}
	known := callers()
	next := o.s.router([]route{{method: http.MethodPost, pattern: "/once/{x}", access: public(), body: bodyOf[body](maxBatch, mediaJSON), handler: run, once: true}})
	o.web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(auth.NewContext(r.Context(), known[r.Header.Get("Caller")])))
	}))
}

// close ends the server as at a clean stop.
func (o *onceServer) close(t *testing.T) {
	o.web.Close()
	if err := o.requests.Wait(t.Context()); err != nil && t.Context().Err() == nil {
		t.Error(err)
	}
	if err := o.db.Close(); err != nil {
		t.Error(err)
	}
}

func (o *onceServer) restart(t *testing.T) {
	o.close(t)
	o.open(t)
}

// A reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

func (p reply) replayed() bool { return p.header.Get("Idempotency-Replayed") == "true" }

// call sends a request; the headers are names and values in turn.
func (o *onceServer) call(ctx context.Context, path, body string, headers ...string) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.web.URL+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := o.web.Client().Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(got)}, err
}

func (o *onceServer) send(t *testing.T, path, body string, headers ...string) reply {
	t.Helper()
	p, err := o.call(t.Context(), path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// want fails unless the reply is of the status, from the handler as many times
// altogether, and contains the text.
func (o *onceServer) want(t *testing.T, p reply, status int, runs int64, text string) {
	t.Helper()
	if p.status != status || o.runs.Load() != runs || !strings.Contains(p.body, text) {
		t.Fatalf("%d after %d runs, want %d after %d with %q: %.300s", p.status, o.runs.Load(), status, runs, text, p.body)
	}
}

// created answers each request differently.
func (o *onceServer) created(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Location", fmt.Sprintf("/made/%d", o.runs.Load()))
	h.Set("ETag", `"m-1"`)
	h.Set("Retry-After", "3")
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"run":%d,"body":%q}`, o.runs.Load(), body)
}

func TestOnceReplays(t *testing.T) {
	o := startOnce(t, filepath.Join(t.TempDir(), "state"), nil)
	o.handler = o.created
	first := o.send(t, "/once/a", `{"n": 1}`, "Idempotency-Key", "k")
	o.want(t, first, 201, 1, `{"run":1,"body":"{\"n\": 1}"}`)
	if first.replayed() || first.header.Get("Retry-After") != "3" {
		t.Errorf("%v", first.header)
	}
	for n := range 4 {
		if n == 2 {
			o.restart(t)
		}
		p := o.send(t, "/once/a", `{"n": 1}`, "Idempotency-Key", "k")
		o.want(t, p, 201, 1, first.body)
		if !p.replayed() || p.body != first.body {
			t.Errorf("%v, %s", p.header, p.body)
		}
		for _, name := range []string{"Location", "Etag", "Content-Type", "Content-Length"} {
			if p.header.Get(name) != first.header.Get(name) {
				t.Errorf("%s is %q, was %q", name, p.header.Get(name), first.header.Get(name))
			}
		}
		if p.header.Get("X-Request-Id") == first.header.Get("X-Request-Id") || p.header.Get("X-Request-Id") == "" {
			t.Error("a replay is a request of its own")
		}
	}
	o.want(t, o.send(t, "/once/a", `{"n": 1}`, "Idempotency-Key", "another"), 201, 2, `"run":2`)
	for runs := range int64(2) {
		p := o.send(t, "/once/a", `{"n": 1}`)
		o.want(t, p, 201, 3+runs, fmt.Sprintf(`"run":%d`, 3+runs))
	}
}

func TestOnceOtherRequest(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	o.handler = o.created
	o.want(t, o.send(t, "/once/a", `{"n":1}`, "Idempotency-Key", "k", "If-Match", `"x"`), 201, 1, "")
	for name, other := range map[string][]string{
		"body":             {"/once/a", `{"n":2}`, "If-Match", `"x"`},
		"path":             {"/once/b", `{"n":1}`, "If-Match", `"x"`},
		"no condition":     {"/once/a", `{"n":1}`},
		"another one":      {"/once/a", `{"n":1}`, "If-Match", `"y"`},
		"a further one":    {"/once/a", `{"n":1}`, "If-Match", `"x"`, "If-None-Match", "*"},
		"the opposite one": {"/once/a", `{"n":1}`, "If-None-Match", `"x"`},
	} {
		p := o.send(t, other[0], other[1], append(other[2:], "Idempotency-Key", "k")...)
		if o.want(t, p, 409, 1, "that of another request"); p.replayed() || strings.Contains(p.body, `"run"`) {
			t.Errorf("%s: %s", name, p.body)
		}
	}
	if p := o.send(t, "/once/a", `{"n":1}`, "Idempotency-Key", "k", "If-Match", `"x"`, "Accept", "text/plain"); !p.replayed() {
		t.Error("what decides nothing has decided")
	}
}

// Nobody gets an answer that was another's, though the key is the same.
func TestOnceOtherCaller(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	o.handler = o.created
	answers := map[string]string{}
	for name := range callers() {
		p := o.send(t, "/once/a", "{}", "Idempotency-Key", "k", "Caller", name)
		o.want(t, p, 201, int64(len(answers)+1), "")
		answers[name] = p.body
	}
	for name := range callers() {
		p := o.send(t, "/once/a", "{}", "Idempotency-Key", "k", "Caller", name)
		if o.want(t, p, 201, int64(len(answers)), ""); p.body != answers[name] || !p.replayed() {
			t.Errorf("%q got %s, was %s", name, p.body, answers[name])
		}
	}
}

func TestOnceKeys(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	o.handler = o.created
	for _, key := range []string{"", "a b", "a\tb", "é", "a\x7f", strings.Repeat("k", 256)} {
		r := httptest.NewRequest(http.MethodPost, "/once/a", strings.NewReader("{}"))
		r.Header["Content-Type"], r.Header["Idempotency-Key"] = []string{"application/json"}, []string{key}
		w := httptest.NewRecorder()
		o.web.Config.Handler.ServeHTTP(w, r)
		if w.Code != 400 || !strings.Contains(w.Body.String(), `"field":"Idempotency-Key"`) {
			t.Errorf("%q: %d %s", key, w.Code, w.Body)
		}
	}
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "a", "Idempotency-Key", "a"), 400, 0, `"field":"Idempotency-Key"`)
	for n, key := range []string{"!", "~", `"quoted"`, "a,b", "%41", strings.Repeat("k", 255)} {
		o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", key), 201, int64(n+1), "")
		o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", key), 201, int64(n+1), "")
	}
	bad := o.send(t, "/once/a", `{"m":1}`, "Idempotency-Key", "unused")
	o.want(t, bad, 400, 6, "there is no such member")
}

func TestOnceWithoutState(t *testing.T) {
	o := startOnce(t, "", nil)
	o.handler = o.created
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 422, 0, "--state")
	o.want(t, o.send(t, "/once/a", "{}"), 201, 1, "")
}

// Many at a time, with the same key: one is done, and all get its answer.
func TestOnceConcurrent(t *testing.T) {
	const keys, each = 5, 8
	o := startOnce(t, t.TempDir(), nil)
	o.handler = func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond)
		o.created(w, r)
	}
	var clients sync.WaitGroup
	var mu sync.Mutex
	replayed, bodies := 0, map[string]string{}
	for k := range keys {
		for range each {
			clients.Go(func() {
				key := fmt.Sprint("k", k)
				p, err := o.call(t.Context(), "/once/"+key, "{}", "Idempotency-Key", key)
				mu.Lock()
				defer mu.Unlock()
				if before, ok := bodies[key]; err != nil || p.status != 201 || ok && !strings.EqualFold(before, p.header.Get("Location")) {
					t.Errorf("%v, %+v", err, p)
				}
				bodies[key] = p.header.Get("Location")
				if p.replayed() {
					replayed++
				}
			})
		}
	}
	clients.Wait()
	if o.runs.Load() != keys || replayed != keys*(each-1) {
		t.Errorf("%d runs, %d replays", o.runs.Load(), replayed)
	}
	if n := len(o.s.answers.flights); n != 0 {
		t.Errorf("%d are still under way", n)
	}
}
