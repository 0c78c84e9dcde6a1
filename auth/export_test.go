package auth

import (
	"context"
	"net/netip"
	"time"
)

// NewQuick is New with shorter times: a look at the file every 5 ms, keys that are
// fresh for so long and kept for so long, and a pause between requests.
func NewQuick(ctx context.Context, opt Options, fresh, keep, pause time.Duration) (*Guard, error) {
	t := defaultTiming()
	t.look, t.fresh, t.keep, t.pause, t.maxBackoff = 5*time.Millisecond, fresh, keep, pause, 4*pause
	return newGuard(ctx, opt, t)
}

// ParseFile reports what is wrong with a token file.
func ParseFile(text []byte) error {
	_, err := parseFile(text)
	return err
}

// Like is the pattern of claims.
func Like(pattern, text string) bool { return like(pattern, text) }

// Addresses is how many addresses the guard remembers failures of.
func (g *Guard) Addresses() int { return len(g.brake.table) }

// Tickets is how many tickets live.
func (g *Guard) Tickets() int {
	g.tickets.mu.RLock()
	defer g.tickets.mu.RUnlock()
	return len(g.tickets.live)
}

// Bucket is what failures are counted for.
func Bucket(from netip.Addr) netip.Addr { return bucket(from) }

// The bounds that tests reach.
const (
	MaxAddresses     = maxAddresses
	MaxTicketsMinter = maxTicketsMinter
	MaxSecret        = maxSecret
	MaxFile          = maxFile
	MaxCached        = maxCached
)
