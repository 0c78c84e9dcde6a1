package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A sparsePart is one of a multipart answer, without its bytes.
type sparsePart struct {
	off, length int64
	zero        bool
}

// A sparseImage is what a reader makes of an answer in parts.
type sparseImage struct {
	size  int64
	parts []sparsePart
	data  []byte // of [off, off+len): nil if the bytes are not kept
	off   int64
}

// readParts reads an answer with the standard library's reader, and puts its data
// into data, which is from off on. Parts are in order, and none is longer than
// 64 MiB.
func readParts(resp *http.Response, data []byte, off int64) (*sparseImage, error) {
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || resp.StatusCode != http.StatusOK {
		return nil, errors.Join(err, fmt.Errorf("%s, %q", resp.Status, kind))
	}
	img := &sparseImage{data: data, off: off}
	if _, err := fmt.Sscan(resp.Header.Get("Image-Size"), &img.size); err != nil {
		return nil, fmt.Errorf("Image-Size: %w", err)
	}
	reader := multipart.NewReader(resp.Body, params["boundary"])
	for end := int64(0); ; {
		part, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			rest, err := io.ReadAll(resp.Body)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("%d bytes behind the end", len(rest))
			}
			return img, err
		}
		if err != nil {
			return img, err
		}
		var unit string
		var first, last, size int64
		said := part.Header.Get("Content-Range")
		if n, err := fmt.Sscanf(said, "%s %d-%d/%d", &unit, &first, &last, &size); n != 4 || err != nil || size != img.size || first < end || last < first || last >= size {
			return img, errors.Join(err, fmt.Errorf("Content-Range %q behind %d", said, end))
		}
		if part.Header.Get("Content-Type") != "application/octet-stream" {
			return img, fmt.Errorf("Content-Type %q", part.Header.Get("Content-Type"))
		}
		p := sparsePart{first, last - first + 1, unit == "zeros"}
		end = last + 1
		want := p.length
		if p.zero {
			want = 0
		}
		if unit != "bytes" && !p.zero || want > 64*mib {
			return img, fmt.Errorf("a part in %q of %d bytes", unit, want)
		}
		got := int64(0)
		if data != nil && want > 0 {
			var n int
			n, err = io.ReadFull(part, data[first-off:last+1-off])
			got = int64(n)
		}
		if err == nil {
			var more int64
			more, err = io.Copy(io.Discard, part)
			got += more
		}
		if err != nil || got != want {
			return img, fmt.Errorf("a part of %d bytes has %d: %w", want, got, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if p.zero && data != nil {
			clear(data[first-off : last+1-off])
		}
		img.parts = append(img.parts, p)
	}
}

// parts asks for parts.
func (s *server) parts(image, query string, data []byte, off int64) (*sparseImage, error) {
	resp, err := s.client.Get(s.url + "/v1/images/" + image + "/data?" + query)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return readParts(resp, data, off)
}

// TestSparseKinds: of every kind of image, the parts put together, with zeros
// between, are what QEMU reads; no part is what the map calls zeros.
func TestSparseKinds(t *testing.T) {
	s := serve(t, served)
	eachKind(t, func(t *testing.T, k *kind) {
		if k.unreadable != "" {
			return
		}
		windows := k.windows
		if windows == nil {
			windows = []window{{0, k.size}}
		}
		for _, w := range windows {
			if w.length = min(w.length, k.size-w.offset); w.length == 0 {
				continue
			}
			data := make([]byte, w.length)
			query := fmt.Sprintf("only=data&offset=%d&length=%d", w.offset, w.length)
			img, err := s.parts(k.file, query, data, w.offset)
			if err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			if img.size != k.size || !bytes.Equal(data, k.read(t, w.offset, w.length)) {
				t.Errorf("%s: the parts of %d bytes differ from what QEMU reads", query, img.size)
			}
			want := dataSpans(s.stream(t, k.file, "offset", w.offset, "length", w.length))
			if got := partWindows(img.parts); !slices.Equal(got, want) {
				t.Errorf("%s: parts %v, but the map has data in %v", query, got, want)
			}
		}
	})
}

// dataSpans are the runs of a map that are no zeros.
func dataSpans(extents []extent) []window {
	var all []window
	for _, e := range extents {
		if *e.Zero {
			continue
		}
		all = joinWindow(all, window{*e.Offset, *e.Length})
	}
	return all
}

func joinWindow(all []window, w window) []window {
	if n := len(all); n > 0 && all[n-1].offset+all[n-1].length == w.offset {
		all[n-1].length += w.length
		return all
	}
	return append(all, w)
}

// partWindows are parts of data without the cuts every 64 MiB.
func partWindows(parts []sparsePart) []window {
	var all []window
	for _, p := range parts {
		all = joinWindow(all, window{p.off, p.length})
	}
	return all
}

