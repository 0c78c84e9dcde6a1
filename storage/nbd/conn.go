package nbd

import (
	"bufio"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// inFlight is the most requests on a connection that are not answered; more
	// wait.
	inFlight = 64
	// ioSize is how much is read and written at a time.
	ioSize = 128 << 10
)

// A conn is a connection past its handshake. Two goroutines serve it until it dies:
// one sends, one receives.
type conn struct {
	session
	nc      net.Conn
	timeout time.Duration
	r       *bufio.Reader // the receiver's
	scratch []byte        // the receiver's
	load    atomic.Int32  // requests that are on it, or about to be
	// generation is the file's, and changed what it was when something was last
	// changed here, or was to be.
	generation *atomic.Int64
	changed    atomic.Int64
	counted    int64       // what it was when it was counted as a loss; under the file's mutex
	leaving    atomic.Bool // it is draining
	useful     atomic.Bool // it has answered something

	slots chan struct{} // one held by each request
	work  chan struct{} // tells the sender that there is something to do
	dead  chan struct{} // closed when it is

	mu       sync.Mutex
	pending  map[uint64]*request // what is not answered, by cookie
	queue    []*request          // of those, what the sender has not begun with
	cookie   uint64              // the last one
	busy     time.Time           // since when there has been something pending
	err      error               // why it is dead
	draining error               // why nothing more is taken; it dies when all is answered
}

func newConn(nc net.Conn, s session, timeout time.Duration, generation *atomic.Int64) *conn {
	c := &conn{
		session: s, nc: nc, timeout: timeout, generation: generation,
		slots: make(chan struct{}, inFlight), work: make(chan struct{}, 1), dead: make(chan struct{}),
		pending: make(map[uint64]*request, inFlight),
	}
	c.changed.Store(-1)
	c.counted = -1
	c.r = bufio.NewReaderSize(incoming{c}, ioSize)
	return c
}

// do has a request answered. The error is the server's, the caller's context's, or a
// *lostError. After it the caller's buffers are his own. The request is too if there
// was no error; else the connection may still look at it, and it is not used again.
func (c *conn) do(ctx context.Context, r *request) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.dead:
	}
	if r.changes() {
		c.mark()
	}
	if err := c.submit(r); err != nil {
		return err
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		r.left = c.abandon(r)
		return ctx.Err()
	}
}

// submit queues a request for the sender.
func (c *conn) submit(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.draining != nil {
		if c.err == nil {
			<-c.slots
		}
		return &lostError{cause: first(c.err, c.draining), again: true}
	}
	c.cookie++
	r.Cookie, r.waiting = c.cookie, true
	if len(c.pending) == 0 {
		c.busy = time.Now()
	}
	c.pending[r.Cookie] = r
	c.queue = append(c.queue, r)
	c.signal()
	return nil
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (c *conn) signal() {
	select {
	case c.work <- struct{}{}:
	default: // it knows
	}
}

// abandon leaves a request to the connection: the caller has gone. It reports whether
// the server may get to see it.
func (c *conn) abandon(r *request) bool {
	c.mu.Lock()
	unsent := r.waiting
	if unsent && c.pending[r.Cookie] == r { // and never will be
		for i := range c.queue {
			if c.queue[i] == r {
				c.queue = append(c.queue[:i], c.queue[i+1:]...)
				break
			}
		}
		c.forget(r)
	}
	c.mu.Unlock()
	r.detach(true)
	return !unsent
}

// forget takes a request off the connection. The mutex is held.
func (c *conn) forget(r *request) {
	delete(c.pending, r.Cookie)
	<-c.slots
	if c.draining != nil && len(c.pending) == 0 {
		c.signal()
	}
}

// take is the receiver's: it finds the request that a reply belongs to.
func (c *conn) take(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.pending[cookie]
	if r == nil || r.waiting {
		return nil, protocolError("a reply to cookie %#x, which nothing has", cookie)
	}
	return r, nil
}

// finish is the receiver's: the reply to a request is complete.
func (c *conn) finish(r *request) error {
	if r.unsent() {
		if r.err == nil {
			return protocolError("a write was done before it was sent")
		}
		r.detach(true)
	}
	if r.changes() {
		c.mark() // while the connection is alive: who loses it looks afterwards
	}
	c.mu.Lock()
	alive := c.pending[r.Cookie] == r
	if alive {
		c.forget(r)
	}
	c.mu.Unlock()
	if !alive {
		return errDead
	}
	c.useful.Store(true)
	r.done <- r.err
	return nil
}

// drain takes nothing more, and ends the connection once everything is answered.
func (c *conn) drain(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining == nil {
		c.draining = why
		c.leaving.Store(true)
	}
	if len(c.pending) == 0 {
		c.signal()
	}
}

// kill ends the connection, but for what [conn.bury] does. It reports whether it was
// alive.
func (c *conn) kill(why error) (left map[uint64]*request, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, false
	}
	c.err = why
	left, c.pending, c.queue = c.pending, nil, nil
	return left, true
}

// bury closes a connection that was killed, and fails what was on it.
func (c *conn) bury(left map[uint64]*request) {
	close(c.dead)
	for _, r := range left {
		r.detach(false)
		r.done <- &lostError{cause: c.err, again: r.waiting}
	}
	_ = c.nc.Close()
}

// mark notes that something is changed, or about to be.
func (c *conn) mark() {
	now := c.generation.Load()
	for before := c.changed.Load(); before < now && !c.changed.CompareAndSwap(before, now); {
		before = c.changed.Load()
	}
}

// overdue reports whether the server has owed an answer since before that time, and
// if not, from when on it does.
func (c *conn) overdue(before time.Time) (bool, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return false, time.Now()
	}
	return !c.busy.After(before), c.busy
}
