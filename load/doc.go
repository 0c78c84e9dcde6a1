// Package load bounds what clients can make a server hold: connections, requests
// under way, memory for what is on its way, and the requests of one client.
//
// What is beyond a bound is refused with an error that says when to come again,
// at once or after a bounded wait, and before anything has been done. A bound
// that is not given is none. Nothing here closes a connection that is in use:
// who is served too slowly, or too much, is told; who is slow is for the packages
// that read and write.
package load

import (
	"errors"
	"sync/atomic"
	"time"
)

// Errors of this package are a *LaterError that wraps one of these.
var (
	// ErrBusy says that the server has no room for a request now.
	ErrBusy = errors.New("the server is busy")
	// ErrTooMany says that a client makes requests faster than it may.
	ErrTooMany = errors.New("too many requests")
)

// A LaterError refuses what may succeed later.
type LaterError struct {
	Err   error         // ErrBusy or ErrTooMany
	After time.Duration // when to try again, above 0
}

func (e *LaterError) Error() string { return e.Err.Error() }

func (e *LaterError) Unwrap() error { return e.Err }

// RetryAfter is when to try again.
func (e *LaterError) RetryAfter() time.Duration { return e.After }

// busy is what all are told for whom there is no room.
//
//nolint:gochecknoglobals // only read: one for every refusal would be garbage
var busy = &LaterError{Err: ErrBusy, After: 5 * time.Second}

// Busy is the error of a server that has no room: a *LaterError.
func Busy() error { return busy }

// Counts are what happened since the start. All are for reading alone outside of
// the packages that serve clients.
type Counts struct {
	Refused atomic.Int64 // connections beyond the bound
	Limited atomic.Int64 // requests of clients that make too many: 429
	Busy    atomic.Int64 // requests for which there was no room: 503
	Stalled atomic.Int64 // transfers cut off because nothing moved
}
