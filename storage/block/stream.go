package block

import (
	"context"
	"io"
	"sync"
	"syscall"

	"github.com/extentd/extentd/storage"
)

const (
	// firstRead is how much of a long stream is read before anything is sent:
	// enough to know that the image can be read at all. A range of up to
	// firstRead is read whole, in one buffer.
	firstRead = 64 << 10
	// gatherSize is the buffer in which short extents are put together.
	gatherSize = 256 << 10
	// sendFrom is the shortest extent that is handed out as a range of a
	// file: below it sendfile costs more than a read and a write.
	sendFrom = 64 << 10
	// sendMost bounds one such piece, so that a context is looked at now and
	// then.
	sendMost = 16 << 20
)

// A Piece is the next part of a stream: bytes in memory, or a range of a file
// that the receiver may send without reading it.
type Piece struct {
	Data           []byte       // valid until the next call; nil when File is set
	File           syscall.Conn // the file, nil when Data is set
	Offset, Length int64        // in File, bytes; it holds them until the next call
}

// A Stream reads a range of a device from the front. It holds no lock and no pin
// between two calls, so that a slow receiver holds up nobody; but for a pin on a
// range of a file, which is only handed out while nothing can be written. It
// belongs to one goroutine; Close must be called, and waits for the stream's own
// goroutines.
type Stream struct {
	d      *Device
	ctx    context.Context // io.Reader has no room for one
	off    int64           // first byte that has not been handed out
	end    int64
	buf    *[]byte // pooled
	rest   []byte  // read but not yet handed out
	cursor *cursor // nil until the range is longer than the first read
	queue  *queue  // likewise
	memory holding
	err    error // what failed; kept
}

var (
	_ io.ReadCloser = (*Stream)(nil)
	_ io.WriterTo   = (*Stream)(nil)
)

// buffers for first reads and for gathering; a stream holds one.
var (
	shortBuffers = sync.Pool{New: func() any { b := make([]byte, firstRead); return &b }}
	longBuffers  = sync.Pool{New: func() any { b := make([]byte, gatherSize); return &b }}
)

// zeros is what runs of zeros are sent from, and written from where a format
// cannot say zero. It is never written to, so that it takes no memory.
var zeros = make([]byte, zeroChunk)

// Stream returns a stream of [off, off+n), its first part already read: what is
// wrong with the range or with the image's beginning is told here, before
// anything is sent. Bounds and alignment are those of ReadAt. ctx is honoured
// between pieces for as long as the stream lives.
func (d *Device) Stream(ctx context.Context, off, n int64) (*Stream, error) {
	return d.StreamWithin(ctx, off, n, nil)
}

