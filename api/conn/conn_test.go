package conn_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image is a raw device over a real file with data and holes, and its bytes.
func image(t testing.TB, size int64) (*block.Device, []byte) {
	t.Helper()
	content := make([]byte, size)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	fill := rand.NewChaCha8([32]byte{byte(seed)})
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; {
		n := min(int64(r.IntN(400<<10))&^4095, size-off)
		if n == 0 {
			n = min(4096, size-off)
		}
		if r.IntN(3) > 0 {
			if _, err := fill.Read(content[off : off+n]); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(content[off:off+n], off); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	return open(t, path), content
}

func open(t testing.TB, path string) *block.Device {
	t.Helper()
	ctx := context.Background()
	f, err := file.Open(ctx, path, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	img, err := raw.New(ctx, storage.NewNode("disk.raw", f, storage.NodeOptions{Check: true}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New([]storage.Mapper{img}, block.Options{Check: true})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// serve sends the range of ?off=&n= of the device.
func serve(d *block.Device) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		off, _ := strconv.ParseInt(r.FormValue("off"), 10, 64)
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		s, err := d.Stream(r.Context(), off, n)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer s.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		if _, err := conn.Send(w, r, s, n); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
}

func start(t *testing.T, h http.Handler, configure func(*httptest.Server)) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = conn.Wrap(srv.Listener, conn.Options{Stall: time.Minute})
	srv.Config.ConnContext = conn.Context
	if configure == nil {
		srv.Start()
	} else {
		configure(srv)
	}
	t.Cleanup(srv.Close)
	return srv
}

func get(c *http.Client, url string, off, n int64) ([]byte, error) {
	resp, err := c.Get(fmt.Sprintf("%s/?off=%d&n=%d", url, off, n))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// Every protocol that net/http speaks over a wrapped listener gets the bytes.
func TestSend(t *testing.T) {
	const size = 9<<20 + 123
	d, content := image(t, size)
	servers := map[string]func(*httptest.Server){
		"http": nil,
		"tls":  func(s *httptest.Server) { s.StartTLS() },
		"h2":   func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
	}
	ranges := [][2]int64{{0, 0}, {0, 1}, {5, 511}, {5, 512}, {5, 513}, {0, 4096}, {4000, 64 << 10}, {1, 64<<10 + 1}, {300 << 10, 3 << 20}, {0, size}, {size - 1, 1}}
	for name, configure := range servers {
		t.Run(name, func(t *testing.T) {
			srv := start(t, serve(d), configure)
			for _, r := range ranges {
				got, err := get(srv.Client(), srv.URL, r[0], r[1])
				if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
					t.Errorf("range %v: %d bytes, %v", r, len(got), err)
				}
			}
		})
	}
}

// Parallel ranges of one open file do not disturb each other.
func TestSendInParallel(t *testing.T) {
	const size = 4 << 20
	d, content := image(t, size)
	srv := start(t, serve(d), nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 25 {
				off := r.Int64N(size)
				n := r.Int64N(min(size-off, 300<<10) + 1)
				got, err := get(srv.Client(), srv.URL, off, n)
				if err != nil || !bytes.Equal(got, content[off:off+n]) {
					t.Errorf("range %d+%d: %d bytes, %v", off, n, len(got), err)
				}
			}
		})
	}
	wg.Wait()
	srv.Client().CloseIdleConnections()
}

// A file that shrinks under a download never ends the body cleanly.
func TestShrunkFileAbortsTheBody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	srv := start(t, serve(d), nil)
	if got, err := get(srv.Client(), srv.URL, 0, 8<<20); err == nil {
		t.Errorf("a whole body of %d bytes", len(got))
	}
}

// What is no stream passes through a wrapped connection unchanged.
func TestOtherBodiesPass(t *testing.T) {
	want := bytes.Repeat([]byte("extent"), 100_000)
	srv := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := io.Copy(w, bytes.NewReader(want)); err != nil {
			t.Error(err)
		}
	}), nil)
	got, err := get(srv.Client(), srv.URL, 0, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The header leaves with the first bytes of the body, in one segment.
func TestHeaderAndBodyAreOneWrite(t *testing.T) {
	d, content := image(t, 1<<20)
	srv := start(t, serve(d), nil)
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /?off=4096&n=4096 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(buf[:n], content[4096:8192]) {
		t.Errorf("the first read of the socket has %d bytes and not the whole answer", n)
	}
}
