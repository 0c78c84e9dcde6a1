package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/extentd/extentd/storage"
)

// A writtenTo keeps what is written, and how.
type writtenTo struct {
	mu     sync.Mutex
	image  []byte
	writes [][2]int64 // offset and end
	fail   func(off int64) error
}

func (s *writtenTo) WriteAt(_ context.Context, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(off); err != nil {
			return err
		}
	}
	s.writes = append(s.writes, [2]int64{off, off + int64(len(p))})
	copy(s.image[off:], p)
	return nil
}

// uploadOf is an upload of a body whose length is announced, or not.
func uploadOf(to sink, body io.Reader, part byteRange, announced bool) *upload {
	r := httptest.NewRequest("PUT", "/x", body)
	r.ContentLength = -1
	if announced {
		r.ContentLength = part.n
	}
	return &upload{s: &server{}, w: &response{ResponseWriter: httptest.NewRecorder()}, r: r, to: to, part: part}
}

func TestUpload(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const size = 9 * chunk
	for _, unit := range []int64{1, 65536, largeChunk} {
		for _, n := range []int64{0, 1, 4096, smallBody, smallBody + 1, chunk, chunk + 1, 2 * chunk, 5*chunk + 7} {
			part := byteRange{random.Int64N(size - n), n}
			body := make([]byte, n)
			for i := range body {
				body[i] = byte(random.Uint32())
			}
			to := &writtenTo{image: make([]byte, size)}
			u := uploadOf(to, iotest.OneByteReader(bytes.NewReader(body)), part, random.IntN(2) == 0)
			if n > smallBody {
				u.r.Body = io.NopCloser(bytes.NewReader(body))
			}
			u.unit = unit
			if err := u.run(t.Context()); err != nil {
				t.Fatalf("%v: %v", part, err)
			}
			want := make([]byte, size)
			copy(want[part.off:], body)
			if !bytes.Equal(to.image, want) {
				t.Errorf("%v: what was written differs", part)
			}
			at := part.off
			for i, w := range to.writes {
				if w[0] != at || i > 0 && w[0]%max(unit, chunk) != 0 {
					t.Errorf("%v, unit %d: written as %v", part, unit, to.writes)
				}
				at = w[1]
			}
			if got := u.w.(*response).read; got != n {
				t.Errorf("%v: counted %d bytes", part, got)
			}
		}
	}
}

// A body that is too short or too long is told as such, and nothing is written
// outside the range; of one that fits in a buffer, nothing at all.
func TestUploadOfTheWrongLength(t *testing.T) {
	for _, n := range []int64{0, 1, 5000, chunk, 3*chunk + 5} {
		for _, more := range []int64{-n, -1, 1, 70_000} {
			if n+more < 0 || more == 0 {
				continue
			}
			part := byteRange{chunk / 2, n}
			to := &writtenTo{image: make([]byte, 5*chunk)}
			err := uploadOf(to, io.LimitReader(ones{}, n+more), part, false).run(t.Context())
			var request *requestError
			if !errors.As(err, &request) || request.fields[0] != (FieldError{"body", "length", request.fields[0].Detail}) {
				t.Errorf("%d bytes for %d: %v", n+more, n, err)
			}
			for _, w := range to.writes {
				if n <= chunk || w[0] < part.off || w[1] > part.off+part.n {
					t.Errorf("%d bytes for %d: written %v", n+more, n, w)
				}
			}
		}
	}
}

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}

// An upload whose writes fail ends soon, with the reason.
func TestUploadThatCannotBeWritten(t *testing.T) {
	for _, n := range []int64{5000, chunk, 100 * chunk} {
		body := &counted{Reader: io.LimitReader(ones{}, n)}
		to := &writtenTo{image: make([]byte, 101*chunk), fail: func(off int64) error {
			if off >= 3*chunk || n <= chunk {
				return fmt.Errorf("disk: %w", storage.ErrNoSpace)
			}
			return nil
		}}
		if err := uploadOf(to, body, byteRange{chunk / 2, n}, true).run(t.Context()); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if body.n > 7*chunk {
			t.Errorf("%d of %d bytes were read", body.n, n)
		}
	}
	// The reason counts, and not that the body is short as well.
	to := &writtenTo{image: make([]byte, 5*chunk), fail: func(int64) error { return storage.ErrNoSpace }}
	if err := uploadOf(to, io.LimitReader(ones{}, chunk+1), byteRange{0, 3 * chunk}, true).run(t.Context()); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("%v", err)
	}
	// A bug below does not end the server.
	to.fail = func(int64) error { panic("a bug") }
	if err := uploadOf(to, ones{}, byteRange{0, 3 * chunk}, true).run(t.Context()); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("%v", err)
	}
}

type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// A body that breaks off is the client's doing.
func TestUploadThatBreaksOff(t *testing.T) {
	for _, n := range []int64{5000, 3 * chunk} {
		for _, broken := range []error{io.ErrUnexpectedEOF, errors.New("malformed chunked encoding")} {
			body := io.MultiReader(io.LimitReader(ones{}, n-1), iotest.ErrReader(broken))
			err := uploadOf(&writtenTo{image: make([]byte, n)}, body, byteRange{0, n}, true).run(t.Context())
			if p := problemOf(err, "/", ""); p.Status != 400 {
				t.Errorf("%d bytes, %v: %v", n, broken, err)
			}
		}
	}
}