// TestSparseResumed: a reader that is cut off after any number of bytes notices, and
// goes on with the offset behind its last whole part.
func TestSparseResumed(t *testing.T) {
	t.Parallel()
	const size = 24 * mib
	random := rand.New(rand.NewPCG(*seed, 17))
	m := newMaker(t, t.TempDir(), "cut")
	name := m.create(".qcow2", size)
	m.scatter(name, size, 64*kib, 60, writes, zeroes)
	want := readRaw(t, m.dir, name)
	s := serve(t, m.dir)
	for range 5 {
		data := make([]byte, size)
		cuts := 0
		for off := int64(0); ; {
			resp := s.get(t, fmt.Sprintf("/v1/images/%s/data?only=data&offset=%d", name, off))
			whole := resp.Body
			if most := 1 + random.Int64N(3*mib); cuts < 40 {
				resp.Body = io.NopCloser(io.LimitReader(whole, most))
			}
			img, err := readParts(resp, data[off:], off)
			whole.Close()
			if err == nil {
				break
			}
			if cuts++; img == nil {
				t.Fatal(err)
			}
			if n := len(img.parts); n > 0 {
				off = img.parts[n-1].off + img.parts[n-1].length
			}
		}
		if !bytes.Equal(data, want) {
			t.Errorf("after %d cuts what was read differs", cuts)
		}
		if cuts == 0 {
			t.Error("nothing was cut off")
		}
	}
	// At the end there is nothing left, and that is an answer.
	if img, err := s.parts(name, fmt.Sprintf("only=data&offset=%d", size), nil, 0); err != nil || len(img.parts) > 0 || img.size != size {
		t.Errorf("%+v, %v", img, err)
	}
}

func readRaw(t testing.TB, dir, file string) []byte {
	t.Helper()
	path, err := convert(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return readFile(t, path)
}

// TestSparseBroken: an image that fails in the middle never ends with a closing
// boundary, nor with the last chunk.
func TestSparseBroken(t *testing.T) {
	t.Parallel()
	const size = 8 * mib
	m := newMaker(t, t.TempDir(), "broken")
	plain := m.raw(".raw", size)
	random := rand.NewChaCha8([32]byte{byte(*seed)})
	content := make([]byte, 0, size)
	for piece := make([]byte, kib); int64(len(content)) < size; content = append(content, bytes.Repeat(piece, 64)...) {
		_, _ = random.Read(piece) // never fails
	}
	m.poke(plain, 0, content)
	name := m.file(".qcow2")
	m.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, name)
	info, err := os.Stat(m.path(name))
	must(t, err)
	m.poke(name, info.Size()-32<<10, bytes.Repeat([]byte{0xff}, 16<<10)) // clusters that begin with a block of no type
	s := serve(t, m.dir, "--read-only")
	resp := s.get(t, "/v1/images/"+name+"/data?only=data")
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil || resp.StatusCode != http.StatusOK || int64(len(body)) < mib || bytes.HasSuffix(body, []byte("--\r\n")) {
		t.Errorf("%s, %d bytes, %v", resp.Status, len(body), err)
	}
}

// TestSparseChanges: since a snapshot, and by a bitmap, with what reads as zeros by
// now: an old copy that gets the parts is the image.
func TestSparseChanges(t *testing.T) {
	t.Parallel()
	const size = 32*mib + 512
	m := newMaker(t, t.TempDir(), "changes")
	name := m.create(".qcow2", size)
	m.scatter(name, size, 64*kib, 60, writes, zeroes)
	m.run("qemu-img", "bitmap", "--add", name, "b")
	m.run("qemu-img", "snapshot", "-c", "then", name)
	old := readRaw(t, m.dir, name)
	m.scatter(name, size, 64*kib, 40, writes, zeroes)
	m.io(name, m.write(size-512, 512), "write -z 5M 1M", "write -z -u 9M 1M")
	s := serve(t, m.dir)
	must(t, s.put(name, 20*mib+5, []byte("by us"), true))
	must(t, s.zero(name, 3*mib, 2*mib, false))
	must(t, s.trim(name, 14*mib, 1*mib))
	now, err := s.read(name, 0, size)
	must(t, err)
	for _, query := range []string{"since=then", "since=id:1", "dirty=b"} {
		got := slices.Clone(old)
		img, err := s.parts(name, query, got, 0)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		if !bytes.Equal(got, now) {
			t.Errorf("%s: the old copy with the parts differs from the image", query)
		}
		zeros, total := int64(0), int64(0)
		for _, p := range img.parts {
			if total += p.length; p.zero {
				zeros += p.length
			}
		}
		if zeros == 0 || total > size*9/10 {
			t.Errorf("%s: %d bytes in parts, %d of them zeros", query, total, zeros)
		}
	}
	if img, err := s.parts(name, "since=then&offset=33554432&length=512", nil, 0); err != nil || len(img.parts) != 1 {
		t.Errorf("%+v, %v", img, err)
	}
	then := make([]byte, size)
	if _, err := s.parts(name, "x", nil, 0); err == nil {
		t.Error("an unknown parameter is taken")
	}
	resp := s.get(t, "/v1/images/"+name+"/snapshots/then/data?only=data")
	defer resp.Body.Close()
	if _, err := readParts(resp, then, 0); err != nil || !bytes.Equal(then, old) {
		t.Errorf("of the snapshot: %v", err)
	}
}

