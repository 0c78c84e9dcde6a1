package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/extentd/extentd/load"
)

// A sink is what the body of a request is written to.
type sink interface {
	WriteAt(ctx context.Context, p []byte, off int64) error
}

// Sizes of buffers. A body that fits in one is written at once; a longer one in
// chunks, of which two are in memory. They are as large as the clusters, so that
// each is written whole: qcow2 has none that are larger. Where memory is short,
// or the client slow, chunks are small, and there is one.
const (
	tinyBody   = 4 << 10
	smallBody  = load.Least
	chunk      = 1 << 20
	largeChunk = 2 << 20
)

var (
	tinyBuffers  = sync.Pool{New: func() any { b := make([]byte, tinyBody); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBody); return &b }}
	chunkBuffers = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeChunk); return &b }}
)

// slow is how long a stride of the body takes of clients that are no better off
// with large buffers.
const slow = time.Second

// An upload writes the body of a request to a range. Nothing is held while its
// client is slow, but a buffer.
type upload struct {
	s     *server
	w     http.ResponseWriter
	r     *http.Request
	to    sink
	part  byteRange
	unit  int64 // what is best written whole, a power of two
	taken int64 // of the memory for transfers, bytes

	digest *bodyDigest // nil: there is none to compare with
}

// reserve takes the memory that the upload needs at least. It is called before
// anything else is done, and release after all.
func (u *upload) reserve(ctx context.Context) error {
	memory := u.s.opt.Load.Memory()
	take, n := memory.Long, int64(smallBody)
	if u.part.n <= tinyBody {
		take, n = memory.Small, tinyBody
	}
	if err := take(ctx, n); err != nil {
		return err
	}
	u.taken = n
	return nil
}

func (u *upload) release() { u.s.opt.Load.Memory().Put(u.taken) }

// run writes the whole body, which must be exactly as long as the range. One of
// a single chunk is written when all of it is there; of a longer one, what came
// before an error has been written. Nothing is written outside the range.
func (u *upload) run(ctx context.Context) error {
	size, pool := int64(chunk), &chunkBuffers
	if u.unit > chunk {
		size, pool = largeChunk, &largeBuffers
	}
	memory := u.s.opt.Load.Memory()
	switch n := u.part.n; {
	case n == 0:
		return u.end(0)
	case n <= tinyBody:
		return u.single(ctx, &tinyBuffers)
	case n <= smallBody:
		return u.single(ctx, &smallBuffers)
	case n <= size && memory.Spare(size):
		defer memory.Put(size)
		return u.single(ctx, pool)
	case n <= size && u.digest != nil: // all or nothing is what it is for
		if err := memory.Long(ctx, size); err != nil {
			return err
		}
		defer memory.Put(size)
		return u.single(ctx, pool)
	}
	done := u.part.off
	if u.part.n > size && memory.Spare(2*size) {
		var err error
		done, err = u.several(ctx, size, pool)
		memory.Put(2 * size)
		if err != nil {
			return err
		}
	}
	return u.patiently(ctx, done)
}

// fill reads the next len(p) bytes of the body.
func (u *upload) fill(p []byte) error {
	_, err := u.fillFast(p, 0)
	return err
}

// fillFast reads the next len(p) bytes of the body, or whole strides of them when
// one has taken longer than slow, if that is above 0. It returns how many.
func (u *upload) fillFast(p []byte, slow time.Duration) (n int, err error) {
	for n < len(p) {
		now := time.Now()
		u.s.awaitBody(u.w, now)
		k, err := io.ReadFull(u.r.Body, p[n:min(n+stride, len(p))])
		countReceived(u.w, int64(k))
		n += k
		if err != nil {
			return n, bodyError(err)
		}
		if slow > 0 && time.Since(now) > slow {
			break
		}
	}
	return n, nil
}

// end makes sure that the body has ended, where its length was not announced, and
// waits for no more of it; and that it is what its digest says, when as much as
// written of it has been written.
func (u *upload) end(written int64) error {
	if u.r.ContentLength < 0 || u.digest.trails() {
		var one [1]byte
		n, err := io.ReadFull(u.r.Body, one[:])
		if n > 0 {
			return invalid("body", ruleLength, fmt.Sprintf("is longer than the %d bytes of the range", u.part.n))
		}
		if !errors.Is(err, io.EOF) {
			return bodyError(err)
		}
	}
	u.s.bodyCame(u.w)
	if u.digest != nil {
		return u.digest.verify(written)
	}
	return nil
}

func (u *upload) single(ctx context.Context, pool *sync.Pool) error {
	buffer := pool.Get().(*[]byte)
	defer pool.Put(buffer)
	p := (*buffer)[:u.part.n]
	if err := u.fill(p); err != nil {
		return err
	}
	if err := u.end(0); err != nil {
		return err
	}
	return u.to.WriteAt(ctx, p, u.part.off)
}

// patiently reads and writes what begins at off by turns, in one small buffer.
func (u *upload) patiently(ctx context.Context, off int64) error {
	buffer := smallBuffers.Get().(*[]byte)
	defer smallBuffers.Put(buffer)
	for end := u.part.off + u.part.n; off < end; {
		p := (*buffer)[:min(smallBody-off%smallBody, end-off)]
		if err := u.fill(p); err != nil {
			return err
		}
		if off+int64(len(p)) == end {
			if err := u.end(off - u.part.off); err != nil {
				return err
			}
		}
		if err := u.to.WriteAt(ctx, p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}
