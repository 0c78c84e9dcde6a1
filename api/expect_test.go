package api_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/api"
)

// A wire is a connection on which every byte is the test's.
type wire struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
}

func (f *fixture) dial(t testing.TB) *wire {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wire{t, c, bufio.NewReader(c)}
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.t.Fatal(err)
	}
}

// answer reads the next response, which may be an interim one.
func (w *wire) answer() answer {
	w.t.Helper()
	if err := w.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	line, err := w.in.Peek(len("HTTP/1.1 100"))
	if err != nil {
		w.t.Fatal(err)
	}
	if bytes.HasSuffix(line, []byte("100")) {
		for text := ""; text != "\r\n"; {
			if text, err = w.in.ReadString('\n'); err != nil {
				w.t.Fatal(err)
			}
		}
		return answer{status: 100}
	}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

// silent wants nothing to arrive for a while.
func (w *wire) silent() {
	w.t.Helper()
	if err := w.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.in.Peek(1); err == nil {
		got, _ := w.in.Peek(w.in.Buffered())
		w.t.Fatalf("arrived: %q", got)
	}
}

// The body is asked for only when all else is right.
func TestExpectContinue(t *testing.T) {
	f := start(t, api.Options{}, nil)
	content := f.random(t, "disk.raw", mib)
	head := func(headers string) string {
		return "PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + headers + "\r\n"
	}
	w := f.dial(t)
	for range 2 { // on one connection
		w.send(head("Content-Range: bytes 100-104/*\r\nContent-Length: 5\r\n"))
		if a := w.answer(); a.status != 100 {
			t.Fatalf("%d", a.status)
		}
		w.silent()
		w.send("hello")
		w.answer().noContent(t)
	}
	copy(content[100:], "hello")
	for refused, status := range map[string]int{
		"Content-Range: bytes 0-4/*\r\nContent-Length: 6\r\n":                                               400,
		"Content-Range: bytes 0-4/7\r\nContent-Length: 5\r\n":                                               400,
		"Content-Range: bytes 4-0/*\r\nContent-Length: 5\r\n":                                               400,
		"Content-Length: 5\r\n":                                                                             400,
		"Content-Range: bytes 9999999-9999999/*\r\nTransfer-Encoding: chunked\r\n":                          400,
		"Content-Range: bytes 0-4/*\r\nContent-Length: 5\r\nIf-Match: \"other\"\r\n":                        412,
		"Content-Range: bytes 0-4/*\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n":            415,
		"Content-Range: bytes 0-1048576/*\r\nContent-Length: 1048577\r\nContent-Type: application/json\r\n": 400,
	} {
		w := f.dial(t)
		w.send(head(refused))
		if a := w.answer(); a.status != status {
			t.Errorf("%q: %d, want %d: %s", refused, a.status, status, a.body)
		}
	}
	if !bytes.Equal(f.content(t, "disk.raw"), content) {
		t.Error("the image differs")
	}
}

// Malformed framing is refused, and the bytes before it lie inside the range.
func TestPutMalformedChunks(t *testing.T) {
	f := start(t, api.Options{}, nil)
	content := f.random(t, "disk.raw", mib)
	for _, body := range []string{"zz\r\n", "5\r\nhelloXX", "-1\r\n", "5;\x00\r\nhello\r\n", "ffffffffffffffff\r\n", "2\r\nhe\r\n0\r\n\r\n", "6\r\nhello!\r\n0\r\n\r\n"} {
		w := f.dial(t)
		w.send("PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: x\r\nContent-Range: bytes 100-104/*\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
		if err := w.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if a := w.answer(); a.status != 400 {
			t.Errorf("%q: %d", body, a.status)
		}
	}
	if !bytes.Equal(f.content(t, "disk.raw"), content) {
		t.Error("the image differs")
	}
}

// A client that is slow with its body holds up nobody.
func TestPutSlowClient(t *testing.T) {
	requests := new(api.Requests)
	f := start(t, api.Options{Requests: requests}, nil)
	names, content := f.disks(t)
	for _, name := range names {
		const n = 3 * mib
		slow := f.dial(t)
		slow.send(fmt.Sprintf("PUT /v1/images/%s/data HTTP/1.1\r\nHost: x\r\nContent-Range: %s\r\nContent-Length: %d\r\n\r\n", name, rangeOf(0, n), n))
		slow.send(strings.Repeat("s", mib+mib/2))
		model := bytes.Clone(content)
		path := "/v1/images/" + name
		f.put(t, name, 2*mib, []byte("fast")).noContent(t)
		f.json(t, "POST", path+"/zero", fmt.Sprintf(`{"offset":%d,"length":100}`, 4*mib)).noContent(t)
		f.json(t, "POST", path+"/trim", fmt.Sprintf(`{"offset":0,"length":%d}`, n)).noContent(t)
		f.json(t, "POST", path+"/flush", `{}`).noContent(t)
		f.json(t, "PATCH", path, fmt.Sprintf(`{"size":%d}`, diskSize+mib))
		f.content(t, name)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if requests.Wait(ctx) == nil {
			t.Error("the upload is not under way")
		}
		cancel()
		slow.send(strings.Repeat("s", n-mib-mib/2))
		slow.answer().noContent(t)
		clear(model[4*mib : 4*mib+100])
		copy(model[2*mib:n], strings.Repeat("s", n))
		if got := f.content(t, name); !bytes.Equal(got[2*mib:diskSize], model[2*mib:]) {
			t.Errorf("%s differs", name)
		}
	}
	f.dial(t).send("PUT /v1/images/disk.raw/data HTTP/1.1\r\nHost: x\r\nContent-Length: 5243392\r\n\r\n")
	f.server.CloseClientConnections()
	if err := requests.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}
