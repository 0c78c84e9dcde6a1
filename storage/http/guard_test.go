package http_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
)

func TestPublicAddresses(t *testing.T) {
	for _, text := range []string{
		"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "223.255.255.255",
		"2606:4700::1111", "2a00::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
	} {
		if !http.Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is refused", text)
		}
	}
	for _, text := range []string{
		"127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:100.64.0.1", "::127.0.0.1", "::8.8.8.8",
		"64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "fd12:3456::1",
		"ff02::1", "ff0e::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "2002:0808:0808::1", "3fff::1", "100::1", "5f00::1",
	} {
		if http.Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is not refused", text)
		}
	}
}

// A server on this machine is not asked, whatever it is called.
func TestPrivateAddressIsRefused(t *testing.T) {
	s := serve(t, make([]byte, 1000))
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "127.1.2.3", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "10.255.255.1", "169.254.169.254"} {
		opt := local("http://" + host + ":" + port + "/f")
		opt.AllowPrivate = false
		if _, err := http.Open(t.Context(), opt); !errors.Is(err, storage.ErrRefused) {
			t.Errorf("%s: %v, want %v", host, err, storage.ErrRefused)
		}
	}
	if n := s.connections.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// names is a name server that answers with one address after another, and then
// with the last.
func names(t *testing.T, addresses ...string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		query := make([]byte, 512)
		for asked := 0; ; {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			answer, isA := answerTo(query[:n], addresses[min(asked, len(addresses)-1)])
			if isA {
				asked++
			}
			_, _ = conn.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answerTo is a DNS answer: one A record that may not be kept, or none.
func answerTo(query []byte, address string) (answer []byte, isA bool) {
	end := 12
	for query[end] != 0 { // the name
		end += int(query[end]) + 1
	}
	end += 5
	isA = binary.BigEndian.Uint16(query[end-4:]) == 1
	answer = append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	if isA {
		answer[7] = 1
		ip := netip.MustParseAddr(address).As4()
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		answer = append(answer, ip[:]...)
	}
	return answer, isA
}

// A name that leads somewhere good when it is asked for first, and to a private
// address later, is refused then.
func TestRebinding(t *testing.T) {
	s := serve(t, make([]byte, 1000))
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var dialled atomic.Int64
	allowed := func(a netip.Addr) bool {
		dialled.Add(1)
		return a == netip.MustParseAddr("127.0.0.1")
	}
	f, err := http.OpenResolving(t.Context(), local("http://rebind.test:"+port+"/f"), names(t, "127.0.0.1", "127.0.0.2"), allowed)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	s.CloseClientConnections()
	_, err = f.ReadAt(t.Context(), make([]byte, 10), 0)
	if !errors.Is(err, storage.ErrRefused) || !strings.Contains(err.Error(), "127.0.0.2") {
		t.Errorf("%v, want %v", err, storage.ErrRefused)
	}
	if n := dialled.Load(); n < 2 {
		t.Errorf("%d addresses were looked at", n)
	}
}

// A name server that says nothing keeps nobody longer than his context, and
// nothing goes on asking it.
func TestSilentNames(t *testing.T) {
	others := goleak.IgnoreCurrent()
	silent := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	opt := local("http://silent.test/f")
	opt.Timeout = time.Hour
	if _, err := http.OpenResolving(ctx, opt, silent, http.Public); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	goleak.VerifyNone(t, others)
}

// A redirect to a private address is refused as any other way to it.
func TestRedirectToPrivateAddress(t *testing.T) {
	inside := serve(t, make([]byte, 1000))
	outside := serve(t, make([]byte, 1000))
	_, port, err := net.SplitHostPort(inside.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	outside.set(func(s *site) { s.hook = redirecting(302, func() string { return "http://127.0.0.2:" + port + "/f" }) })
	_, outsidePort, _ := net.SplitHostPort(outside.Listener.Addr().String())
	allowed := func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.1") }
	_, err = http.OpenResolving(t.Context(), local("http://outside.test:"+outsidePort+"/r"), names(t, "127.0.0.1"), allowed)
	if !errors.Is(err, storage.ErrRefused) {
		t.Errorf("%v, want %v", err, storage.ErrRefused)
	}
	if outside.requests.Load() != 1 || inside.connections.Load() != 0 {
		t.Errorf("%d requests outside, %d connections inside", outside.requests.Load(), inside.connections.Load())
	}
}
