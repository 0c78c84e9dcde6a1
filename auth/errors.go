package auth

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrUnauthenticated: what was presented makes nobody known. The text of the
	// error says why, and may be shown to the client.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrForbidden: the caller is known, and may not do that.
	ErrForbidden = errors.New("forbidden")
)

// A SlowDownError: too much that was wrong has come from this address of late, and
// it was not looked at what was presented now.
type SlowDownError struct {
	// RetryAfter is when the next attempt will be looked at, from now: more than 0,
	// at most 5 s.
	RetryAfter time.Duration
}

func (e *SlowDownError) Error() string {
	return fmt.Sprintf("too many failures to authenticate from this address, try again in %v", e.RetryAfter)
}

// A refusal says why what was presented makes nobody known. It wraps
// [ErrUnauthenticated].
type refusal struct {
	reason string
	// guess: it may be one of many that somebody tries. What was right once, or
	// could not be checked, is no guess.
	guess bool
}

func (r *refusal) Error() string { return ErrUnauthenticated.Error() + ": " + r.reason }

func (r *refusal) Unwrap() error { return ErrUnauthenticated }

// wrong is the refusal of what nobody can have been given.
func wrong(reason string) *refusal { return &refusal{reason: reason, guess: true} }

// stale is the refusal of what was good, or may be.
func stale(reason string) *refusal { return &refusal{reason: reason} }
