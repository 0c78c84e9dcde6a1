package api

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/storage"
)

const (
	// pieceSize is how much of a map is encoded before it is written: below
	// 256 KiB, system calls begin to count.
	pieceSize = 256 << 10
	// smallPiece is likewise where memory is short: pieces of them are load.Least.
	smallPiece = 20 << 10
	// shortPage is how many extents fit into one of them.
	shortPage = 100
	// pieceRoom is what a buffer has beyond a piece, for the extent that makes it
	// full.
	pieceRoom = 1 << 10
	// pieces bounds how far the walk runs ahead of the client.
	pieces = 3
	// pieceTime is how long a piece may be in the making while nothing else
	// is on its way: a map that is slow to walk is sent as it comes.
	pieceTime = 200 * time.Millisecond
)

var (
	pieceBuffers      = sync.Pool{New: func() any { b := make([]byte, 0, pieceSize+pieceRoom); return &b }}
	smallPieceBuffers = sync.Pool{New: func() any { b := make([]byte, 0, smallPiece+pieceRoom); return &b }}
)

// A mapBody is an encoded map on its way from the goroutine that walks the
// image to the one that writes to the client. Its memory does not grow with the
// map. close must be called.
type mapBody struct {
	full   chan piece   // closed when the walk has ended
	free   chan *[]byte // nil: one that has not been made yet
	size   int          // of a piece
	memory *load.Memory
	taken  int64 // of memory
	first  piece
	err    error // why the walk ended early; to be read once full is closed
	cancel context.CancelFunc
	walk   sync.WaitGroup
}

// A piece is a part of the body.
type piece struct {
	text *[]byte
	last bool
}

// startMap walks and encodes the map, and returns when the first piece is
// there, or why there is none.
func startMap(ctx context.Context, h origin, q extentQuery, memory *load.Memory) (*mapBody, error) {
	if err := memory.Long(ctx, load.Least); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &mapBody{full: make(chan piece, pieces), free: make(chan *[]byte, pieces), cancel: cancel, size: smallPiece, memory: memory, taken: load.Least}
	if most := int64(pieces * pieceSize); (q.limit == 0 || q.limit > shortPage) && memory.Spare(most) {
		b.size, b.taken = pieceSize, b.taken+most
	}
	for range pieces {
		b.free <- nil
	}
	b.walk.Go(func() {
		defer close(b.full)
		w := mapWriter{ctx: ctx, h: h, body: b, q: q}
		b.err = w.run()
	})
	first, ok := <-b.full
	if !ok {
		b.close()
		return nil, b.err
	}
	b.first = first
	return b, nil
}

// close ends the walk, waits for it, and keeps the buffers for other maps.
func (b *mapBody) close() {
	b.cancel()
	for p := range b.full {
		b.free <- p.text
	}
	b.walk.Wait()
	close(b.free)
	for text := range b.free {
		if text != nil && cap(*text) < 2*b.size {
			b.pool().Put(text)
		}
	}
	b.memory.Put(b.taken)
}

// pool is where buffers come from.
func (b *mapBody) pool() *sync.Pool {
	if b.size == pieceSize {
		return &pieceBuffers
	}
	return &smallPieceBuffers
}

// writeTo writes the body, with a Content-Length if it is a single piece.
func (b *mapBody) writeTo(w http.ResponseWriter) error {
	p := b.first
	if p.last {
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(*p.text))}
	}
	for {
		_, err := w.Write(*p.text)
		b.free <- p.text
		if err != nil || p.last {
			return err
		}
		if len(b.full) == 0 {
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		}
		var ok bool
		if p, ok = <-b.full; !ok {
			return b.err
		}
	}
}

// A mapWriter encodes a map into the pieces of a body.
type mapWriter struct {
	ctx     context.Context // it is that of one walk
	h       origin
	body    *mapBody
	q       extentQuery
	encoder encoder
	text    []byte  // the piece in the making
	buffer  *[]byte // what it is written to
	release func()  // of the map, which is held while a piece is made; nil: between
	since   time.Time
	count   int               // extents so far
	end     int64             // of the last one
	before  []storage.Mapping // see keep
	marker  *marker           // nil: extents say nothing but their bits
}

