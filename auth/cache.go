package auth

import (
	"sync"
	"time"
)

const (
	// maxCached bounds the secrets that are remembered; some 200 bytes each, beside
	// their callers.
	maxCached = 4096
	// cacheFor is how long a secret is remembered at most.
	cacheFor = time.Minute
)

// A cache remembers for a short time which secrets were found good, so that a
// signature is not checked for every 4 KiB that somebody reads. What is wrong is
// never in it, so that nobody fills it who knows no secret. It belongs to one
// state of the rules, and goes with it. Safe for concurrent use.
type cache struct {
	mu    sync.RWMutex // protects known
	known map[handle]cached
}

type cached struct {
	caller *Caller
	until  time.Time
	ticket *record // nil for others
}

// get is the caller of the secret, nil if that must be found out.
func (c *cache) get(h handle, now time.Time) *Caller {
	c.mu.RLock()
	e, ok := c.known[h]
	c.mu.RUnlock()
	if !ok || !now.Before(e.until) || e.ticket != nil && e.ticket.revoked.Load() {
		return nil
	}
	return e.caller
}

// put remembers the caller of a secret that is good until then.
func (c *cache) put(h handle, e cached, now time.Time) {
	if most := now.Add(cacheFor); e.until.After(most) {
		e.until = most
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[handle]cached)
	}
	if len(c.known) >= maxCached {
		c.shrink(now)
	}
	c.known[h] = e
}

// shrink makes room for many: what has ended goes, and then whatever comes first.
// c.mu is held.
func (c *cache) shrink(now time.Time) {
	for h, e := range c.known {
		if !now.Before(e.until) {
			delete(c.known, h)
		}
	}
	for h := range c.known {
		if len(c.known) < maxCached*3/4 {
			return
		}
		delete(c.known, h)
	}
}
