package main

import (
	"context"
	"sync"
	"time"
)

// linger goes on serving for the delay, while readyz says that it will end: who
// sends clients here hears of it in time.
func (s *Server) linger(failed chan error) {
	timer := time.NewTimer(s.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case err := <-failed:
		failed <- err // for Run; there is no more to wait for
	}
}

// drain lets requests under way end, and cuts off those that do not. Probes
// are answered meanwhile.
func (s *Server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.grace)
	defer cancel()
	var images sync.WaitGroup // one kind of client must not use up the time of another
	for _, d := range s.doors {
		if d != s.admin {
			images.Go(func() {
				if d.gently {
					s.seeOff(ctx, d)
				}
				s.shut(ctx, d)
			})
		}
	}
	images.Wait()
	if s.admin != nil {
		s.shut(ctx, s.admin)
	}
}

// settleTime is how long connections stay open on which there is nothing to do:
// the next request may be on its way to them, from a client that was not told yet
// that there should be none.
const settleTime = 500 * time.Millisecond

// seeOff serves who has connected, and stops when all of them have been answered.
// What it does not do is net/http's: that closes connections as soon as a request
// has been answered, or none has come yet, and whoever sends one at that moment is
// not answered.
func (s *Server) seeOff(ctx context.Context, d *door) {
	if err := d.bound.stop(); err != nil {
		s.log.Warn("connections that nobody has accepted may be lost", "error", err)
	}
	select {
	case <-d.ended:
	case <-ctx.Done():
		return
	}
	if s.requests.Wait(ctx) != nil {
		return // those are cut off
	}
	const step = 5 * time.Millisecond
	for end := time.Now().Add(settleTime); d.open.Load() > 0 && time.Now().Before(end); {
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) shut(ctx context.Context, d *door) {
	if err := d.server.Shutdown(ctx); err != nil {
		s.log.Warn("requests are cut off", "error", err)
		_ = d.server.Close() // their clients see it
	}
}