// run writes the whole body. Of one that fails, nothing says that it ended.
func (w *mapWriter) run() (err error) {
	defer func() {
		if p := recover(); p != nil { // as net/http does for its own goroutines
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		w.letGo()
	}()
	if k := w.q.mark; k != nil && !w.q.only {
		w.marker = newMarker(w.ctx, k, w.q.off, w.q.off+w.q.n)
		defer w.marker.stop()
	}
	w.next(<-w.body.free)
	if !w.q.ndjson {
		w.text = fmt.Appendf(w.text, `{"size":%d,"generation":%q,"extents":[`, w.q.size, w.q.generation)
	}
	if w.q.only {
		err = w.runOnly()
	} else {
		_, err = w.walk(w.q.off, w.q.n)
	}
	if err != nil {
		return err
	}
	if !w.q.ndjson {
		w.text = append(w.text, ']')
		if end := w.q.off + w.q.n; w.end < end && w.count > 0 && (!w.q.only || !w.room()) {
			w.text = fmt.Appendf(w.text, `,"next":%d`, w.end)
		}
		w.text = append(w.text, "}\n"...)
	}
	w.hand(true)
	return nil
}

// walk adds the extents of a range, and reports whether there is room for more.
func (w *mapWriter) walk(off, n int64) (more bool, err error) {
	for m, err := range w.h.Device().Walk(w.ctx, off, n, w.q.options()) {
		if err != nil {
			return false, err
		}
		if more, err := w.take(&m); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// runOnly adds the extents of the parts of which the mark is true. The map is asked
// for those alone.
func (w *mapWriter) runOnly() error {
	k := *w.q.mark
	w.marker = &marker{members: k.members(), part: marked{end: storage.MaxSize, is: true}}
	at, end := w.q.off, w.q.off+w.q.n
	var part marked // true, and not walked yet
	from := at
	for p, err := range k.parts(w.ctx, at, end) {
		if err != nil {
			return err
		}
		switch {
		case p.is && part.is:
		case p.is:
			from = at
		case part.is:
			if more, err := w.walk(from, part.end-from); !more || err != nil {
				return err
			}
		}
		part, at = p, p.end
	}
	if !part.is {
		return nil
	}
	_, err := w.walk(from, part.end-from)
	return err
}

// take adds an extent, and reports whether there is room for more.
func (w *mapWriter) take(m *storage.Mapping) (more bool, err error) {
	if w.q.limit > 0 && m.End() <= w.q.off {
		w.keep(m)
		return true, nil
	}
	if len(w.before) > 0 {
		if err := w.addBefore(); err != nil {
			return false, err
		}
	}
	if w.marker != nil {
		return w.addMarked(m)
	}
	if err := w.add(m); err != nil {
		return false, err
	}
	return w.room(), nil
}

func (w *mapWriter) room() bool { return w.q.limit == 0 || w.count < w.q.limit }

// addMarked adds an extent in parts that are alike.
func (w *mapWriter) addMarked(m *storage.Mapping) (more bool, err error) {
	for rest := *m; rest.Length > 0 && w.room(); {
		part, is, err := w.marker.cut(&rest)
		if err != nil {
			return false, err
		}
		w.begin()
		w.text = w.marker.appendTo(w.encoder.append(w.text, &part), is)
		if err := w.added(&part); err != nil {
			return false, err
		}
	}
	return w.room(), nil
}

// keep keeps an extent that was volunteered before the range, and forgets those
// that are farthest from it: at most half of a page is before the range, so that
// who follows the pages gets on.
func (w *mapWriter) keep(m *storage.Mapping) {
	most := w.q.limit / 2
	if len(w.before) >= 2*most {
		w.before = w.before[:copy(w.before, w.before[len(w.before)-most:])]
	}
	if most > 0 {
		w.before = append(w.before, *m)
	}
}

func (w *mapWriter) addBefore() error {
	kept := w.before[max(0, len(w.before)-w.q.limit/2):]
	for i := range kept {
		if err := w.add(&kept[i]); err != nil {
			return err
		}
	}
	w.before = nil
	return nil
}

// add encodes an extent.
func (w *mapWriter) add(m *storage.Mapping) error {
	w.begin()
	w.text = w.encoder.append(w.text, m)
	return w.added(m)
}

// begin writes what stands before an extent.
func (w *mapWriter) begin() {
	if w.count > 0 && !w.q.ndjson {
		w.text = append(w.text, ',')
	}
}

// added writes what stands behind an extent, and hands over the piece when it is
// full.
func (w *mapWriter) added(m *storage.Mapping) error {
	if w.q.ndjson {
		w.text = append(w.text, '\n')
	}
	w.count++
	w.end = m.End()
	full := len(w.text) >= w.body.size
	if !full && w.count%64 == 0 && len(w.body.full) == 0 {
		full = time.Since(w.since) >= pieceTime
	}
	if !full {
		return nil
	}
	w.hand(false)
	select {
	case buffer := <-w.body.free:
		w.next(buffer)
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// hand hands over the piece. There is room for all of them. The map is not held
// while the client is waited for.
func (w *mapWriter) hand(last bool) {
	w.letGo()
	*w.buffer = w.text
	w.body.full <- piece{w.buffer, last}
}

// next begins a piece in a buffer, nil for a new one.
func (w *mapWriter) next(buffer *[]byte) {
	if buffer == nil {
		buffer = w.body.pool().Get().(*[]byte)
	}
	w.buffer, w.text, w.since = buffer, (*buffer)[:0], time.Now()
	w.release = w.h.HoldMap()
}

// letGo lets others change the map again.
func (w *mapWriter) letGo() {
	if w.release != nil {
		w.release()
		w.release = nil
	}
}
