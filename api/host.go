package api

import (
	"net"
	"net/netip"
	"strings"
)

// hostAllowed reports whether a Host header names this server. A browser that
// was lured to a name of the attacker's sends that name.
func (s *server) hostAllowed(header string) bool {
	if !s.opt.Loopback || header == "" { // browsers always send one
		return true
	}
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	for _, h := range s.opt.Hosts {
		if strings.EqualFold(host, h) {
			return true
		}
	}
	return false
}
