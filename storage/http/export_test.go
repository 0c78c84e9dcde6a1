package http

import (
	"context"
	"net"
	"net/netip"
)

// Public is what decides which addresses are dialled.
func Public(a netip.Addr) bool { return public(a) }

// OpenResolving opens with names from a resolver, and addresses that allowed
// allows.
func OpenResolving(ctx context.Context, opt Options, names *net.Resolver, allowed func(netip.Addr) bool) (*File, error) {
	dialer := guarded(allowed)
	dialer.Resolver = names
	return open(ctx, opt, dialer)
}

// ParseMap reports the extents of a page of a map, as an alternation of ends and
// statuses.
func ParseMap(text []byte, off, size int64) (ends []int64, statuses []string, err error) {
	page, err := parseMap(text, off, size)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range page.spans {
		ends, statuses = append(ends, s.end), append(statuses, s.status.String())
	}
	return ends, statuses, nil
}

// Forget makes the next call for extents ask the server.
func (f *File) Forget() { f.known.Store(nil) }
