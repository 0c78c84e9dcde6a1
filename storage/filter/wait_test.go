package filter_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/storage/filter"
)

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		ends, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, c := range []struct {
			ctx     context.Context
			d, want time.Duration
			err     error
		}{
			{t.Context(), 0, 0, nil},
			{t.Context(), -time.Hour, 0, nil},
			{ended, 0, 0, context.Canceled},
			{ended, time.Hour, 0, context.Canceled},
			{ends, time.Hour, time.Second, context.DeadlineExceeded},
			{t.Context(), time.Hour, time.Hour, nil},
		} {
			begun := time.Now()
			if err := filter.Wait(c.ctx, c.d); !errors.Is(err, c.err) || time.Since(begun) != c.want {
				t.Errorf("Wait(%v) = %v, after %v, want %v, after %v", c.d, err, time.Since(begun), c.err, c.want)
			}
		}
	})
}
