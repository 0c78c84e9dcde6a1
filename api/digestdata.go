package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/extentd/extentd/storage/block"
)

// maxDigested is how long a range may be whose digest stands in the header, bytes:
// it is in memory before anything is sent.
const maxDigested = 1 << 20

// sendDigested sends one range with its Content-Digest: in the header, or after the
// body to who takes trailers. done is false, and nothing has been sent, where
// neither is possible.
func (a *dataAnswer) sendDigested(part byteRange, status int, want *digestAlgorithm) (done bool, err error) {
	if part.n <= maxDigested {
		if done, err = a.sendKnown(part, status, want); done || err != nil {
			return done, err
		}
	}
	if !takesTrailers(a.r) {
		return false, nil
	}
	return true, a.sendTrailed(part, status, want)
}

// takesTrailers looks at TE (RFC 9110, section 10.1.4).
func takesTrailers(r *http.Request) bool {
	for _, line := range r.Header["Te"] {
		for coding := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(coding), "trailers") {
				return r.ProtoAtLeast(1, 1)
			}
		}
	}
	return false
}

// sendKnown reads a range and sends it, if there is memory.
func (a *dataAnswer) sendKnown(part byteRange, status int, want *digestAlgorithm) (done bool, err error) {
	ctx, memory := a.r.Context(), a.s.opt.Load.Memory()
	pool, size := &chunkBuffers, int64(chunk)
	if part.n <= smallBody {
		pool, size = &smallBuffers, smallBody
		if err := memory.Small(ctx, size); err != nil {
			return false, err
		}
	} else if !memory.Spare(size) {
		return false, nil
	}
	defer memory.Put(size)
	buffer := pool.Get().(*[]byte)
	defer pool.Put(buffer)
	data := (*buffer)[:part.n]
	if err := a.d.ReadAt(ctx, data, part.off); err != nil {
		return false, err
	}
	sum := want.make()
	_, _ = sum.Write(data) // never fails
	a.describePart(part, status)
	a.set(7, "Content-Length", fmt.Sprint(part.n))
	a.w.Header().Set(contentDigest, want.name+"="+sequenceOf(sum.Sum(nil)))
	a.w.WriteHeader(status)
	if _, err := a.w.Write(data); err != nil {
		a.s.abort(a.w, a.r, err)
	}
	return true, nil
}

func (a *dataAnswer) describePart(part byteRange, status int) {
	a.set(6, "Content-Type", octets)
	if status == http.StatusPartialContent {
		a.set(8, "Content-Range", contentRange(part, a.size))
	}
}

// sendTrailed sends a range, and its digest as a trailer.
func (a *dataAnswer) sendTrailed(part byteRange, status int, want *digestAlgorithm) error {
	ctx, memory := a.r.Context(), a.s.opt.Load.Memory()
	if err := memory.Long(ctx, block.StreamLeast); err != nil {
		return err
	}
	defer memory.Put(block.StreamLeast)
	stream, err := a.d.StreamWithin(ctx, part.off, part.n, memory)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	a.describePart(part, status)
	a.w.Header().Set("Trailer", contentDigest)
	a.w.WriteHeader(status)
	sum := want.make()
	n, err := stream.WriteTo(io.MultiWriter(sum, a.w))
	if err == nil && n != part.n {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, part.n, part.off)
	}
	if err != nil {
		a.s.abort(a.w, a.r, err)
	}
	a.w.Header().Set(contentDigest, want.name+"="+sequenceOf(sum.Sum(nil)))
	return nil
}
