package conn_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/api/conn"
)

const (
	stall = 500 * time.Millisecond
	late  = time.Minute
)

// watched serves h over a listener whose connections stall, and tells of each body
// that was not sent to its end.
func watched(t *testing.T, l net.Listener, secure bool, h http.Handler) (srv *httptest.Server, stalled *atomic.Int64) {
	t.Helper()
	stalled = new(atomic.Int64)
	srv = httptest.NewUnstartedServer(h)
	if l != nil {
		srv.Listener.Close()
		srv.Listener = l
	}
	srv.Listener = conn.Wrap(srv.Listener, conn.Options{Stall: stall, Stalled: stalled})
	srv.Config.ConnContext = conn.Context
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv, stalled
}

// connect dials with a receive buffer that is soon full.
func connect(t *testing.T, srv *httptest.Server, secure bool) net.Conn {
	t.Helper()
	address := srv.Listener.Addr()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	c, err := dialer.DialContext(t.Context(), address.Network(), address.String())
	if err != nil {
		t.Fatal(err)
	}
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // of this test
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * late))
	return c
}

// A client that takes nothing, or bytes, is cut off on every kind of connection;
// one that takes enough is not, however long it takes.
func TestStall(t *testing.T) {
	const size = 16 << 20
	d, content := image(t, size)
	plain := serve(d)
	memory := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range size / 4096 {
			if _, err := w.Write(content[:4096]); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
	unix := func(t *testing.T) net.Listener {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, test := range []struct {
		name   string
		unix   bool
		secure bool
		h      http.Handler
	}{{"file", false, false, plain}, {"memory", false, false, memory}, {"unix", true, false, plain}, {"tls", false, true, plain}} {
		t.Run(test.name, func(t *testing.T) {
			var l net.Listener
			if test.unix {
				l = unix(t)
			}
			srv, stalled := watched(t, l, test.secure, test.h)
			request := fmt.Sprintf("GET /?off=0&n=%d HTTP/1.1\r\nHost: x\r\n\r\n", size)
			c := connect(t, srv, test.secure)
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			for start := time.Now(); stalled.Load() == 0; {
				if time.Since(start) > late {
					t.Fatal("nobody was cut off")
				}
				time.Sleep(stall / 20)
				if _, err := c.Read(make([]byte, 1)); err != nil {
					break
				}
			}
			steady := connect(t, srv, test.secure)
			if _, err := io.WriteString(steady, request); err != nil {
				t.Fatal(err)
			}
			for range 30 {
				time.Sleep(stall / 10)
				if _, err := io.CopyN(io.Discard, steady, 64<<10); err != nil {
					t.Fatalf("cut off: %v", err)
				}
			}
			if n := stalled.Load(); n != 1 {
				t.Errorf("%d were cut off", n)
			}
		})
	}
}

// A connection that has waited for its client, and was idle after that, is as good
// as new: a deadline is not left behind.
func TestIdleAfterWaiting(t *testing.T) {
	const size = 8 << 20
	d, content := image(t, size)
	srv, stalled := watched(t, nil, false, serve(d))
	client := srv.Client()
	for range 2 {
		resp, err := client.Get(fmt.Sprintf("%s/?off=0&n=%d", srv.URL, size))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(stall / 4) // its buffers are full
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		time.Sleep(2 * stall)
	}
	if stalled.Load() != 0 {
		t.Error("somebody was cut off")
	}
}

// A source that takes its time is not the client's fault.
func TestSlowSource(t *testing.T) {
	srv, stalled := watched(t, nil, false, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 4 {
			_, _ = w.Write(make([]byte, 4<<20))
			time.Sleep(2 * stall)
		}
	}))
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != 16<<20 || err != nil || stalled.Load() != 0 {
		t.Errorf("%d bytes, %v, %d cut off", n, err, stalled.Load())
	}
}
