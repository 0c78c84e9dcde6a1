package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/client/transfer"
)

// A slowProxy stands before a server, takes its time over each request that moves
// data, and remembers it.
type slowProxy struct {
	*httptest.Server
	mu    sync.Mutex
	delay time.Duration
	spans []move
}

// A move is data that was asked for, or sent.
type move struct {
	method     string
	off, bytes int64
}

func newSlowProxy(t testing.TB, to string, delay time.Duration) *slowProxy {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	p := &slowProxy{delay: delay}
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, // and its host
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				w.WriteHeader(http.StatusBadGateway)
			}
		},
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var first, last int64
		text := strings.TrimPrefix(r.Header.Get("Range"), "bytes=") + strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes ")
		if n, _ := fmt.Sscanf(text, "%d-%d", &first, &last); n == 2 {
			p.mu.Lock()
			p.spans = append(p.spans, move{r.Method, first, last - first + 1})
			wait := p.delay
			p.mu.Unlock()
			time.Sleep(wait)
		}
		if q := r.URL.Query(); q.Has("only") && q.Get("length") != "" {
			off, _ := strconv.ParseInt(q.Get("offset"), 10, 64)
			length, _ := strconv.ParseInt(q.Get("length"), 10, 64)
			p.mu.Lock()
			p.spans = append(p.spans, move{r.Method, off, length})
			w = &slowWriter{ResponseWriter: w, pause: p.delay}
			p.mu.Unlock()
		}
		reverse.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// A slowWriter takes its time over each of some pieces.
type slowWriter struct {
	http.ResponseWriter
	pause time.Duration
	taken int64
}

func (w *slowWriter) Write(p []byte) (int, error) {
	const piece = 4 * mib
	n, err := w.ResponseWriter.Write(p)
	if before := w.taken; before/piece != (before+int64(n))/piece {
		time.Sleep(w.pause)
	}
	w.taken += int64(n)
	return n, err
}

func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// hurry forgets what was asked for, and takes no time anymore.
func (p *slowProxy) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans, p.delay = nil, 0
}

func (p *slowProxy) moved() []move {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.spans)
}

// interrupted begins a copy, kills it once its state tells of some progress, and
// returns how far that is.
func interrupted(t *testing.T, dir, state string, args ...string) int64 {
	t.Helper()
	cmd := exec.Command(program, append([]string{"copy", "--checkpoint", "20ms"}, args...)...)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for deadline := time.Now().Add(time.Minute); at < 8*mib; time.Sleep(5 * time.Millisecond) {
		if s, err := transfer.LoadState(state); err == nil {
			at = s.Point.Offset
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("no progress after a minute: %v\n%s", cmd.Wait(), &said)
		}
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Fatal("the copy was complete before it was killed")
	}
	s, err := transfer.LoadState(state)
	if err != nil {
		t.Fatal(err)
	}
	return s.Point.Offset
}

// A copyEnds are the ends of a copy that is interrupted, with a proxy at one of them.
type copyEnds struct {
	*maker
	s     *server
	proxy *slowProxy
	plain string // what the source holds
	args  []string
	state string
	file  string // of the target
}

func newCopyEnds(t *testing.T, target string) *copyEnds {
	m := newMaker(t, t.TempDir(), "resume")
	m.run("mkdir", "served")
	e := &copyEnds{maker: m, plain: m.raw("-plain.raw", 64*mib)}
	m.io(e.plain, m.write(0, 20*mib), m.write(25*mib, 30*mib), m.write(60*mib, 100*kib))
	m.run("cp", "--sparse=always", e.plain, "served/source.raw")
	e.s = serve(t, m.path("served"))
	e.proxy = newSlowProxy(t, e.s.url, 60*time.Millisecond)
	switch target {
	case "http":
		e.file, e.state = "served/target.qcow2", m.path("the.state")
		e.args = []string{"--resume-file", e.state, e.plain, e.proxy.URL + "/target.qcow2"}
	default:
		e.file = m.file("-target." + target)
		e.state = m.path(e.file) + ".partial.state"
		e.args = []string{e.proxy.URL + "/source.raw", e.file}
	}
	return e
}

// TestCopyResume kills a copy, and goes on with it: what is finished is not moved
// again.
func TestCopyResume(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"raw", "qcow2", "http"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			e := newCopyEnds(t, target)
			at := interrupted(t, e.dir, e.state, e.args...)
			if _, err := os.Stat(e.path(e.file)); err == nil && target != "http" {
				t.Error("what is not complete has its name already")
			}
			e.proxy.hurry()
			r := copyImage(t, e.dir, append([]string{"--resume", "--verify=" + fmt.Sprint(target != "http")}, e.args...)...)
			if want := checksumOf(readFile(t, e.path(e.plain))); !r.Resumed || r.Checksum != want {
				t.Errorf("%+v, want %s", r, want)
			}
			method := http.MethodGet
			if target == "http" { // of which samples are read, to know it by
				method = http.MethodPut
				e.s.stop()
			}
			for _, m := range e.proxy.moved() {
				if m.method == method && m.off < at {
					t.Errorf("%+v again, although everything before %d was finished", m, at)
				}
			}
			e.same(e.plain, e.file)
			if target != "raw" {
				e.checkClean(t, e.file)
			}
			if _, err := os.Stat(e.state); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the state is left: %v", err)
			}
		})
	}
}

