package test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lukechampine.com/blake3"
)

// A checksum is what the server says of one, or of a block.
type checksum struct {
	Algorithm      string `json:"algorithm"`
	BlockSize      int64  `json:"block_size"`
	Checksum       string `json:"checksum"`
	Offset         int64  `json:"offset"`
	Length         int64  `json:"length"`
	Size           int64  `json:"size"`
	DataGeneration string `json:"data_generation"`
	Changed        bool   `json:"changed"`
	Digest         string `json:"digest"`
	Zero           bool   `json:"zero"`
}

// TestChecksumKinds: of every kind of image, the checksums are those of what QEMU
// reads, by sha256sum, and computed here as it is documented.
func TestChecksumKinds(t *testing.T) {
	s := serve(t, served)
	eachKind(t, func(t *testing.T, k *kind) {
		if k.unreadable != "" || k.windows != nil || k.size == 0 {
			return
		}
		want := k.read(t, 0, k.size)
		path := "/v1/images/" + k.file + "/checksum"
		var c checksum
		s.getJSON(t, &c, path)
		if got := "sha256-1MiB:" + c.Checksum; got != checksumOf(want) || c.Size != k.size || c.Length != k.size || c.BlockSize != mib || c.Algorithm != "sha256-blocks" {
			t.Errorf("%+v, want %s", c, checksumOf(want))
		}
		plain := sha256.Sum256(want)
		if s.getJSON(t, &c, path+"?algorithm=sha256"); c.Checksum != hex.EncodeToString(plain[:]) {
			t.Errorf("%+v, want %x", c, plain)
		}
		blake := blake3.Sum256(want)
		if s.getJSON(t, &c, path+"?algorithm=blake3"); c.Checksum != hex.EncodeToString(blake[:]) {
			t.Errorf("%+v, want %x", c, blake)
		}
		off := k.size / 3 &^ 511
		s.blockDigests(t, k, path+fmt.Sprintf("?block_size=65536&offset=%d", off), want[off:], off)
	})
}

// blockDigests compares a list of digests with what they are of.
func (s *server) blockDigests(t *testing.T, k *kind, path string, want []byte, off int64) {
	t.Helper()
	header, body := s.expect(t, http.StatusOK, path, "Accept", "application/x-ndjson")
	if header.Get("Content-Type") != "application/x-ndjson" || header.Get("Etag") == "" {
		t.Errorf("%v", header)
	}
	const block = 64 * kib
	all, at := sha256.New(), off
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		var c checksum
		must(t, json.Unmarshal(lines.Bytes(), &c))
		if c.Checksum != "" {
			if at != off+int64(len(want)) || c.Checksum != hex.EncodeToString(all.Sum(nil)) || lines.Scan() {
				t.Errorf("%s: %+v at %d", k.name, c, at)
			}
			return
		}
		if c.Offset != at || c.Length <= 0 || c.Length > block && !c.Zero {
			t.Fatalf("%s: %+v at %d", k.name, c, at)
		}
		for end := at + c.Length; at < end; at += min(block, end-at) {
			part := want[at-off : min(at-off+block, end-off)]
			digest := sha256.Sum256(part)
			all.Write(digest[:])
			if c.Digest != hex.EncodeToString(digest[:]) || c.Zero != (len(bytes.Trim(part, "\x00")) == 0) {
				t.Fatalf("%s: %+v, want %x", k.name, c, digest)
			}
		}
	}
	t.Errorf("%s: the list of %s has no end", k.name, path)
}

// TestChecksumOfNothing: a tebibyte of holes takes no time worth mentioning, and one
// that nobody waits for is given up.
func TestChecksumOfNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "hole.raw"))
	must(t, err)
	must(t, f.Truncate(1<<40))
	must(t, f.Close())
	s := serve(t, dir)
	begin := time.Now()
	_, body := s.expect(t, http.StatusOK, "/v1/images/hole.raw/checksum", "Accept", "application/x-ndjson")
	if took := time.Since(begin); took > 20*time.Second || bytes.Count(body, []byte("\n")) != 2 {
		t.Errorf("%v\n%.1000s", took, body)
	}
	s.client.Timeout = 300 * time.Millisecond
	for range 8 { // more than there are processors
		if resp, err := s.client.Get(s.url + "/v1/images/hole.raw/checksum?algorithm=sha256"); err == nil {
			resp.Body.Close()
			t.Fatal("a tebibyte was read in no time")
		}
	}
	s.client.Timeout = time.Minute
	s.expect(t, http.StatusOK, "/v1/images/hole.raw/checksum?length=1048576")
}

