package filter

import (
	"context"
	"time"
)

// Wait waits for d, or until ctx ends: then its error is ctx's. It does not
// wait where d is not positive, and looks at ctx all the same.
func Wait(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
