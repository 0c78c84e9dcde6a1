package api

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/extentd/extentd/storage/block"
)

// sendParts sends several ranges as multipart/byteranges (RFC 9110, section
// 14.6), in the order in which they were asked for. All of them are checked,
// and the first piece of the first is read, before the header is sent.
func (a *dataAnswer) sendParts(ranges []byteRange) error {
	ctx := a.r.Context()
	for _, part := range ranges {
		if err := a.d.Check(ctx, part.off, part.n); err != nil {
			return err
		}
	}
	memory := a.s.opt.Load.Memory()
	if err := memory.Long(ctx, block.StreamLeast); err != nil {
		return err
	}
	defer memory.Put(block.StreamLeast)
	first, err := a.d.StreamWithin(ctx, ranges[0].off, ranges[0].n, memory)
	if err != nil {
		return err
	}
	boundary := rand.Text()
	headers, end := partHeaders(boundary, ranges, a.size)
	length := int64(len(end))
	for i, part := range ranges {
		length += int64(len(headers[i])) + part.n
	}
	a.describeBody("multipart/byteranges; boundary="+boundary, length)
	a.w.WriteHeader(http.StatusPartialContent)
	for i, part := range ranges {
		if err := a.sendPart(ctx, first, headers[i], part); err != nil {
			a.s.abort(a.w, a.r, err)
		}
		first = nil
	}
	if _, err := io.WriteString(a.w, end); err != nil {
		a.s.abort(a.w, a.r, err)
	}
	return nil
}

// sendPart sends one part, from stream if it is open already, and closes it.
func (a *dataAnswer) sendPart(ctx context.Context, stream *block.Stream, header string, part byteRange) error {
	if stream == nil {
		var err error
		if stream, err = a.d.StreamWithin(ctx, part.off, part.n, a.s.opt.Load.Memory()); err != nil {
			return err
		}
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	if _, err := io.WriteString(a.w, header); err != nil {
		return err
	}
	n, err := stream.WriteTo(a.w)
	if err == nil && n != part.n {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, part.n, part.off)
	}
	return err
}

// partHeaders are what stands before each part, and what ends the last.
func partHeaders(boundary string, ranges []byteRange, size int64) (headers []string, end string) {
	headers = make([]string, len(ranges))
	for i, part := range ranges {
		var b strings.Builder
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("--" + boundary + "\r\nContent-Type: " + octets + "\r\nContent-Range: " + contentRange(part, size) + "\r\n\r\n")
		headers[i] = b.String()
	}
	return headers, "\r\n--" + boundary + "--\r\n"
}
