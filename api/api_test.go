package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fixture is a server over a directory of images.
type fixture struct {
	dir  string
	url  string
	svc  *service.Service
	log  *logBuffer
	http *http.Client

	server   *httptest.Server
	requests *api.Requests
	closed   bool // the test has closed the service
}

// A logBuffer keeps what the server logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start serves a new directory as the product does, on a wrapped listener.
// mappers are images of the format "fake".
func start(t testing.TB, opt api.Options, mappers map[string]storage.Mapper) *fixture {
	t.Helper()
	return startWith(t, opt, service.Options{}, mappers)
}

// startWith starts one with options of the service.
func startWith(t testing.TB, opt api.Options, with service.Options, mappers map[string]storage.Mapper) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), log: new(logBuffer)}
	for name := range mappers {
		f.write(t, name, nil)
	}
	db := state.New(filepath.Join(f.dir, ".extentd"))
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	with.Dir, with.State, with.Recheck = f.dir, db, -1
	if opt.State == nil {
		opt.State = db
	}
	with.Formats = map[string]service.Driver{"raw": rawDriver(), "qcow2": service.QCOW2Driver(), "fake": fakeDriver(mappers)}
	svc, err := service.New(with)
	if err != nil {
		t.Fatal(err)
	}
	f.svc = svc
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if opt.Requests == nil {
		opt.Requests = new(api.Requests)
	}
	f.requests = opt.Requests
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = api.NewServer(api.New(svc, opt), opt.Logger)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Listener = conn.Wrap(srv.Listener, conn.Options{})
	srv.Start()
	f.url, f.server = srv.URL, srv
	f.http = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(func() {
		f.http.CloseIdleConnections()
		srv.Close()
		if f.closed {
			return
		}
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// stop closes the service before the end of the test, so that others can look at
// the images.
func (f *fixture) stop(t testing.TB) {
	t.Helper()
	f.closed = true
	if err := f.requests.Wait(t.Context()); err != nil { // one that has been answered may have the image still
		t.Error(err)
	}
	if err := f.svc.Close(); err != nil {
		t.Error(err)
	}
}

// unopenable stands for an image that cannot be opened.
type unopenable struct {
	storage.Mapper
	err error
}

// fakeDriver opens the mapper that is called as the file is.
func fakeDriver(mappers map[string]storage.Mapper) service.Driver {
	return service.Driver{
		Extensions: []string{".fake"},
		Open: func(_ context.Context, node *storage.Node, _ service.DriverOptions) (service.Layer, error) {
			if bad, ok := mappers[node.Name()].(unopenable); ok {
				return service.Layer{}, bad.err
			}
			layer := service.Layer{Mapper: mappers[node.Name()]}
			if _, full := layer.Mapper.(*fullMapper); full {
				layer.Check = func(context.Context, string) (*service.CheckReport, error) { return nil, storage.ErrNoSpace }
				layer.Snapshots = fullKeeper{}
			}
			return layer, nil
		},
		Check: func(_ context.Context, node *storage.Node, _ service.CheckOptions) (*service.CheckReport, error) {
			return nil, mappers[node.Name()].(unopenable).err
		},
	}
}

// rawDriver has no room for an image called full.raw.
func rawDriver() service.Driver {
	d := service.RawDriver()
	create := d.Create
	d.Create = func(ctx context.Context, node *storage.Node, opt service.CreateOptions) error {
		if opt.Name == "full.raw" {
			return fmt.Errorf("fake: %w", storage.ErrNoSpace)
		}
		return create(ctx, node, opt)
	}
	return d
}

func (f *fixture) write(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// random writes a raw image of n random bytes and returns them.
func (f *fixture) random(t testing.TB, name string, n int) []byte {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed of %s: %d", name, seed)
	content := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = r.Read(content)
	f.write(t, name, content)
	return content
}

// qemu runs a tool of QEMU in the directory.
func (f *fixture) qemu(t testing.TB, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("%v: apt-get install qemu-utils", err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = f.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// An answer is a response that has been read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // what ended the body, if not its end
}

// do sends a request without a body; the headers are names and values in turn.
func (f *fixture) do(t testing.TB, method, path string, headers ...string) answer {
	t.Helper()
	return f.send(t, method, path, nil, headers...)
}

// send sends a request with a body.
func (f *fixture) send(t testing.TB, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	a, err := f.trySend(t.Context(), method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// trySend allows for failure of the connection.
func (f *fixture) trySend(ctx context.Context, method, path string, body []byte, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body == nil {
		req.Body = nil
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, read, err}, nil
}

// json sends a request with a JSON body.
func (f *fixture) json(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	return f.send(t, method, path, []byte(body), append(headers, "Content-Type", mediaOf(method))...)
}

// mediaOf is what the body of a call is.
func mediaOf(method string) string {
	if method == http.MethodPatch {
		return "application/merge-patch+json"
	}
	return "application/json"
}

func (f *fixture) get(t testing.TB, path string, headers ...string) answer {
	t.Helper()
	return f.do(t, http.MethodGet, path, headers...)
}

// expect is get for an answer of the given status that arrives whole.
func (f *fixture) expect(t testing.TB, status int, path string, headers ...string) answer {
	t.Helper()
	a := f.get(t, path, headers...)
	if a.status != status || a.err != nil {
		t.Fatalf("GET %s %v: %d, want %d: %v\n%.1000s", path, headers, a.status, status, a.err, a.body)
	}
	return a
}

// problem wants a problem of the given type.
func (a answer) problem(t testing.TB, status int, name string) api.Problem {
	t.Helper()
	var p api.Problem
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("status %d, want %d: %v\n%.1000s", a.status, status, a.header, a.body)
	}
	decode(t, a.body, &p)
	if p.Type != "/problems/"+name || p.Status != status || p.Title == "" || p.Detail == "" || p.Instance == "" {
		t.Fatalf("%s, want %s", a.body, name)
	}
	if p.RequestId == nil || *p.RequestId != a.header.Get("X-Request-Id") {
		t.Errorf("request_id and X-Request-Id differ: %s, %v", a.body, a.header)
	}
	return p
}

func decode(t testing.TB, data []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%v\n%.1000s", err, data)
	}
}

// A fakeMapper is an image without bytes: what it says of every unit is up to
// at. Only its map can be read.
type fakeMapper struct {
	size, unit int64
	at         func(off int64) (storage.Mapping, error)
	fetched    func(off, n int64) // called at every fetch, if set
	limits     storage.Limits
}

func (m *fakeMapper) Size() int64  { return m.size }
func (m *fakeMapper) Close() error { return nil }

func (m *fakeMapper) Limit(_ context.Context, which storage.Limit) (int64, error) {
	return [...]int64{m.limits.Minimum, m.limits.Preferred, 0, 0, 0, 0}[which], nil
}

// table is how much a fetch volunteers, in units.
const table = 512

func (m *fakeMapper) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := storage.CheckRange(off, n, m.size); err != nil {
		return err
	}
	if m.fetched != nil {
		m.fetched(off, n)
	}
	span := table * m.unit
	lo, hi := off/span*span, min((off+n+span-1)/span*span, m.size)
	for at := lo; at < hi; at += m.unit {
		if err := ctx.Err(); err != nil {
			return err
		}
		one, err := m.at(at)
		if err != nil {
			return fmt.Errorf("fake: unit at %d: %w", at, err)
		}
		one.Offset, one.Length = at, min(m.unit, m.size-at)
		if err := into.Add(one); err != nil {
			return err
		}
	}
	return nil
}

// striped is an image of which every other unit is allocated.
func striped(size, unit int64) *fakeMapper {
	node := storage.NewNode("striped.bin", nil, storage.NodeOptions{})
	return &fakeMapper{size: size, unit: unit, at: func(off int64) (storage.Mapping, error) {
		if off/unit%2 == 0 {
			return storage.Mapping{Status: storage.Local | storage.Alloc | storage.OffsetValid, Node: node, NodeOffset: off + 1<<20}, nil
		}
		return storage.Mapping{Status: storage.Local | storage.Zero}, nil
	}}
}
