package api

import (
	"context"
	"sync"
)

// Requests counts the requests under way. Who has cut their connections off
// waits for them before the service is closed: a handler may still be writing to
// an image, which would not be closed cleanly otherwise. The zero value is
// ready.
type Requests struct {
	mu   sync.Mutex // protects all below
	n    int
	none chan struct{} // closed when n becomes 0; nil unless somebody waits

	over context.Context // ends with Stop; nil: nobody asked yet
	stop context.CancelFunc
}

// Wait returns when no request is under way, or with the context's error.
func (q *Requests) Wait(ctx context.Context) error {
	q.mu.Lock()
	if q.n == 0 {
		q.mu.Unlock()
		return nil
	}
	if q.none == nil {
		q.none = make(chan struct{})
	}
	none := q.none
	q.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop is for who cuts connections off: it ends the requests that go on without
// their client, too.
func (q *Requests) Stop() {
	q.lifetime()
	q.stop() // is not changed anymore
}

// lifetime ends with Stop.
func (q *Requests) lifetime() context.Context {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over == nil {
		q.over, q.stop = context.WithCancel(context.Background())
	}
	return q.over
}

// outlive is the context of a request that goes on when its client goes away. It
// ends with Stop, and is to be cancelled.
func (q *Requests) outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(q.lifetime(), cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func (q *Requests) begin() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n++
}

func (q *Requests) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n--; q.n == 0 && q.none != nil {
		close(q.none)
		q.none = nil
	}
}
