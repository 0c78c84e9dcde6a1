package api

import (
	"context"
	"sync/atomic"
	"time"
)

// Requests counts the requests under way. Who has cut their connections off
// waits for them before the service is closed: a handler may still be writing to
// an image, which would not be closed cleanly otherwise. The zero value is
// ready.
type Requests struct{ n atomic.Int64 }

// Wait returns when no request is under way, or with the context's error.
func (q *Requests) Wait(ctx context.Context) error {
	for q.n.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}
