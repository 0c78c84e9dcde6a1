package http

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/extentd/extentd/storage"
)

// guarded returns a dialer that connects to public addresses alone. The address
// is looked at when the socket is about to connect: what a name resolved to
// before does not matter.
func guarded(allowed func(netip.Addr) bool) *net.Dialer {
	return &net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !allowed(at.Addr()) {
			return fmt.Errorf("%w: the address is not public", storage.ErrRefused)
		}
		return nil
	}}
}

// special are the networks of the public ranges that are not reached through the
// internet (RFC 6890 and the registries that it set up).
var special = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // shared by providers and their customers
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // holds an IPv4 address of anybody's choice
	netip.MustParsePrefix("3fff::/20"),
}

var (
	unicast6 = [...]netip.Prefix{netip.MustParsePrefix("2000::/3")}
	nat64    = [...]netip.Prefix{netip.MustParsePrefix("64:ff9b::/96")}
)

// public reports whether an address is one of the internet. Of IPv6, what is not
// handed out for it is not.
func public(a netip.Addr) bool {
	a = a.Unmap()
	if nat64[0].Contains(a) { // a network without IPv4 reaches it so
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Is6() && !unicast6[0].Contains(a) {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