// pythonParts reads an answer of curl -i with the parser of mail of Python's standard
// library, and writes the image.
const pythonParts = `
import email, email.policy, re, sys
message = email.message_from_bytes(open(sys.argv[1], "rb").read(), policy=email.policy.HTTP)
assert not message.defects, message.defects
assert message.get_content_type() == "multipart/byteranges"
with open(sys.argv[2], "r+b") as out:
    out.truncate(int(message["Image-Size"]))
    for part in message.iter_parts():
        unit, first, last = re.fullmatch(r"(\w+) (\d+)-(\d+)/\d+", part["Content-Range"]).groups()
        data = part.get_payload(decode=True)
        length = int(last) - int(first) + 1
        if unit == "zeros":
            assert data == b""
            data = bytes(length)
        assert len(data) == length, (len(data), length)
        out.seek(int(first))
        out.write(data)
`

// TestSparsePython: a reader that was not made for this, and curl.
func TestSparsePython(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatalf("%v: apt-get install python3", err)
	}
	const size = 4 * mib
	m := newMaker(t, t.TempDir(), "python")
	name := m.create(".qcow2", size)
	m.scatter(name, size, 64*kib, 12, writes, zeroes)
	m.run("qemu-img", "snapshot", "-c", "then", name)
	then := readRaw(t, m.dir, name)
	m.io(name, m.write(mib, 200*kib), "write -z 0 256k")
	s := serve(t, m.dir)
	must(t, os.WriteFile(m.path("all.raw"), nil, 0o600))
	must(t, os.WriteFile(m.path("changed.raw"), then, 0o600))
	want := readRaw(t, m.dir, name)
	for query, file := range map[string]string{"only=data": "all.raw", "since=then": "changed.raw"} {
		// Python's parser takes the header from the status line's end on.
		m.run("curl", "-sSf", "-H", "Accept: multipart/byteranges", "-D", "head", "-o", "body", s.url+"/v1/images/"+name+"/data?"+query)
		_, head, _ := strings.Cut(string(readFile(t, m.path("head"))), "\r\n")
		must(t, os.WriteFile(m.path("answer"), append([]byte(head), readFile(t, m.path("body"))...), 0o600))
		m.run("python3", "-c", pythonParts, m.path("answer"), m.path(file))
		if !bytes.Equal(readFile(t, m.path(file)), want) {
			t.Errorf("%s: what Python made of it differs", query)
		}
	}
}

// TestSparseMemory: two million parts take no memory.
func TestSparseMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const parts = 1 << 21
	writeFineComb(t, filepath.Join(dir, "comb.qcow2"), parts)
	s := serve(t, dir, "--read-only")
	s.client.Timeout = 5 * time.Minute
	s.expect(t, http.StatusOK, "/v1/images/comb.qcow2/data?only=data&length=1048576")
	before := s.peakMemory()
	img, err := s.parts("comb.qcow2", "only=data", nil, 0)
	if err != nil || len(img.parts) != parts {
		t.Fatalf("%+v, %v", img, err)
	}
	if grown := s.peakMemory() - before; grown > 48*mib {
		t.Errorf("the server grew by %d MiB", grown/mib)
	}
}

// writeFineComb writes an image of clusters of 512 bytes, every other one of which is
// data. They all are the same one, and so are the tables: it is only good for reading.
func writeFineComb(t testing.TB, path string, n int64) {
	t.Helper()
	const cluster, perTable = 512, 64
	tables := 2 * n / perTable
	be := binary.BigEndian
	image := make([]byte, 4*cluster+tables*8)
	copy(image, "QFI\xfb")
	be.PutUint32(image[4:], 2)
	be.PutUint32(image[20:], 9)
	be.PutUint64(image[24:], uint64(2*n*cluster))
	be.PutUint32(image[36:], uint32(tables))
	be.PutUint64(image[40:], 4*cluster) // L1
	be.PutUint64(image[48:], 1*cluster) // refcounts, of which there are none
	be.PutUint32(image[56:], 1)
	for i := 0; i < perTable; i += 2 {
		be.PutUint64(image[2*cluster+i*8:], 3*cluster)
	}
	copy(image[3*cluster:], bytes.Repeat([]byte("data"), cluster/4))
	for i := range tables {
		be.PutUint64(image[4*cluster+i*8:], 2*cluster)
	}
	must(t, os.WriteFile(path, image, 0o600))
}
