package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	// readAhead is how much of the stream of requests is read at a time.
	readAhead = 64 << 10
	// maxPayload is the longest payload that is read over, bytes: twice what
	// clients may send. One that sends more is cut off.
	maxPayload = 64 << 20
)

// A session is the second phase of a connection. Requests are read by the
// connection's goroutine, which serves reads and writes itself as long as storage
// answers at once: handing them over costs more than they do, half of the time of
// 4 KiB reads at 16 in flight. All else is for workers. The replies are sent by
// whoever has one and finds nobody sending, with all others that are there.
type session struct {
	c          *conn
	rw         net.Conn
	raw        bool // rw can gather
	export     *export
	structured bool
	extended   bool
	contexts   contexts

	in      *bufio.Reader // the reader's, as are all below
	quota   int64         // the most memory for requests under way
	slow    int           // how many requests are not to be served inline
	penalty int           // how many there will be next time
	held    int           // how many replies are in out, and not yet to be sent

	queue   chan *request
	workers sync.WaitGroup
	count   atomic.Int32 // of workers
	began   time.Time    // of which the clock counts

	gone atomic.Bool // the client does not take replies anymore

	mu      sync.Mutex // protects all below
	room    sync.Cond  // the reader waits for it
	flying  int        // requests under way
	used    int64      // memory that they have
	out     []*request // to be replied to
	spare   []*request // what out was before
	sending bool       // somebody does; what is below is theirs
	free    []*request // used again

	iov     [][]byte
	gather  net.Buffers
	flat    []byte        // where rw cannot gather
	touched time.Duration // when the write deadline was set last
}

func newSession(n *negotiation) *session {
	s := &session{
		c: n.c, rw: n.rw, raw: !n.secure, export: n.export,
		structured: n.structured, extended: n.extended,
		in:    bufio.NewReaderSize(n.rw, readAhead),
		quota: max(n.c.s.opt.MaxMemory/4, sizeOf(classes-1)),
		queue: make(chan *request, n.c.s.opt.MaxInFlight),
		began: time.Now(), penalty: slowFor,
	}
	if n.of == n.export.name {
		s.contexts = n.contexts
	}
	s.room.L = &s.mu
	return s
}

// clock is the time since the session began.
func (s *session) clock() time.Duration { return time.Since(s.began) }

// run serves requests until the client goes, or the server stops.
func (s *session) run() error {
	s.startWorkers()
	defer s.finish()
	for {
		r, err := s.next()
		if r == nil || err != nil {
			return err
		}
		s.dispatch(r)
	}
}

// finish waits for all requests that are under way, and for their replies: who
// sends is a worker, or the caller.
func (s *session) finish() {
	s.unhold()
	close(s.queue)
	s.workers.Wait()
}

// next reads a request. It is nil when there will be none.
func (s *session) next() (*request, error) {
	size := wire.RequestSize
	if s.extended {
		size = wire.ExtRequestSize
	}
	stopping := s.c.draining.Load()
	if s.in.Buffered() < size {
		s.unhold()
		if stopping {
			return nil, nil
		}
	}
	p, err := s.in.Peek(size)
	switch {
	case err == nil:
	case len(p) == 0 && errors.Is(err, io.EOF), s.c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil
	default:
		return nil, err
	}
	header, err := wire.ParseRequest(p, s.extended)
	if err != nil {
		return nil, err
	}
	if _, err := s.in.Discard(size); err != nil || header.Command == wire.CmdDisc {
		return nil, err
	}
	r := s.request()
	r.Request = header
	if err := s.receive(r, stopping); err != nil {
		s.drop(r)
		return nil, err
	}
	return r, nil
}

// receive checks a request, waits until there is room for it, and reads its
// payload.
func (s *session) receive(r *request, stopping bool) error {
	payload := r.Payload(s.extended)
	if payload > maxPayload {
		return fmt.Errorf("%w: a payload of %d bytes", wire.ErrProtocol, payload)
	}
	query := r.Command == wire.CmdBlockStatus && payload > 0
	if query && payload <= maxQuery {
		if err := s.fill(r.query[:payload]); err != nil {
			return err
		}
		r.narrow(r.query[:payload], s)
		payload = 0
	}
	switch {
	case stopping:
		r.err = errStopping
	case query && payload > 0:
		r.err = errQuery
	case r.err == nil:
		r.err = s.check(r)
	}
	if r.err != nil {
		return s.skip(payload)
	}
	if err := s.admit(r); err != nil {
		return err
	}
	if payload == 0 {
		return nil
	}
	r.buf = s.c.s.pool.get(int64(payload))
	return s.fill(r.buf.data[:payload])
}

// admit waits until there is room for the request, and takes it.
func (s *session) admit(r *request) error {
	cost := s.cost(r)
	if cost == 0 {
		return nil
	}
	s.mu.Lock()
	for s.flying > 1 && s.used+cost > s.quota { // r is one of them
		s.await()
	}
	s.used += cost
	s.mu.Unlock()
	if !s.c.s.memory.try(cost) {
		s.unhold()
		if err := s.c.s.memory.take(s.c.s.ctx, cost); err != nil {
			s.unuse(cost)
			return err
		}
	}
	r.cost = cost
	return nil
}

// await waits for room, with mu held.
func (s *session) await() {
	if s.held == 0 {
		s.room.Wait()
		return
	}
	s.mu.Unlock()
	s.unhold()
	s.mu.Lock()
}

func (s *session) unuse(cost int64) {
	s.mu.Lock()
	s.used -= cost
	s.mu.Unlock()
}

// fill reads all of p. It fails when the client sends nothing for a while.
func (s *session) fill(p []byte) error {
	if s.in.Buffered() >= len(p) {
		_, err := io.ReadFull(s.in, p)
		return err
	}
	s.unhold()
	if err := s.c.nc.SetReadDeadline(time.Now().Add(s.c.s.opt.StallTimeout)); err != nil {
		return err
	}
	moved, woken := false, false
	for len(p) > 0 {
		n, err := s.in.Read(p)
		p = p[n:]
		moved = moved || n > 0
		if err == nil {
			continue
		}
		stopped := s.c.draining.Load() && !woken // drain makes a read fail
		if !errors.Is(err, os.ErrDeadlineExceeded) || s.rw != s.c.nc || !moved && !stopped {
			return err
		}
		moved, woken = false, woken || stopped
		if err := s.c.nc.SetReadDeadline(time.Now().Add(s.c.s.opt.StallTimeout)); err != nil {
			return err
		}
	}
	return s.c.nc.SetReadDeadline(time.Time{})
}

// skip reads over a payload.
func (s *session) skip(n uint64) error {
	if n == 0 {
		return nil
	}
	buf := s.c.s.pool.get(readAhead)
	defer s.c.s.pool.put(buf)
	for n > 0 {
		k := min(n, uint64(len(buf.data)))
		if err := s.fill(buf.data[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