// StreamWithin returns a stream that takes from memory what its buffers need
// beyond StreamLeast, which the caller has taken. It does with that where there is
// no plenty.
func (d *Device) StreamWithin(ctx context.Context, off, n int64, memory Memory) (*Stream, error) {
	if err := d.Check(ctx, off, n); err != nil {
		return nil, err
	}
	s := &Stream{d: d, ctx: ctx, off: off, end: off + n, memory: holding{memory: memory}}
	if err := s.prime(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stream) prime() error {
	n := s.end - s.off
	if n == 0 {
		return nil
	}
	if n <= firstRead {
		s.buf = shortBuffers.Get().(*[]byte)
		s.rest = (*s.buf)[:n]
		if err := s.d.readAt(s.ctx, s.rest, s.off); err != nil {
			return err
		}
		s.off = s.end
		return nil
	}
	s.buf = s.gather()
	s.cursor = s.d.cursor(true)
	s.queue = newQueue(s)
	defer s.cursor.release()
	front, err := s.queue.front()
	if err != nil {
		return err
	}
	if front.job == nil && !front.m.Status.Has(storage.Zero) {
		s.rest = (*s.buf)[:min(front.m.Length, firstRead)]
		return s.readFront(front, s.rest)
	}
	p, err := s.produce(false)
	s.rest = p.Data
	return err
}

// gather is a buffer for more than the first read.
func (s *Stream) gather() *[]byte {
	if s.memory.spare(gatherSize - StreamLeast) {
		return longBuffers.Get().(*[]byte)
	}
	return shortBuffers.Get().(*[]byte)
}

// Next returns the next piece, io.EOF after the last.
func (s *Stream) Next() (Piece, error) { return s.next(true) }

// next returns the next piece; without files, one in memory.
func (s *Stream) next(files bool) (Piece, error) {
	if s.cursor != nil {
		s.cursor.release() // the last piece may have been a range of a file
	}
	if len(s.rest) > 0 {
		p := Piece{Data: s.rest}
		s.rest = nil
		return p, nil
	}
	if s.err != nil {
		return Piece{}, s.err
	}
	if s.off == s.end {
		return Piece{}, io.EOF
	}
	p, err := s.produce(files)
	if p.File == nil {
		s.cursor.release()
	}
	return p, err
}

// produce returns the next piece after what was handed out. Short extents are
// gathered in the buffer; a long zero run, an unpacked job, and with files a
// long extent of a file, are pieces of their own.
func (s *Stream) produce(files bool) (Piece, error) {
	gathered := 0
	for s.off < s.end && gathered < len(*s.buf) {
		if err := s.ctx.Err(); err != nil {
			return s.fail(err)
		}
		front, err := s.queue.front()
		if err != nil {
			if gathered > 0 {
				s.err = err // what came before it is good
				break
			}
			return s.fail(err)
		}
		if s.alone(front, files) {
			if gathered > 0 {
				break
			}
			return s.piece(front)
		}
		n := min(front.m.Length, int64(len(*s.buf)-gathered))
		if err := s.readFront(front, (*s.buf)[gathered:gathered+int(n)]); err != nil {
			return s.fail(err)
		}
		gathered += int(n)
	}
	return Piece{Data: (*s.buf)[:gathered]}, nil
}

func (s *Stream) fail(err error) (Piece, error) {
	s.err = err
	return Piece{}, err
}

// alone reports whether the front of the queue is a piece by itself. What is
// writable by now is not sent from: what sendfile takes from a file's pages may
// leave the machine after they have changed.
func (s *Stream) alone(front *segment, files bool) bool {
	if front.job != nil {
		return true
	}
	if front.m.Length < sendFrom {
		return false
	}
	return front.m.Status.Has(storage.Zero) || files && !s.d.moves() && sendable(&front.m) != nil
}

// sendable is the file of a plain extent that may be sent from, or nil. sendfile
// goes through the page cache: a file that is to be read past it is not sent from.
func sendable(m *storage.Mapping) syscall.Conn {
	if !m.Status.Has(storage.OffsetValid) || m.Flags&storage.Encrypted != 0 {
		return nil
	}
	if f, may := m.Node.File().(interface{ Direct() bool }); may && f.Direct() {
		return nil
	}
	f, _ := m.Node.File().(syscall.Conn)
	return f
}

// A sendWatcher is a file that wants to know which of its ranges are handed out to
// be sent from, since nobody reads them.
type sendWatcher interface {
	Sending(ctx context.Context, off, n int64)
}

// piece hands out the front of the queue, or its beginning, by itself.
func (s *Stream) piece(front *segment) (Piece, error) {
	if front.job != nil {
		data, err := s.queue.finish(front)
		if err != nil {
			return s.fail(err)
		}
		s.off += int64(len(data))
		return Piece{Data: data}, nil
	}
	if front.m.Status.Has(storage.Zero) {
		n := min(front.m.Length, gatherSize)
		s.advance(front, n)
		return Piece{Data: zeros[:n]}, nil
	}
	n := min(front.m.Length, sendMost)
	size, err := front.m.Node.Size(s.ctx)
	if err != nil {
		return s.fail(err)
	}
	if n = min(n, size-front.m.NodeOffset); n <= 0 { // the node ends here
		n = min(front.m.Length, int64(len(*s.buf)))
		if err := s.readFront(front, (*s.buf)[:n]); err != nil {
			return s.fail(err)
		}
		return Piece{Data: (*s.buf)[:n]}, nil
	}
	if w, watches := front.m.Node.File().(sendWatcher); watches {
		w.Sending(s.ctx, front.m.NodeOffset, n)
	}
	p := Piece{File: sendable(&front.m), Offset: front.m.NodeOffset, Length: n}
	s.advance(front, n)
	return p, nil
}

// readFront reads the beginning of the front of the queue into p.
func (s *Stream) readFront(front *segment, p []byte) error {
	m := front.m
	m.Length = int64(len(p))
	if err := s.cursor.read(s.ctx, &m, p); err != nil {
		return err
	}
	s.advance(front, m.Length)
	return nil
}

func (s *Stream) advance(front *segment, n int64) {
	s.off += n
	s.queue.advance(front, n)
}

// Read reads from memory and from files alike.
func (s *Stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		piece, err := s.next(false)
		if err != nil {
			return 0, err
		}
		s.rest = piece.Data
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// WriteTo writes the rest of the stream to w.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for {
		piece, err := s.next(false)
		if err == io.EOF { //nolint:errorlint // Next returns it bare
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(piece.Data)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
}

// Close ends the stream and waits for its goroutines. It may be called again.
func (s *Stream) Close() error {
	if s.queue != nil {
		s.queue.stop()
		s.queue = nil
	}
	if s.cursor != nil {
		s.cursor.put()
		s.cursor = nil
	}
	if s.buf != nil {
		if len(*s.buf) == firstRead {
			shortBuffers.Put(s.buf)
		} else {
			longBuffers.Put(s.buf)
		}
		s.buf, s.rest = nil, nil
	}
	s.memory.put()
	s.off, s.err = s.end, io.ErrClosedPipe
	return nil
}
