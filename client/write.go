package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

const octets = "application/octet-stream"

// WriteAt writes p at off. It is where every reader finds it then, and on disk after
// the next flush.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := d.WriteFrom(ctx, bytes.NewReader(p), off, int64(len(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteFrom writes the first n bytes of r at off, as they are read. They are read
// again if the request has to be repeated.
func (d *Disk) WriteFrom(ctx context.Context, r io.ReaderAt, off, n int64) error {
	if n == 0 {
		return nil
	}
	at := fmt.Sprintf("bytes %d-%d/*", off, off+n-1)
	resp, err := d.server.API.PutDataWithBody(ctx, d.name, &PutDataParams{ContentRange: &at, IfMatch: optional(d.match)}, octets, nil, from(r, n))
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed(fmt.Sprintf("write of %d bytes at %d", n, off), err)
	}
	return nil
}

// from makes the first n bytes of r the body of a request, any number of times.
func from(r io.ReaderAt, n int64) RequestEditorFn {
	return func(_ context.Context, req *http.Request) error {
		req.ContentLength = n
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(r, 0, n)), nil }
		req.Body, _ = req.GetBody()
		return nil
	}
}

// Zero makes [off, off+n) read as zeros. With anchor its storage is kept, or
// reserved.
func (d *Disk) Zero(ctx context.Context, off, n int64, anchor bool) error {
	if n == 0 {
		return nil
	}
	what := ZeroRange{Offset: off, Length: n}
	if anchor {
		what.Anchor = &anchor
	}
	resp, err := d.server.API.ZeroData(repeatable(ctx), d.name, &ZeroDataParams{IfMatch: optional(d.match)}, what)
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed(fmt.Sprintf("zero of %d bytes at %d", n, off), err)
	}
	return nil
}

// Trim gives the storage of [off, off+n) back: whole clusters read as zeros then.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	resp, err := d.server.API.TrimData(repeatable(ctx), d.name, &TrimDataParams{IfMatch: optional(d.match)}, TrimRange{Offset: off, Length: n})
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed(fmt.Sprintf("trim of %d bytes at %d", n, off), err)
	}
	return nil
}

// Flush makes durable what was answered before it: see [Server.Losses] for what that
// is worth after a connection was lost.
func (d *Disk) Flush(ctx context.Context) error {
	resp, err := d.server.API.FlushData(repeatable(ctx), d.name, FlushRequest{})
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed("flush", err)
	}
	return nil
}
