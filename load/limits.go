package load

import (
	"context"
	"time"
)

// Options say what a server bears. The zero value bounds nothing.
type Options struct {
	// Connections is how many there may be at a time, and how many requests may
	// be under way. Default: no bound.
	Connections int
	// Transfers is the memory in bytes that buffers of transfers may take
	// together. Default: no bound.
	Transfers int64
	// Rate is how many requests one client may make in a second. Default: no
	// bound.
	Rate float64
	// Burst is how many of them may come at once. Default: twice the rate, at
	// least 1.
	Burst int
	// Stall is how long a transfer may take for 64 KiB, or for all of it if that
	// is less. Default: no bound.
	Stall time.Duration
}

// Limits are the bounds of one server. A nil *Limits bounds nothing. They are
// safe for concurrent use.
type Limits struct {
	counts      Counts
	connections *Connections // nil: no bound
	requests    *Requests    // nil: no bound
	memory      *Memory      // nil: no bound
	rates       *Rates       // nil: no bound
	stall       time.Duration
}

// New returns the bounds of a server.
func New(opt Options) *Limits {
	l := &Limits{stall: opt.Stall}
	if opt.Connections > 0 {
		l.connections = NewConnections(opt.Connections, &l.counts)
		l.requests = NewRequests(opt.Connections, &l.counts)
	}
	if opt.Transfers > 0 {
		l.memory = NewMemory(opt.Transfers, &l.counts)
	}
	if opt.Rate > 0 {
		burst := opt.Burst
		if burst <= 0 {
			burst = max(int(2*opt.Rate), 1)
		}
		l.rates = NewRates(opt.Rate, burst, &l.counts)
	}
	return l
}

// Counts are what happened since the start.
func (l *Limits) Counts() *Counts {
	if l == nil {
		return new(Counts)
	}
	return &l.counts
}

// Connections are those for which listeners are to be wrapped, nil without a
// bound.
func (l *Limits) Connections() *Connections {
	if l == nil {
		return nil
	}
	return l.connections
}

// Memory is that of transfers, nil without a bound.
func (l *Limits) Memory() *Memory {
	if l == nil {
		return nil
	}
	return l.memory
}

// Rates are those of clients, nil without a bound.
func (l *Limits) Rates() *Rates {
	if l == nil {
		return nil
	}
	return l.rates
}

// Requests are those under way, nil without a bound.
func (l *Limits) Requests() *Requests {
	if l == nil {
		return nil
	}
	return l.requests
}

// Stall is how long a transfer may take for 64 KiB, 0 without a bound.
func (l *Limits) Stall() time.Duration {
	if l == nil {
		return 0
	}
	return l.stall
}

// Requests are those under way, of which there may be so many at a time. A nil
// one is without a bound.
type Requests struct {
	share    share
	most     int64
	counts   *Counts
	patience time.Duration
}

// NewRequests returns a bound of most requests, which is above 0, and counts
// those that are refused.
func NewRequests(most int, counts *Counts) *Requests {
	q := &Requests{most: int64(most), counts: counts, patience: patience}
	q.share.free.Store(q.most)
	return q
}

// UnderWay is how many there are.
func (q *Requests) UnderWay() int64 {
	if q == nil {
		return 0
	}
	return q.most - q.share.free.Load()
}

// Enter waits some seconds until there is room for one more, and fails with a
// *LaterError if there is none, or with the context's error. Who entered leaves.
func (q *Requests) Enter(ctx context.Context) error {
	if q == nil || q.share.try(1, 0) || q.share.take(ctx, 1, 0, q.patience) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	q.counts.Busy.Add(1)
	return busy
}

// Leave makes room for another one.
func (q *Requests) Leave() {
	if q != nil {
		q.share.put(1)
	}
}