// TestCopyResumeRefused: a copy goes on only if both ends are what they were.
func TestCopyResumeRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(e *copyEnds)
		want   string
	}{
		"source": {func(e *copyEnds) { must(t, e.s.put("source.raw", 5*mib, []byte("other"), true)) }, "source has changed"},
		"target": {func(e *copyEnds) {
			e.poke(e.file+".partial", 0, bytes.Repeat([]byte{1}, int(8*mib)))
		}, "target has changed"},
		"another target": {func(e *copyEnds) {
			e.run("cp", e.file+".partial", "other")
			e.run("mv", "other", e.file+".partial")
		}, "target has changed"},
		"no target":      {func(e *copyEnds) { e.run("rm", e.file+".partial") }, "cannot be resumed"},
		"nonsense":       {func(e *copyEnds) { must(t, os.WriteFile(e.state, []byte("{}"), 0o600)) }, "cannot be resumed"},
		"another source": {func(e *copyEnds) { e.args[0] = e.s.url + "/source.raw" }, "was one of"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newCopyEnds(t, "raw")
			interrupted(t, e.dir, e.state, e.args...)
			e.proxy.hurry()
			test.change(e)
			refuseCopy(t, e.dir, test.want, append([]string{"--resume"}, e.args...)...)
			r := copyImage(t, e.dir, append([]string{"--verify"}, e.args...)...)
			if r.Resumed {
				t.Errorf("%+v", r)
			}
			e.same("served/source.raw", e.file)
		})
	}
}

// TestCopyChangingSource: a source that is written to meanwhile is an error, unless
// that is allowed.
func TestCopyChangingSource(t *testing.T) {
	t.Parallel()
	e := newCopyEnds(t, "raw")
	write := func(stop chan struct{}) {
		for i := byte(0); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				_ = e.s.put("source.raw", 63*mib, []byte{i}, false)
			}
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { write(stop) })
	refuseCopy(t, e.dir, "the source has changed", e.args...)
	if files, _ := filepath.Glob(e.path(e.file)); len(files) > 0 {
		t.Errorf("%v is there", files)
	}
	refuseCopy(t, e.dir, "the source has changed", e.args[0], e.s.url+"/made.raw")
	e.s.expectProblem(t, http.StatusNotFound, "not-found", "/v1/images/made.raw")
	copyImage(t, e.dir, append([]string{"--allow-changes"}, e.args...)...)
	close(stop)
	wg.Wait()
}

// TestCopyTwice: two copies to one target do not get into each other's way.
func TestCopyTwice(t *testing.T) {
	t.Parallel()
	e := newCopyEnds(t, "qcow2")
	first := exec.Command(program, append([]string{"copy"}, e.args...)...)
	first.Dir = e.dir
	must(t, first.Start())
	must(t, eventually(func() error { _, err := os.Stat(e.state); return err }))
	refuseCopy(t, e.dir, "another copy", e.args...)
	refuseCopy(t, e.dir, "in use", append([]string{"--resume"}, e.args...)...)
	e.proxy.hurry()
	must(t, first.Wait())
	e.same(e.plain, e.file)
}

// TestCopyRestart kills the server, the one that is read from or the one that is
// written to, and starts another one: the copy goes on, and is whole.
func TestCopyRestart(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"raw", "http", "direct"} {
		for _, end := range []string{"killed", "stopped"} {
			t.Run(target+" "+end, func(t *testing.T) {
				t.Parallel()
				e := newCopyEnds(t, target)
				begun := func() bool { return len(e.proxy.moved()) >= 4 }
				if target == "direct" {
					slow := otherServer(t, "nbdkit", "-f", "-r", "-U", "SOCKET", "--filter=rate", "file", e.path(e.plain), "rate=200M")
					e.file, e.args = "served/target.qcow2", []string{slow, e.s.url + "/target.qcow2"}
					begun = func() bool {
						info, err := os.Stat(e.path(e.file))
						return err == nil && info.Size() > 2*mib
					}
				}
				cmd := exec.Command(program, append([]string{"copy", "--checkpoint", "500ms"}, e.args...)...)
				cmd.Dir = e.dir
				var said bytes.Buffer
				cmd.Stdout, cmd.Stderr = &said, &said
				must(t, cmd.Start())
				must(t, eventually(func() error {
					if !begun() {
						return errors.New("the copy does not begin")
					}
					return nil
				}))
				address := strings.TrimPrefix(e.s.url, "http://")
				if end == "killed" {
					e.s.kill()
				} else {
					e.s.stop()
				}
				time.Sleep(300 * time.Millisecond)
				e.s = serveAt(t, address, e.path("served"))
				if err := cmd.Wait(); err != nil {
					t.Fatalf("%v\n%s", err, &said)
				}
				if want := checksumOf(readFile(t, e.path(e.plain))); !strings.Contains(said.String(), want) {
					t.Errorf("%s, want %s", &said, want)
				}
				e.s.stop()
				e.same(e.plain, e.file)
			})
		}
	}
}
