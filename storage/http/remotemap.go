package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	nethttp "net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/extentd/extentd/storage"
)

// Bounds of a page of a map: extents, and bytes of JSON.
const (
	pageExtents = 1000
	pageBytes   = 2 << 20
)

// errMap: what came is no map of this file.
var errMap = errors.New("no map of the file")

// fetchMap asks the other extentd for a page from off on. Its map has a generation
// of its own, so what it is worth is found out afterwards: generations do not come
// back, and if the data still has the one that it was opened with, then it had it
// while the map was made.
func (f *File) fetchMap(ctx context.Context, off int64) (*mapPage, error) {
	at, err := f.mapURL(off)
	if err != nil {
		return nil, err
	}
	text, host, err := f.fetchJSON(ctx, at)
	if err != nil {
		return nil, err
	}
	page, err := parseMap(text, off, f.size)
	if err != nil {
		return nil, err
	}
	same, err := f.unchanged(ctx)
	if err == nil && same != host { // another server need not have the same generations
		err = fmt.Errorf("%w: the map and the file are on different hosts", errMap)
	}
	return page, err
}

func (f *File) mapURL(off int64) (place, error) {
	u := *f.origin.url
	var err error
	if u.Path, err = url.PathUnescape(f.extents); err != nil {
		return place{}, err
	}
	u.RawPath = f.extents
	query := "offset=" + strconv.FormatInt(off, 10) + "&limit=" + strconv.Itoa(pageExtents)
	if u.RawQuery != "" {
		query = u.RawQuery + "&" + query
	}
	u.RawQuery = query
	return place{url: &u, trust: f.origin.trust}, nil
}

// fetchJSON also says which host answered.
func (f *File) fetchJSON(ctx context.Context, at place) (text []byte, host string, err error) {
	a, err := f.send(ctx, ask{method: nethttp.MethodGet, at: &at, accept: "application/json"})
	if err != nil {
		return nil, "", err
	}
	defer a.end()
	kind, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	switch {
	case a.StatusCode != nethttp.StatusOK:
		return nil, "", fmt.Errorf("%w: status %d", errMap, a.StatusCode)
	case err != nil || !strings.EqualFold(kind, "application/json"):
		return nil, "", fmt.Errorf("%w: not JSON", errMap)
	case checkEncoding(a.Header) != nil || a.ContentLength > pageBytes:
		return nil, "", fmt.Errorf("%w: encoded, or too long", errMap)
	}
	text, err = io.ReadAll(io.LimitReader(a, pageBytes+1))
	if err == nil && len(text) > pageBytes {
		err = fmt.Errorf("%w: too long", errMap)
	}
	return text, a.from.url.Host, err
}

// A wireMap is what is of interest in an answer; it may say more.
type wireMap struct {
	Size    *int64       `json:"size"`
	Extents []wireExtent `json:"extents"`
}

type wireExtent struct {
	Offset *int64 `json:"offset"`
	Length *int64 `json:"length"`
	Local  *bool  `json:"local"`
	Zero   *bool  `json:"zero"`
	Alloc  *bool  `json:"alloc"`
}

// parseMap checks an answer to a request for the map from off: the extents begin
// there, follow one another, and end inside the file.
func parseMap(text []byte, off, size int64) (*mapPage, error) {
	var w wireMap
	if err := json.Unmarshal(text, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", errMap, err)
	}
	if w.Size == nil || *w.Size != size {
		return nil, fmt.Errorf("%w: of another size", errMap)
	}
	if len(w.Extents) == 0 || len(w.Extents) > pageExtents {
		return nil, fmt.Errorf("%w: %d extents", errMap, len(w.Extents))
	}
	page := &mapPage{begin: off, spans: make([]span, 0, len(w.Extents))}
	for i := range w.Extents {
		s, ok := w.Extents[i].span(off, size)
		if !ok {
			return nil, fmt.Errorf("%w: extent %d contradicts the others, or itself", errMap, i)
		}
		page.spans = append(page.spans, s)
		off = s.end
	}
	return page, nil
}

// span is the extent as this file has it, if it begins at off. Zeros are at their
// own offset here, whatever node they are on there; what is not zero is data,
// wherever that comes from.
func (e *wireExtent) span(off, size int64) (span, bool) {
	if e.Offset == nil || e.Length == nil || e.Local == nil || e.Zero == nil || e.Alloc == nil {
		return span{}, false
	}
	if *e.Offset != off || *e.Length < 1 || *e.Length > size-off || !*e.Local && !*e.Zero {
		return span{}, false
	}
	s := span{end: off + *e.Length, status: data}
	if *e.Zero {
		s.status = hole
		if *e.Alloc {
			s.status |= storage.Alloc
		}
	}
	return s, true
}
