package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mintOpen mints a ticket of a server without authentication.
func mintOpen(t testing.TB, s *server, image string, verbs ...string) (ticket string) {
	t.Helper()
	a, err := s.sendJSON("POST", "/v1/tickets", object{"image": image, "verbs": verbs})
	must(t, accepted("POST /v1/tickets", a, err, http.StatusCreated))
	var minted struct{ Ticket string }
	must(t, json.Unmarshal(a.body, &minted))
	return minted.Ticket
}

// An imageioConn is a connection that sends what the client library of oVirt
// imageio sends, byte for byte: http.client of Python writes names as they are
// given, and asks for no compression.
type imageioConn struct {
	t      *testing.T
	conn   net.Conn
	r      *bufio.Reader
	host   string
	ticket string
}

func dialImageio(t *testing.T, s *server, ticket string) *imageioConn {
	t.Helper()
	conn, err := net.Dial("tcp", s.address())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return &imageioConn{t, conn, bufio.NewReader(conn), s.address(), ticket}
}

// An imageioRequest is one that the library makes, and what it goes on with.
type imageioRequest struct {
	method, rest string
	header       []string // after Host and Accept-Encoding, as lines
	body         []byte
	status       int
}

// do sends a request and reads the answer to its end.
func (c *imageioConn) do(r imageioRequest) answer {
	c.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s /images/%s%s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: identity\r\n", r.method, c.ticket, r.rest, c.host)
	for _, line := range r.header {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(r.body)
	_, err := c.conn.Write(b.Bytes())
	must(c.t, err)
	resp, err := http.ReadResponse(c.r, &http.Request{Method: r.method})
	must(c.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != r.status {
		c.t.Fatalf("%s %s %v: %d, want %d: %v\n%.300s", r.method, r.rest, r.header, resp.StatusCode, r.status, err, body)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

func (c *imageioConn) get(off, n int64) []byte {
	c.t.Helper()
	a := c.do(imageioRequest{method: "GET", header: []string{fmt.Sprintf("range: bytes=%d-%d", off, off+n-1)}, status: 206})
	if a.header.Get("Content-Length") != fmt.Sprint(n) || int64(len(a.body)) != n {
		c.t.Fatalf("%d bytes at %d: %d bytes, %v", n, off, len(a.body), a.header)
	}
	return a.body
}

func (c *imageioConn) put(off int64, p []byte) {
	c.t.Helper()
	c.do(imageioRequest{method: "PUT", rest: "?flush=n", body: p, status: 200, header: []string{
		fmt.Sprintf("content-length: %d", len(p)), "content-type: application/octet-stream", fmt.Sprintf("content-range: bytes %d-%d/*", off, off+int64(len(p))-1),
	}})
}

func (c *imageioConn) patch(message string) {
	c.t.Helper()
	c.do(imageioRequest{method: "PATCH", body: []byte(message), status: 200, header: []string{fmt.Sprintf("Content-Length: %d", len(message)), "content-type: application/json"}})
}

// An imageioExtent is an extent of either context.
type imageioExtent struct {
	Start, Length     int64
	Zero, Hole, Dirty bool
}

func (c *imageioConn) extents(context string) (extents []imageioExtent) {
	c.t.Helper()
	a := c.do(imageioRequest{method: "GET", rest: "/extents?context=" + context, status: 200})
	must(c.t, json.Unmarshal(a.body, &extents))
	at := int64(0)
	for i, e := range extents {
		same := i > 0 && extents[i-1].Zero == e.Zero && extents[i-1].Hole == e.Hole && extents[i-1].Dirty == e.Dirty
		if e.Start != at || e.Length <= 0 || same {
			c.t.Fatalf("extent %d of %s: %+v after %d", i, context, e, at)
		}
		at += e.Length
	}
	return extents
}

// TestImageioTransfers replays an upload, a download and an incremental download of
// the client library, against an image that QEMU looks at afterwards.
func TestImageioTransfers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "io")
	size := 6*mib + 512
	file := m.create(".qcow2", size)
	other := m.create("-source.qcow2", size)
	m.io(other, m.write(0, 2*mib), fmt.Sprintf("write -z %d %d", mib, 3*mib), m.write(5*mib, mib+512))
	s := serve(t, dir, "--dialect", "imageio", "--idle", "50ms")

	model := make([]byte, size)
	source, err := s.read(other, 0, size)
	must(t, err)
	up := dialImageio(t, s, mintOpen(t, s, file, "write"))
	options := struct {
		Features              []string
		MaxReaders, MaxWriter int
	}{}
	must(t, json.Unmarshal(up.do(imageioRequest{method: "OPTIONS", status: 200}).body, &options))
	if !slices.Contains(options.Features, "zero") || !slices.Contains(options.Features, "flush") {
		t.Fatalf("%+v", options)
	}
	from := dialImageio(t, s, mintOpen(t, s, other, "read"))
	for _, e := range from.extents("zero") {
		if e.Zero {
			up.patch(fmt.Sprintf(`{"op": "zero", "offset": %d, "size": %d, "flush": false}`, e.Start, e.Length))
			continue
		}
		for off := e.Start; off < e.Start+e.Length; off += 512 * kib {
			n := min(512*kib, e.Start+e.Length-off)
			part := from.get(off, n)
			up.put(off, part)
			copy(model[off:], part)
		}
	}
	up.patch(`{"op": "flush"}`)
	if !bytes.Equal(model, source) {
		t.Fatal("the download differs")
	}
	must(t, s.awaitClosed(filepath.Join(dir, file)))
	if out, err := m.try("qemu-img", "compare", file, other); err != nil {
		t.Errorf("what was uploaded: %v\n%s", err, out)
	}

	// Incremental: QEMU begins a bitmap, and both write.
	m.run("qemu-img", "bitmap", "--add", "--enable", file, "checkpoint")
	m.io(file, m.write(2*mib+5, 100*kib))
	w := dialImageio(t, s, mintOpen(t, s, file, "write"))
	w.put(4*mib, source[5*mib:5*mib+64*kib])
	w.patch(fmt.Sprintf(`{"op": "zero", "offset": %d, "size": %d, "flush": false}`, 5*mib, 128*kib))
	w.patch(`{"op": "flush"}`)
	down := dialImageio(t, s, mintOpen(t, s, file, "read")+"@checkpoint")
	copied := int64(0)
	for _, e := range down.extents("dirty") {
		switch {
		case !e.Dirty:
		case e.Zero:
			clear(model[e.Start : e.Start+e.Length])
		default:
			copied += e.Length
			copy(model[e.Start:], down.get(e.Start, e.Length))
		}
	}
	now, err := s.read(file, 0, size)
	must(t, err)
	if !bytes.Equal(model, now) || copied > mib {
		t.Errorf("the incremental download differs, or took %d bytes", copied)
	}
	if last := down.extents("zero"); last[len(last)-1].Start+last[len(last)-1].Length != size {
		t.Errorf("the extents end at %+v", last[len(last)-1])
	}
}

// TestImageioCurl does what the peer's documents show with curl.
func TestImageioCurl(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "curl")
	file := m.raw(".raw", 8*mib)
	m.io(file, m.write(0, mib))
	s := serve(t, dir, "--dialect", "imageio")
	path := "/images/" + mintOpen(t, s, file, "map", "read", "write")
	part := filepath.Join(t.TempDir(), "extent")
	must(t, os.WriteFile(part, bytes.Repeat([]byte("x"), 64<<10), 0o600))
	want := func(status int, a answer) answer {
		t.Helper()
		if a.status != status {
			t.Fatalf("%d, want %d: %v\n%.300s", a.status, status, a.header, a.body)
		}
		return a
	}
	if a := want(200, curl(t, s, path, "-X", "OPTIONS")); a.header.Get("Allow") != "OPTIONS,GET,HEAD,PUT,PATCH" {
		t.Errorf("%v", a.header)
	}
	want(200, curl(t, s, "/images/*", "-X", "OPTIONS"))
	want(200, curl(t, s, path+"?flush=n", "-X", "PUT", "--upload-file", part, "--header", "Content-Range: bytes 2097152-2162687/*"))
	want(200, curl(t, s, path+"?close=y", "-X", "PUT", "--upload-file", part, "--header", "Content-Range: bytes 4194304-*/*"))
	if a := want(206, curl(t, s, path, "--range", "2097152-2162687")); !bytes.Equal(a.body, bytes.Repeat([]byte("x"), 64<<10)) {
		t.Error("another extent came back")
	}
	want(200, curl(t, s, path, "-X", "PATCH", "--data-binary", `{"op": "zero", "offset": 4194304, "size": 4096}`))
	want(200, curl(t, s, path, "-X", "PATCH", "--data-binary", `{"op": "flush"}`))
	if a := want(206, curl(t, s, path, "--range", "4194304-4198399")); !bytes.Equal(a.body, make([]byte, 4096)) {
		t.Error("what was zeroed is not")
	}
	if a := want(400, curl(t, s, path, "-X", "PATCH", "--data-binary", `{"op": "zero", "offset": 4096}`)); string(a.body) != "size: is missing\n" {
		t.Errorf("%q", a.body)
	}
	if a := want(403, curl(t, s, "/images/no-such-ticket")); !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Errorf("%v", a.header)
	}
	want(200, curl(t, s, path, "-X", "PATCH", "--data-binary", `{"op": "zero", "size": 8388608, "flush": true}`))
	if a := want(200, curl(t, s, path+"/extents")); string(a.body) != `[{"start": 0, "length": 8388608, "zero": true, "hole": false}]`+"\n" {
		t.Errorf("%s", a.body)
	}
}
