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
