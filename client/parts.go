package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// PartsOptions say which parts of an image are wanted. The zero value is all that
// may hold anything but zeros; what is in no part is zeros.
type PartsOptions struct {
	// Offset and Length are the range, bytes. Default: to the end of the image.
	Offset, Length int64
	// Since is a snapshot of the image, by its name or as id:N: parts are what may
	// have changed since. Default: none.
	Since string
	// Dirty is a bitmap of the image: parts are what it marks. Default: none.
	Dirty string
	// Changing: the image may be written to meanwhile. Without it that is the
	// problem "precondition-failed", when it shows: with a connection that broke.
	Changing bool
}

// A Part is a range of an image. It is read from the front, and only until the call
// that it is given to returns.
type Part struct {
	Offset, Length int64
	// Zero: it reads as zeros by now, and has no bytes to be read.
	Zero bool

	r    *partsReader
	at   int64 // read so far
	lost bool  // the rest is read by itself: the stream broke
}

// Parts calls visit for the parts, in the order of their offsets, as they come in
// one answer. A connection that breaks is made again, and only what is missing is
// asked for. It returns the size of the image. What visit leaves unread is skipped;
// its error ends the call, and is returned as it is.
func (d *Disk) Parts(ctx context.Context, opt PartsOptions, visit func(*Part) error) (size int64, err error) {
	r := &partsReader{ctx: ctx, disk: d, opt: opt, at: opt.Offset, match: d.match, size: -1, visit: visit}
	err = r.run()
	if own := r.own; own != nil {
		return r.size, own
	}
	if err != nil {
		return r.size, d.failed(fmt.Sprintf("parts at %d", r.at), err)
	}
	return r.size, nil
}

// PartsUnknown reports whether an error is that of a server that does not know of
// parts.
func PartsUnknown(err error) bool {
	p, ok := errors.AsType[*Problem](err)
	return ok && p.Status == http.StatusBadRequest && p.Errors != nil && slices.ContainsFunc(*p.Errors, func(f FieldError) bool {
		return f.Rule == "unknown" && (f.Field == "only" || f.Field == "since" || f.Field == "dirty")
	})
}

// A partsReader reads one answer after the other, until all parts have come.
type partsReader struct {
	ctx   context.Context // of one call
	disk  *Disk
	opt   PartsOptions
	at    int64 // before it, all parts have been visited
	match string
	size  int64 // of the image; -1: not known yet
	visit func(*Part) error
	own   error // of visit
	in    *bufio.Reader
}

func (r *partsReader) run() error {
	return r.disk.server.goOn(r.ctx, func() int64 { return r.at }, r.once)
}

func (r *partsReader) params() *GetDataParams {
	at := r.at
	p := &GetDataParams{Offset: &at, IfMatch: optional(r.match), Since: optional(r.opt.Since), Dirty: optional(r.opt.Dirty)}
	if p.Since == nil && p.Dirty == nil {
		only := GetDataParamsOnlyData
		p.Only = &only
	}
	if r.opt.Length > 0 {
		rest := r.opt.Offset + r.opt.Length - r.at
		p.Length = &rest
	}
	return p
}

// once makes one request.
func (r *partsReader) once() error {
	if r.opt.Length > 0 && r.at == r.opt.Offset+r.opt.Length {
		return nil // all that was missing was the end
	}
	resp, err := r.disk.server.API.GetData(r.ctx, r.disk.name, r.params(), func(_ context.Context, req *http.Request) error {
		req.Header.Set("Accept", "multipart/byteranges")
		return nil
	})
	if err != nil {
		return err
	}
	if err := expect(resp, http.StatusOK); err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end, or given up
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || params["boundary"] == "" {
		return fmt.Errorf("the answer is %q, not parts", resp.Header.Get("Content-Type"))
	}
	if r.match == "" && !r.opt.Changing {
		r.match = resp.Header.Get("ETag")
	}
	if _, err := fmt.Sscan(resp.Header.Get("Image-Size"), &r.size); err != nil {
		return errors.New("the answer does not say how large the image is")
	}
	r.in = bufio.NewReaderSize(resp.Body, 64<<10)
	return r.parts("--" + params["boundary"])
}

// parts reads an answer to its closing boundary.
func (r *partsReader) parts(boundary string) error {
	for {
		line, err := r.line()
		if line == "" && err == nil {
			line, err = r.line()
		}
		switch {
		case err != nil:
			return err
		case line == boundary+"--":
			_, _ = io.Copy(io.Discard, io.LimitReader(r.in, 1<<10)) // so that the connection is used again
			return nil
		case line != boundary:
			return errors.New("the answer has something else where a part begins")
		}
		p, err := r.header()
		if err != nil {
			return err
		}
		if err := r.part(p); err != nil {
			return err
		}
	}
}

// part has a part visited, and reads what is left of it.
func (r *partsReader) part(p *Part) error {
	if r.own = r.visit(p); r.own != nil {
		return errEnough
	}
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	r.at = p.Offset + p.Length
	if p.lost {
		return &brokenError{cause: errShort}
	}
	return nil
}

// line is the next one, without its end.
func (r *partsReader) line() (string, error) {
	line, err := r.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errors.New("a line between parts is too long")
	case errors.Is(err, io.EOF):
		return "", &brokenError{cause: errShort}
	case err != nil:
		return "", &brokenError{cause: err}
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// header reads that of a part.
func (r *partsReader) header() (*Part, error) {
	const most = 64 // lines
	p := &Part{r: r, Length: -1}
	for range most {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if line == "" {
			if p.Length <= 0 || p.Offset < r.at {
				return nil, fmt.Errorf("a part of %d bytes at %d, behind %d", p.Length, p.Offset, r.at)
			}
			return p, nil
		}
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(name, "Content-Range") {
			continue
		}
		var unit string
		var last, size int64
		if _, err := fmt.Sscanf(strings.TrimSpace(value), "%s %d-%d/%d", &unit, &p.Offset, &last, &size); err != nil || unit != "bytes" && unit != "zeros" || last >= size {
			return nil, fmt.Errorf("a part has the range %q", value)
		}
		p.Zero, p.Length = unit == "zeros", last-p.Offset+1
	}
	return nil, errors.New("a part has too long a header")
}

// Read reads on. Of a part of zeros there is nothing to be read.
func (p *Part) Read(b []byte) (int, error) {
	if p.Zero || p.at == p.Length {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.Length-p.at)]
	if len(b) == 0 {
		return 0, nil
	}
	n, err := 0, error(nil)
	if !p.lost {
		n, err = p.r.in.Read(b)
		if err == nil || n > 0 {
			p.at += int64(n)
			return n, nil
		}
		if p.r.ctx.Err() != nil {
			return 0, context.Cause(p.r.ctx)
		}
		p.lost = true
	}
	from := *p.r.disk
	from.match = p.r.match
	if n, err = from.ReadAt(p.r.ctx, b, p.Offset+p.at); err != nil {
		return 0, err
	}
	p.at += int64(n)
	return n, nil
}
