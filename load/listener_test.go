package load_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/load"
)

// bounded listens with a bound, and hands out what it accepts.
func bounded(t *testing.T, c *load.Connections, plain bool) (address string, accepted chan net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listener(inner, plain)
	accepted = make(chan net.Conn, 100)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			accepted <- conn
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		accepting.Wait()
		close(accepted)
		for conn := range accepted {
			_ = conn.Close()
		}
	})
	return inner.Addr().String(), accepted
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// One too many is told, in words that a client understands, also while it sends.
func TestRefusal(t *testing.T) {
	var counts load.Counts
	bound := load.NewConnections(1, &counts)
	address, accepted := bounded(t, bound, true)
	dial(t, address)
	first := <-accepted
	for range 3 {
		c := dial(t, address)
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 20<<10)+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !resp.Close || !strings.HasSuffix(string(body), "}\n") {
			t.Errorf("%v, %v: %q", resp, err, body)
		}
	}
	if counts.Refused.Load() != 3 || bound.Open() != 1 {
		t.Errorf("%d refused, %d open", counts.Refused.Load(), bound.Open())
	}
	for range 2 { // closed twice, it leaves once
		_ = first.Close()
	}
	dial(t, address)
	(<-accepted).Close()
	if bound.Open() != 0 {
		t.Errorf("%d open", bound.Open())
	}
}

// Where clients do not speak HTTP in the clear, one too many is closed, and
// nothing else.
func TestRefusalWithoutWords(t *testing.T) {
	address, accepted := bounded(t, load.NewConnections(1, new(load.Counts)), false)
	dial(t, address)
	<-accepted
	c := dial(t, address)
	if text, err := io.ReadAll(c); len(text) > 0 || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// A flood of those who do not listen does not keep others from being refused.
func TestRefusalOfMany(t *testing.T) {
	var counts load.Counts
	address, accepted := bounded(t, load.NewConnections(1, &counts), true)
	dial(t, address)
	<-accepted
	var conns []net.Conn
	for range 300 {
		conns = append(conns, dial(t, address))
	}
	for _, c := range conns {
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Fatal(err)
		}
	}
	if counts.Refused.Load() != 300 {
		t.Errorf("%d refused", counts.Refused.Load())
	}
}
