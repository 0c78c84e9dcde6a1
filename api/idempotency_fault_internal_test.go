package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// What was not done leaves the key free; what was done, in part, does not.
func TestOnceFailures(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		status int
		kept   bool
	}{
		"not there":        {storage.ErrNotFound, 404, false},
		"invalid":          {invalid("n", ruleValue, "is odd"), 400, false},
		"no space":         {storage.ErrNoSpace, 507, false},
		"internal":         {errors.New("cause"), 500, false},
		"nothing applied":  {&service.BatchError{Applied: 0, Err: storage.ErrConflict}, 409, false},
		"some applied":     {&service.BatchError{Applied: 3, Err: storage.ErrConflict}, 409, true},
		"some, then a bug": {&service.BatchError{Applied: 1, Err: errors.New("cause")}, 500, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOnce(t, t.TempDir(), nil)
			o.handler = func(w http.ResponseWriter, r *http.Request) { o.s.fail(w, r, c.err) }
			first := o.send(t, "/once/a", "{}", "Idempotency-Key", "k")
			o.want(t, first, c.status, 1, fmt.Sprintf(`"request_id":%q`, first.header.Get("X-Request-Id")))
			if c.kept {
				p := o.send(t, "/once/a", "{}", "Idempotency-Key", "k")
				if o.want(t, p, c.status, 1, ""); p.body != first.body || !p.replayed() || p.header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%v: %s, was %s", p.header, p.body, first.body)
				}
				return
			}
			o.handler = o.created
			o.want(t, o.send(t, "/once/b", "{}", "Idempotency-Key", "k"), 201, 2, "")
		})
	}
}

// A client that goes away changes nothing of what becomes of its request.
func TestOnceClientGone(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	entered, leave := make(chan context.Context), make(chan struct{})
	o.handler = func(w http.ResponseWriter, r *http.Request) {
		entered <- r.Context()
		<-leave
		if err := r.Context().Err(); err != nil {
			t.Error(err)
		}
		o.created(w, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := o.call(ctx, "/once/a", "{}", "Idempotency-Key", "k")
		failed <- err
	}()
	inside := <-entered
	// One who waits may go away, too: nothing begins for it.
	waiting, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := o.call(waiting, "/once/a", "{}", "Idempotency-Key", "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-inside.Done():
		t.Error("the handler is told that its client is gone")
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	p := o.send(t, "/once/a", "{}", "Idempotency-Key", "k")
	if o.want(t, p, 201, 1, `"run":1`); !p.replayed() {
		t.Error("nothing was kept")
	}
}

// Of one that panics, or is stopped with the server, nobody knows what it did.
func TestOnceBrokenOff(t *testing.T) {
	for name, c := range map[string]struct {
		handler func(o *onceServer, w http.ResponseWriter, r *http.Request)
		status  int // 0: the connection is cut
	}{
		"panic": {func(*onceServer, http.ResponseWriter, *http.Request) { panic("so it is") }, 500},
		"late panic": {func(_ *onceServer, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/made")
			w.WriteHeader(201)
			panic("so it is")
		}, 500},
		"abort": {func(*onceServer, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0},
		"stop": {func(o *onceServer, w http.ResponseWriter, r *http.Request) {
			o.requests.Stop()
			<-r.Context().Done()
			o.s.fail(w, r, r.Context().Err())
		}, 0},
		"stop with an error": {func(o *onceServer, w http.ResponseWriter, r *http.Request) {
			o.requests.Stop()
			<-r.Context().Done()
			o.s.fail(w, r, storage.ErrClosed)
		}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOnce(t, t.TempDir(), nil)
			o.handler = func(w http.ResponseWriter, r *http.Request) { c.handler(o, w, r) }
			p, err := o.call(t.Context(), "/once/a", "{}", "Idempotency-Key", "k")
			if (err != nil) != (c.status == 0) || p.status != c.status || p.header.Get("Location") != "" {
				t.Errorf("%v, %d %v", err, p.status, p.header)
			}
			o.restart(t)
			o.handler = o.created
			o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 409, 1, "not known")
			o.want(t, o.send(t, "/once/a", `{"n":1}`, "Idempotency-Key", "k"), 409, 1, "another request")
			o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k2"), 201, 2, "")
			o.ahead.Store(int64(keyTime))
			o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 201, 3, "")
		})
	}
}

// A process that ends between the beginning and the answer: the request is never
// made again. One that ends later has the answer.
func TestOnceCrash(t *testing.T) {
	dir, crashed := t.TempDir(), t.TempDir()
	snapshot := func(to string) {
		text, err := os.ReadFile(filepath.Join(dir, "state.db"))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "state.db"), text, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	o := startOnce(t, dir, nil)
	o.handler = func(w http.ResponseWriter, r *http.Request) {
		snapshot(crashed)
		o.created(w, r)
	}
	first := o.send(t, "/once/a", "{}", "Idempotency-Key", "k")
	answered := t.TempDir()
	snapshot(answered)

	before := startOnce(t, crashed, o.created)
	before.want(t, before.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 409, 0, "not known")
	after := startOnce(t, answered, o.created)
	p := after.send(t, "/once/a", "{}", "Idempotency-Key", "k")
	if after.want(t, p, 201, 0, first.body); !p.replayed() {
		t.Error("it is not the old answer")
	}
}

// Who cannot write down that a request begins does not begin it; who cannot write
// down its answer gives it, and never runs it again.
func TestOnceStateFails(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	o.handler = func(w http.ResponseWriter, r *http.Request) {
		if err := o.db.Close(); err != nil {
			t.Error(err)
		}
		o.created(w, r)
	}
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 201, 1, `"run":1`)
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 500, 1, "")
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "other"), 500, 1, "")
	o.restart(t)
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k"), 409, 1, "not known")
}

// An answer that is too long to be kept is sent, and its request not made again.
func TestOnceLargeAnswer(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	long := strings.Repeat("0123456789", maxAnswer/10)
	for n, extra := range []string{"012345", "0123456"} { // the most that is kept, and one more
		o.handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long+extra) }
		key := fmt.Sprint("k", n)
		if p := o.send(t, "/once/a", "{}", "Idempotency-Key", key); p.status != 200 || len(p.body) != maxAnswer+n {
			t.Fatalf("%d, %d bytes", p.status, len(p.body))
		}
		p := o.send(t, "/once/a", "{}", "Idempotency-Key", key)
		switch {
		case n == 0 && (p.body != long+extra || !p.replayed()):
			t.Errorf("%d, %d bytes", p.status, len(p.body))
		case n == 1:
			o.want(t, p, 409, 2, "too long to be kept")
		}
	}
}
