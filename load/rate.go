package load

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxClients is how many clients' rates are remembered, about: those that have
// made no request for longest are forgotten, and begin anew.
const maxClients = 10_000

// A Client is one whose requests are counted together.
type Client struct {
	Name string       // of who is known by name
	From netip.Prefix // of who is not; the zero value for all of a unix socket
}

// ClientAt is the client at a remote address, as net/http writes it: an address
// of its own in IPv4, and a network of 64 bits in IPv6, which one host commonly
// has. What is no address of IP is one client.
func ClientAt(remote string) Client {
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return Client{}
	}
	ip := addr.Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return Client{}
	}
	return Client{From: prefix}
}

// Rates bound how many requests a client makes in a second. A nil one is without
// a bound.
type Rates struct {
	limit  rate.Limit
	burst  int
	counts *Counts

	mu     sync.Mutex // protects all below
	recent map[Client]*rate.Limiter
	before map[Client]*rate.Limiter // those that have not been asked for since recent was empty
}

// NewRates allows each client so many requests a second, and burst at once; both
// are above 0.
func NewRates(perSecond float64, burst int, counts *Counts) *Rates {
	return &Rates{limit: rate.Limit(perSecond), burst: burst, counts: counts, recent: make(map[Client]*rate.Limiter)}
}

// Allow counts a request of the client. It fails with a *LaterError.
func (r *Rates) Allow(c Client) error {
	if r == nil {
		return nil
	}
	l := r.limiter(c)
	if l.Allow() {
		return nil
	}
	r.counts.Limited.Add(1)
	missing := 1 - l.Tokens()
	after := time.Duration(math.Ceil(missing / float64(r.limit) * float64(time.Second)))
	return &LaterError{Err: ErrTooMany, After: min(max(after, time.Millisecond), time.Hour)}
}

// Clients is how many are remembered.
func (r *Rates) Clients() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.recent) + len(r.before)
}

func (r *Rates) limiter(c Client) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.recent[c]; l != nil {
		return l
	}
	l := r.before[c]
	if l == nil {
		l = rate.NewLimiter(r.limit, r.burst)
	}
	if len(r.recent) >= maxClients/2 {
		r.before, r.recent = r.recent, make(map[Client]*rate.Limiter)
	}
	r.recent[c] = l
	return l
}
