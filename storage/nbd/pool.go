package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	leastPause = 50 * time.Millisecond
	mostPause  = 5 * time.Second
)

// acquire finds the connection with the least to do, and sees to it that another one
// is made where that is too much. The caller gives up its load.
func (f *File) acquire(ctx context.Context) (*conn, error) {
	var late <-chan time.Time
	for {
		f.mu.Lock()
		c, err := f.pick()
		wake, pause := f.wake, time.Until(f.retryAt)
		if c == nil && err == nil && !f.dialing && pause <= 0 {
			f.dialing = true
			f.wg.Go(f.redial)
		}
		dialing, dialErr := f.dialing, f.dialErr
		f.mu.Unlock()
		if c != nil || err != nil {
			return c, err
		}
		if late == nil {
			t := time.NewTimer(f.opt.Reconnect)
			defer t.Stop()
			late = t.C
		}
		if dialing {
			pause = f.opt.Reconnect
		}
		retry := time.NewTimer(pause)
		select {
		case <-wake:
		case <-retry.C:
		case <-late:
			err = noConnection(dialErr)
		case <-ctx.Done():
			err = ctx.Err()
		case <-f.life.Done():
			err = storage.ErrClosed
		}
		retry.Stop()
		if err != nil {
			return nil, err
		}
	}
}

func noConnection(why error) error {
	if why == nil {
		why = os.ErrDeadlineExceeded
	}
	return fmt.Errorf("no connection: %w", why)
}

// pick is the connection to use, nil if there is none. The mutex is held.
func (f *File) pick() (*conn, error) {
	if f.life.Err() != nil {
		return nil, storage.ErrClosed
	}
	if f.fatal != nil {
		return nil, f.fatal
	}
	var best *conn
	lively := 0
	for _, c := range f.conns {
		if c.leaving.Load() {
			continue
		}
		lively++
		if best == nil || c.load.Load() < best.load.Load() {
			best = c
		}
	}
	if best == nil {
		return nil, nil
	}
	if best.load.Add(1) > 1 && lively < f.opt.Connections && !f.dialing && !time.Now().Before(f.retryAt) {
		f.dialing = true
		f.wg.Go(f.redial)
	}
	return best, nil
}

// redial makes one connection, or says when to try again.
func (f *File) redial() {
	nc, s, err := f.target.dial(f.life, f.opt.DialTimeout)
	if err == nil {
		if err = f.export.same(&s.export); err != nil {
			_ = nc.Close()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialing = false
	if err == nil {
		f.add(newConn(nc, s, f.opt.Timeout, &f.generation))
		return
	}
	f.dialErr = meaning(err)
	if errors.Is(err, storage.ErrChanged) {
		f.fatal = f.dialErr
	}
	f.pause()
	f.notify()
}

// pause puts off the next attempt, by about twice as much as the last time. The
// mutex is held.
func (f *File) pause() {
	d := mostPause
	if f.failures < 16 {
		d = min(d, leastPause<<f.failures)
		f.failures++
	}
	f.retryAt = time.Now().Add(d/2 + rand.N(d))
}

// notify wakes those who wait. The mutex is held.
func (f *File) notify() {
	close(f.wake)
	f.wake = make(chan struct{})
}

// add takes a connection into use, and has it served until it dies. The mutex is
// held.
func (f *File) add(c *conn) {
	if f.life.Err() != nil { // too late
		_ = c.nc.Close()
		return
	}
	f.conns = append(f.conns, c)
	f.wg.Go(func() { f.lost(c, c.send()) })
	f.wg.Go(func() { f.lost(c, c.receive()) })
	f.notify()
}

// lost takes a connection out of use that has ended, and fails what is on it.
func (f *File) lost(c *conn, why error) {
	if why == nil {
		return
	}
	f.mu.Lock()
	left, alive := c.kill(meaning(why))
	if !alive {
		f.mu.Unlock()
		return
	}
	f.conns = slices.DeleteFunc(f.conns, func(o *conn) bool { return o == c })
	f.account(c)
	if c.useful.Load() {
		f.failures, f.retryAt = 0, time.Time{}
	} else {
		f.pause()
	}
	f.notify()
	f.mu.Unlock()
	c.bury(left)
}

// account notes a loss if something was changed on a connection that no flush will
// cover any more. The mutex is held.
func (f *File) account(c *conn) {
	if at := c.changed.Load(); at >= f.flushed && at > c.counted && f.export.can(wire.SendFlush) {
		f.losses++
		c.counted = at
	}
}
