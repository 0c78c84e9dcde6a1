package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"
)

// maxLine is more than a line of a map has, bytes.
const maxLine = 64 << 10

// ExtentsOptions say which part of a map is wanted, and how. The zero value is the
// whole map.
type ExtentsOptions struct {
	// Offset and Length are the range, bytes. Default: to the end of the image.
	Offset, Length int64
	// TopOnly: what the top layer says, without what backs it. Default: false.
	TopOnly bool
	// Changing: the map may change while it is read. Without it that is the
	// problem "precondition-failed", when it shows: with a connection that broke,
	// and between pages.
	Changing bool
	// Page is how many extents are asked for at a time, 1 to 100,000. It suits who
	// takes his time over each: no connection waits for him. Default: 0, all as one
	// stream.
	Page int
}

// Extents yields the map in order and without gaps. Neither side holds it in memory.
// A stream that breaks off is gone on with; whatever is missing in the end is an
// error, which is yielded last.
func (d *Disk) Extents(ctx context.Context, opt ExtentsOptions) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		r := &extentReader{disk: d, opt: opt, at: opt.Offset, yield: yield}
		if err := r.run(ctx); err != nil && !errors.Is(err, errEnough) {
			yield(Extent{}, d.failed(fmt.Sprintf("map at %d", r.at), err))
		}
	}
}

// errEnough: the consumer wants no more.
var errEnough = errors.New("enough")

// An extentReader reads a map.
type extentReader struct {
	disk  *Disk
	opt   ExtentsOptions
	at    int64 // where the next extent begins
	etag  string
	yield func(Extent, error) bool
}

func (r *extentReader) run(ctx context.Context) error {
	begin, pause := time.Now(), firstPause
	for {
		before := r.at
		more, err := r.once(ctx)
		if err == nil && !more {
			return nil
		}
		if r.at > before {
			begin, pause = time.Now(), firstPause
		}
		if err == nil {
			continue
		}
		broken, ok := errors.AsType[*brokenError](err)
		if !ok {
			return err
		}
		if ctx.Err() != nil || time.Since(begin)+pause > r.disk.server.patience() {
			return broken.cause
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, mostPause)
	}
}

func (r *extentReader) params() *GetExtentsParams {
	at := r.at
	p := &GetExtentsParams{Offset: &at}
	if r.opt.Length > 0 {
		rest := r.opt.Offset + r.opt.Length - r.at
		p.Length = &rest
	}
	if r.opt.TopOnly {
		resolve := false
		p.Resolve = &resolve
	}
	if r.opt.Page > 0 {
		p.Limit = &r.opt.Page
	}
	if !r.opt.Changing {
		p.IfMatch = optional(r.etag)
	}
	return p
}

// once makes one request, and reports whether there is more to ask for.
func (r *extentReader) once(ctx context.Context) (more bool, err error) {
	if r.opt.Page > 0 {
		return r.page(ctx)
	}
	resp, err := r.disk.server.API.GetExtents(ctx, r.disk.name, r.params(), func(_ context.Context, req *http.Request) error {
		req.Header.Set("Accept", "application/x-ndjson")
		return nil
	})
	if err != nil {
		return false, err
	}
	if err := expect(resp, http.StatusOK); err != nil {
		return false, err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end, or given up
	if r.etag == "" {
		r.etag = resp.Header.Get("ETag")
	}
	lines := bufio.NewReaderSize(resp.Body, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return false, r.ended()
		case errors.Is(err, bufio.ErrBufferFull):
			return false, errors.New("a line of the map is too long")
		case errors.Is(err, io.EOF):
			return false, &brokenError{cause: errShort}
		case err != nil:
			return false, &brokenError{cause: err}
		}
		var e Extent
		if err := json.Unmarshal(line, &e); err != nil {
			return false, fmt.Errorf("a line of the map: %w", err)
		}
		if err := r.take(e); err != nil {
			return false, err
		}
	}
}

func (r *extentReader) page(ctx context.Context) (more bool, err error) {
	resp, err := r.disk.server.API.GetExtents(ctx, r.disk.name, r.params())
	if err != nil {
		return false, err
	}
	if r.etag == "" {
		r.etag = resp.Header.Get("ETag")
	}
	var list ExtentList
	if err := decode(resp, &list, http.StatusOK); err != nil {
		if _, told := errors.AsType[*Problem](err); !told {
			err = &brokenError{cause: err}
		}
		return false, err
	}
	for _, e := range list.Extents {
		if err := r.take(e); err != nil {
			return false, err
		}
	}
	if list.Next == nil {
		return false, r.ended()
	}
	if *list.Next != r.at || len(list.Extents) == 0 {
		return false, fmt.Errorf("a page of the map goes on at %d", *list.Next)
	}
	return true, nil
}

// take passes an extent on.
func (r *extentReader) take(e Extent) error {
	if e.Offset != r.at || e.Length <= 0 {
		return fmt.Errorf("an extent of %d bytes at %d in the map, in which %d comes next", e.Length, e.Offset, r.at)
	}
	r.at += e.Length
	if !r.yield(e, nil) {
		return errEnough
	}
	return nil
}

// ended reports a map that ends too early although its answer was complete.
func (r *extentReader) ended() error {
	if r.opt.Length > 0 && r.at != r.opt.Offset+r.opt.Length {
		return fmt.Errorf("the map ends at %d", r.at)
	}
	return nil
}