// TestChecksumChanged: what is written to while it is summed up says so, and with
// If-Match there is no answer.
func TestChecksumChanged(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "sum")
	name := m.create(".qcow2", 64*mib)
	m.io(name, m.write(0, 32*mib))
	s := serve(t, m.dir)
	var c checksum
	etag := s.getJSON(t, &c, "/v1/images/"+name+"/checksum").Get("Etag")
	s.expect(t, http.StatusNotModified, "/v1/images/"+name+"/checksum", "If-None-Match", etag)
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := s.put(name, i%1000*512, []byte("written"), false); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for deadline := time.Now().Add(time.Minute); !c.Changed && time.Now().Before(deadline); {
		c = checksum{}
		s.getJSON(t, &c, "/v1/images/"+name+"/checksum")
	}
	resp := s.get(t, "/v1/images/"+name+"/checksum", "If-Match", etag)
	resp.Body.Close()
	close(stop)
	must(t, <-stopped)
	if !c.Changed || resp.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("%+v, %s", c, resp.Status)
	}
}

// digestOf is a Content-Digest.
func digestOf(algorithm string, p []byte) string {
	sum := sha256.Sum256(p)
	d := sum[:]
	if algorithm == "sha-512" {
		long := sha512.Sum512(p)
		d = long[:]
	}
	return algorithm + "=:" + base64.StdEncoding.EncodeToString(d) + ":"
}

// TestDigestOfUploads: a body that is not what its digest says is refused, and of one
// that comes at once nothing is written.
func TestDigestOfUploads(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	random := rand.New(rand.NewPCG(*seed, 23))
	m := newMaker(t, t.TempDir(), "digest")
	name := m.create(".qcow2", size)
	s := serve(t, m.dir)
	for _, length := range []int64{0, 1, 4 * kib, 70_000, mib, 5*mib + 3} {
		good, bad := make([]byte, length), make([]byte, length)
		for i := range good {
			good[i], bad[i] = byte(random.Uint32()), byte(random.Uint32())
		}
		path := "/v1/images/" + name + "/data"
		at := fmt.Sprintf("bytes %d-%d/*", mib, mib+length-1)
		if length == 0 {
			continue
		}
		both := digestOf("sha-256", good) + ", " + digestOf("sha-512", good)
		for _, digest := range []string{digestOf("sha-256", good), digestOf("sha-512", good), both, "unknown=:AAAA:;p=1, " + both} {
			a, err := s.send(http.MethodPut, path, good, "Content-Range", at, "Content-Digest", digest)
			if must(t, err); a.status != http.StatusNoContent {
				t.Errorf("%d bytes, %s: %d %s", length, digest, a.status, a.body)
			}
		}
		for _, digest := range []string{digestOf("sha-256", good), digestOf("sha-256", bad) + "," + digestOf("sha-512", good)} {
			a, err := s.send(http.MethodPut, path, bad, "Content-Range", at, "Content-Digest", digest)
			if must(t, err); a.status != http.StatusBadRequest || !strings.Contains(string(a.body), `"field":"Content-Digest","rule":"digest"`) {
				t.Errorf("%d bytes: %d %s", length, a.status, a.body)
			}
			if nothing := strings.Contains(string(a.body), "nothing has been written"); nothing != (length <= mib) {
				t.Errorf("%d bytes: %s", length, a.body)
			}
		}
		got, err := s.read(name, mib, length)
		if must(t, err); length <= mib && !bytes.Equal(got, good) {
			t.Errorf("%d bytes: something of a body with another digest was written", length)
		}
		s.trailers(t, path, at, good, bad)
	}
	for _, digest := range []string{"", "sha-256", "sha-256=AAAA", "sha-256=:AAAA:", "sha-256=:!:", "md5=:AAAA:", "SHA-256=:AAAA:"} {
		a, err := s.send(http.MethodPut, "/v1/images/"+name+"/data", []byte("x"), "Content-Range", "bytes 0-0/*", "Content-Digest", digest)
		if must(t, err); a.status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", digest, a.status, a.body)
		}
	}
	a, err := s.allocate(name, object{"length": 64 * kib})
	must(t, err)
	block := bytes.Repeat([]byte("block"), 64*int(kib)/5+1)[:64*kib]
	path := "/v1/images/" + name + "/allocations/" + a.ID + "/data"
	for digest, status := range map[string]int{digestOf("sha-256", block): 204, digestOf("sha-256", nil): 400} {
		if a, err := s.send(http.MethodPut, path, block, "Content-Digest", digest); err != nil || a.status != status {
			t.Errorf("an allocation: %d %s, %v", a.status, a.body, err)
		}
	}
}

