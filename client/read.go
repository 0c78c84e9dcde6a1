package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ReadAt fills p with what the image has at off, which all lies inside of it. A
// connection that breaks is made again, and only what is missing is asked for.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	w := &filler{p: p}
	err := d.read(ctx, w, off, int64(len(p)))
	return w.n, err
}

// WriteRangeTo writes [off, off+n) of the image, which all lies inside of it, to w
// as it comes. It goes on where a connection broke; if the image was written to
// meanwhile, what is written to w is of no one time, unless IfMatch forbids that.
func (d *Disk) WriteRangeTo(ctx context.Context, w io.Writer, off, n int64) error {
	return d.read(ctx, w, off, n)
}

// ReaderAt is the image for those who know io.ReaderAt.
func (d *Disk) ReaderAt(ctx context.Context) io.ReaderAt { return readerAt{ctx: ctx, disk: d} }

type readerAt struct {
	ctx  context.Context //nolint:containedctx // io.ReaderAt has no other place for it
	disk *Disk
}

// ReadAt reads up to the end of the image.
func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.disk.ReadAt(r.ctx, p, off)
	if past, ok := errors.AsType[*beyondError](err); ok {
		if past.size <= off {
			return 0, io.EOF
		}
		n, err = r.disk.ReadAt(r.ctx, p[:past.size-off], off)
		if err == nil {
			err = io.EOF
		}
	}
	return n, err
}

// A beyondError is of a range that the image ends in.
type beyondError struct{ size int64 }

func (e *beyondError) Error() string {
	return fmt.Sprintf("the range lies beyond the end of the image, which has %d bytes", e.size)
}

// A filler is a writer into memory.
type filler struct {
	p []byte
	n int
}

func (f *filler) Write(p []byte) (int, error) {
	n := copy(f.p[f.n:], p)
	f.n += n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// ReadFrom has the body read straight to where it belongs.
func (f *filler) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.ReadFull(r, f.p[f.n:])
	f.n += n
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // the caller counts
	}
	return int64(n), err
}

// read sends a range to w, in as many requests as it takes.
func (d *Disk) read(ctx context.Context, w io.Writer, off, n int64) error {
	begin, pause := time.Now(), firstPause
	patience := d.server.patience()
	for at := off; at < off+n; {
		got, err := d.readOnce(ctx, w, at, off+n-at)
		at += got
		if err == nil {
			continue
		}
		broken, ok := errors.AsType[*brokenError](err)
		if got > 0 {
			begin, pause = time.Now(), firstPause
		}
		if !ok || ctx.Err() != nil || time.Since(begin)+pause > patience {
			if ok {
				err = broken.cause
			}
			return d.failed(fmt.Sprintf("read of %d bytes at %d", n, off), err)
		}
		if err := sleep(ctx, pause); err != nil {
			return d.failed(fmt.Sprintf("read of %d bytes at %d", n, off), err)
		}
		pause = min(2*pause, mostPause)
	}
	return nil
}

// A brokenError is of a body that ended too early: the rest may still come.
type brokenError struct{ cause error }

func (e *brokenError) Error() string { return e.cause.Error() }
func (e *brokenError) Unwrap() error { return e.cause }

// readOnce sends what one request gets of a range, and says how much that was.
func (d *Disk) readOnce(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	part := fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	resp, err := d.server.API.GetData(ctx, d.name, &GetDataParams{Range: &part, IfMatch: optional(d.match)})
	if err != nil {
		return 0, err
	}
	if err := expect(resp, http.StatusPartialContent); err != nil {
		if p, ok := errors.AsType[*Problem](err); ok && p.Status == http.StatusRequestedRangeNotSatisfiable && p.Size != nil {
			return 0, fmt.Errorf("%w (%w)", &beyondError{size: *p.Size}, p)
		}
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // it is counted
	var first, last, size int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || first != off {
		return 0, fmt.Errorf("the answer is not the range that was asked for: %q", resp.Header.Get("Content-Range"))
	}
	if last != off+n-1 {
		return 0, &beyondError{size: size}
	}
	out := &counted{w: w}
	got, err := out.take(io.LimitReader(resp.Body, n))
	switch {
	case out.err != nil:
		return got, out.err
	case err != nil:
		return got, &brokenError{cause: err}
	case got < n:
		return got, &brokenError{cause: errShort}
	}
	return got, nil
}

// A counted keeps errors of the writer apart from those of what is read.
type counted struct {
	w   io.Writer
	err error
}

func (c *counted) take(r io.Reader) (int64, error) {
	if f, ok := c.w.(*filler); ok {
		return f.ReadFrom(r)
	}
	return io.Copy(c, r)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		c.err = err
	}
	return n, err
}
