package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
)

// TestRead reads every kind of image, whole and in random ranges, and compares
// with what qemu-img convert makes of it.
func TestRead(t *testing.T) {
	s := serve(t, served)
	eachKind(t, func(t *testing.T, k *kind) {
		if k.unreadable != "" {
			s.expectProblem(t, http.StatusUnprocessableEntity, "unsupported-feature", "/v1/images/"+k.file+"/data")
			s.expectProblem(t, http.StatusUnprocessableEntity, "unsupported-feature", "/v1/images/"+k.file+"/data", "Range", "bytes=0-511")
			return
		}
		if k.windows == nil {
			readWhole(t, s, k)
		}
		readRanges(t, s, k)
	})
}

func readWhole(t *testing.T, s *server, k *kind) {
	want, err := os.Open(k.expected)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	resp := s.get(t, "/v1/images/"+k.file+"/data")
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != k.size || resp.Header.Get("Accept-Ranges") != "bytes" {
		t.Fatalf("%s, length %d, %v; the image has %d bytes", resp.Status, resp.ContentLength, resp.Header, k.size)
	}
	compareStreams(t, resp.Body, io.LimitReader(want, k.size), k.size)
}

// compareStreams wants the same size bytes from both.
func compareStreams(t *testing.T, got, want io.Reader, size int64) {
	t.Helper()
	const piece = 128 << 10
	a, b := make([]byte, piece), make([]byte, piece)
	for at := int64(0); ; at += piece {
		n, err := io.ReadFull(got, a)
		m, wantErr := io.ReadFull(want, b)
		if i := firstDifference(a[:n], b[:m]); i >= 0 {
			t.Fatalf("byte %d of %d: got %v, want %v (%v, %v)", at+int64(i), size, a[i:min(n, i+8)], b[i:min(m, i+8)], err, wantErr)
		}
		if err != nil || wantErr != nil {
			if !errors.Is(err, wantErr) {
				t.Fatalf("after %d bytes: %v, want %v", at+int64(n), err, wantErr)
			}
			return
		}
	}
}

// firstDifference is the first index at which the two differ, or -1.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func readRanges(t *testing.T, s *server, k *kind) {
	random := source(k.name + " ranges")
	windows := k.windows
	count := 40
	if windows == nil {
		windows = []window{{0, k.size}}
	} else {
		count = 8 // each costs a qemu-img
	}
	if k.size == 0 {
		return
	}
	for range count {
		for _, w := range windows {
			off := w.offset + random.Int64N(w.length)
			length := 1 + random.Int64N(min(w.offset+w.length-off, 1<<random.Int64N(22)))
			want := k.read(t, off, length)
			header, got := s.expect(t, http.StatusPartialContent, "/v1/images/"+k.file+"/data",
				"Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
			if i := firstDifference(got, want); i >= 0 {
				t.Fatalf("range of %d bytes at %d: byte %d differs (got %d bytes)", length, off, i, len(got))
			}
			if r := fmt.Sprintf("bytes %d-%d/%d", off, off+length-1, k.size); header.Get("Content-Range") != r {
				t.Fatalf("Content-Range %q, want %q", header.Get("Content-Range"), r)
			}
		}
	}
}