// trailers sends digests after the body.
func (s *server) trailers(t *testing.T, path, at string, good, bad []byte) {
	t.Helper()
	for _, test := range []struct {
		body   []byte
		digest string
		status int
	}{{good, digestOf("sha-256", good), 204}, {bad, digestOf("sha-256", good), 400}, {good, "", 400}} {
		body := &trailing{Reader: bytes.NewReader(test.body)}
		req, err := http.NewRequest(http.MethodPut, s.url+path, body)
		must(t, err)
		body.end = func() {
			if test.digest != "" {
				req.Trailer.Set("Content-Digest", test.digest)
			}
		}
		req.Trailer = http.Header{"Content-Digest": nil}
		req.Header.Set("Content-Range", at)
		resp, err := s.client.Do(req)
		must(t, err)
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status {
			t.Errorf("a trailer %q of %d bytes: %s %s", test.digest, len(test.body), resp.Status, text)
		}
	}
}

// trailing calls end when it has been read.
type trailing struct {
	io.Reader
	end func()
}

func (b *trailing) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		b.end()
	}
	return n, err
}

// TestDigestOfDownloads: with Want-Content-Digest, as a header or as a trailer.
func TestDigestOfDownloads(t *testing.T) {
	t.Parallel()
	const size = 6*mib + 512
	m := newMaker(t, t.TempDir(), "want")
	name := m.create(".qcow2", size)
	m.scatter(name, size, 64*kib, 20, writes, zeroes)
	want := readRaw(t, m.dir, name)
	s := serve(t, m.dir)
	for _, test := range []struct {
		off, length  int64
		wanted, want string
		headers      []string
		trailer      bool
	}{
		{0, 100, "sha-256=1", "sha-256", nil, false},
		{0, mib, "sha-256=1, sha-512=2", "sha-512", nil, false},
		{5, mib + 1, "sha-256=1", "", nil, false},
		{5, mib + 1, "sha-256=1", "sha-256", []string{"Te", "trailers"}, true},
		{0, size, "unixsum=10, sha-512=5, sha-256=0", "sha-512", []string{"Te", "gzip;q=0.1, trailers"}, true},
		{0, 100, "sha-256=0", "", nil, false},
		{0, 100, "nonsense", "", nil, false},
	} {
		headers := append([]string{"Want-Content-Digest", test.wanted}, test.headers...)
		if test.length < size {
			headers = append(headers, "Range", fmt.Sprintf("bytes=%d-%d", test.off, test.off+test.length-1))
		}
		resp := s.get(t, "/v1/images/"+name+"/data", headers...)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		part := want[test.off : test.off+test.length]
		if err != nil || !bytes.Equal(body, part) {
			t.Errorf("%v: %d bytes, %v", headers, len(body), err)
		}
		digest := ""
		if test.want != "" {
			digest = digestOf(test.want, part)
		}
		got, other := resp.Header.Get("Content-Digest"), resp.Trailer.Get("Content-Digest")
		if test.trailer {
			got, other = other, got
		}
		if got != digest || other != "" || (resp.ContentLength >= 0) == test.trailer {
			t.Errorf("%v: %q, %q, want %q", headers, got, other, digest)
		}
	}
}
