package http

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/extentd/extentd/storage"
)

const (
	data = storage.Alloc | storage.OffsetValid
	hole = storage.Zero | storage.OffsetValid
)

// freshness is how long a part of the map is good for. It is of the version that
// was opened, and never becomes wrong; but nobody would notice another version
// who reads zeros alone.
const freshness = 5 * time.Second

// A mapPage is a part of the file's map, without gaps. It is not changed.
type mapPage struct {
	begin int64
	spans []span // not empty
	until time.Time
}

// A span is an extent, which begins where the one before it ends.
type span struct {
	end    int64
	status storage.Status
}

func (p *mapPage) end() int64 { return p.spans[len(p.spans)-1].end }

// holds reports whether a page, which may be nil, says something of off.
func (p *mapPage) holds(off int64) bool {
	return p != nil && p.begin <= off && off < p.end() && time.Now().Before(p.until)
}

// Extents appends one extent of data, up to the end of the file, unless the
// server is another extentd: then zeros are told from data, as it does, and it
// may stop early. What that server says is believed only if it has the version
// that was opened both before and after; a map that makes no sense, or none, is
// data.
func (f *File) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, f.size); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	if f.extents == "" {
		return into.Add(storage.Mapping{Offset: off, Length: f.size - off, NodeOffset: off, Status: data})
	}
	page := f.known.Load()
	if !page.holds(off) {
		var err error
		if page, err = f.ask(ctx, off); err != nil {
			return err
		}
	}
	return page.add(off, off+n, into)
}

// add appends [off, end) as far as the page goes, the last extent whole.
func (p *mapPage) add(off, end int64, into *storage.ExtentList) error {
	_, hi := into.Window()
	end = min(end, hi)
	i := sort.Search(len(p.spans), func(i int) bool { return p.spans[i].end > off })
	for first := true; i < len(p.spans) && (first || off < end); i++ {
		s := p.spans[i]
		m := storage.Mapping{Offset: off, Length: s.end - off, NodeOffset: off, Status: s.status}
		if err := into.Add(m); err != nil {
			return err
		}
		off, first = s.end, false
	}
	return nil
}

// ask returns a page that holds off, and remembers it: the server's, or one of
// data, if its map is of no use. Only what the caller must know is an error: that
// he gave up, or that the file is not what it was.
func (f *File) ask(ctx context.Context, off int64) (*mapPage, error) {
	page, err := f.fetchMap(ctx, off)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, storage.ErrClosed) || errors.Is(err, storage.ErrChanged) {
			return nil, err
		}
		page = &mapPage{spans: []span{{end: f.size, status: data}}}
	}
	page.until = time.Now().Add(freshness)
	f.known.Store(page)
	return page, nil
}
