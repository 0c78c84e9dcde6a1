package auth_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/auth"
)

// attempt is what becomes of a wrong secret: how long to wait, 0 if it was looked at.
func attempt(t *testing.T, g *auth.Guard, from netip.Addr, secret string) time.Duration {
	t.Helper()
	_, err := g.Bearer(t.Context(), from, secret)
	var slow *auth.SlowDownError
	switch {
	case errors.As(err, &slow):
		if slow.RetryAfter <= 0 || slow.RetryAfter > 5*time.Second {
			t.Fatalf("RetryAfter is %v", slow.RetryAfter)
		}
		return slow.RetryAfter
	case !errors.Is(err, auth.ErrUnauthenticated):
		t.Fatalf("error %v", err)
	}
	return 0
}

func TestSlowDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log journal
		g := start(t, auth.Options{Logger: log.logger(), File: write(t, "tokens:\n"+
			token("old", "old-customer", "map", "a")+token("new", "new-customer", "map", "a"))})
		bearer(t, g, "old-customer")

		for i := range 10 {
			if d := attempt(t, g, here, fmt.Sprint("guess-", i)); d != 0 {
				t.Fatalf("slowed by %v after %d failures", d, i)
			}
		}
		// From now on each failure that is looked at doubles the delay.
		for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			want *= time.Millisecond
			if got := attempt(t, g, here, "guess"); got != want {
				t.Fatalf("delay %v, want %v", got, want)
			}
			time.Sleep(want / 2)
			if got := attempt(t, g, here, "guess"); got != want/2 {
				t.Fatalf("delay %v after half of it, want %v", got, want/2)
			}
			// Nobody learns whether a guess is right while it is too early for it.
			if _, err := g.Bearer(t.Context(), here, "new-customer"); !errors.As(err, new(*auth.SlowDownError)) {
				t.Fatalf("a token that was not used from here: %v", err)
			}
			bearer(t, g, "old-customer")
			time.Sleep(want / 2)
			if got := attempt(t, g, here, "guess"); got != 0 {
				t.Fatalf("not looked at after the delay: %v", got)
			}
		}
		time.Sleep(5 * time.Second)
		bearer(t, g, "new-customer") // in time, it is looked at like any other
		if got := attempt(t, g, here, "guess"); got != 0 {
			t.Fatalf("a success is not a failure: %v", got)
		}
		bearer(t, g, "new-customer")

		// Other addresses are not slowed, and after some time this one starts anew.
		elsewhere := netip.MustParseAddr("192.0.2.8")
		if got := attempt(t, g, elsewhere, "guess"); got != 0 {
			t.Errorf("another address: %v", got)
		}
		time.Sleep(5*time.Minute + time.Second)
		for range 10 {
			if got := attempt(t, g, here, "guess"); got != 0 {
				t.Fatalf("after five minutes: %v", got)
			}
		}
		if got := strings.Count(log.String(), "slowing the address down"); got != 2 {
			t.Errorf("%d warnings, want 2:\n%s", got, &log)
		}
		if strings.Contains(log.String(), "guess") {
			t.Error("the log holds what was guessed")
		}
	})
}

// What cannot be a guess slows nobody down.
func TestSlowDownCountsGuesses(t *testing.T) {
	g := start(t, auth.Options{File: write(t, "tokens: []")})
	for range 50 {
		if d := attempt(t, g, here, ""); d != 0 {
			t.Fatalf("slowed by %v", d)
		}
	}
	if g.Failures() != 50 {
		t.Errorf("%d failures, want 50", g.Failures())
	}
}

func TestBucket(t *testing.T) {
	cases := []struct{ from, want string }{
		{"192.0.2.7", "192.0.2.7"},
		{"::ffff:192.0.2.7", "192.0.2.7"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
		{"fe80::1%eth0", "fe80::"},
	}
	for _, c := range cases {
		if got := auth.Bucket(netip.MustParseAddr(c.from)); got.String() != c.want {
			t.Errorf("%s: %v, want %s", c.from, got, c.want)
		}
	}
	if got := auth.Bucket(netip.Addr{}); got.IsValid() {
		t.Errorf("no address: %v", got)
	}
}

// An attack from many addresses takes a bounded memory, and whoever has failed often
// is still known after it.
func TestSlowDownIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := start(t, auth.Options{AnyCertificate: true}) // no file to look at for all that time
		for range 11 {
			attempt(t, g, here, "guess")
		}
		for i := range uint32(2 * auth.MaxAddresses) {
			var at [4]byte
			binary.BigEndian.PutUint32(at[:], 10<<24|i)
			attempt(t, g, netip.AddrFrom4(at), "guess")
		}
		if got := g.Addresses(); got > auth.MaxAddresses {
			t.Errorf("%d addresses are remembered", got)
		}
		if attempt(t, g, here, "guess") == 0 {
			t.Error("the address that failed often was forgotten")
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := g.Addresses(); got != 0 {
			t.Errorf("%d addresses are remembered after 10 minutes", got)
		}
	})
}
