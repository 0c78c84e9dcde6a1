package auth_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func mint(t testing.TB, g *auth.Guard, by *auth.Caller, image string, v auth.Verbs, ttl time.Duration) auth.Ticket {
	t.Helper()
	ticket, err := g.Mint(t.Context(), by, auth.TicketRequest{Image: image, Verbs: v, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestTicket(t *testing.T) {
	g := start(t, auth.Options{State: kept(t, t.TempDir()), File: write(t, "tokens:\n"+
		token("b", "b-token", "map, read", `"*.qcow2"`))})
	by := bearer(t, g, "b-token")
	before := time.Now()
	ticket := mint(t, g, by, "vm.qcow2", auth.Read, 10*time.Minute)
	if !strings.HasPrefix(ticket.Secret, "extentd_ticket_1_") || len(ticket.Secret) > 150 || ticket.ID == "" {
		t.Errorf("ticket %+v", ticket)
	}
	if ttl := ticket.Expires.Sub(before); ttl < 9*time.Minute || ttl > 11*time.Minute {
		t.Errorf("it lives for %v", ttl)
	}
	for range 2 { // the second time it is remembered
		c := bearer(t, g, ticket.Secret)
		if c.Kind != auth.KindTicket || c.Name != "b" || c.Ticket != ticket.ID || !c.Expires.Equal(ticket.Expires) {
			t.Errorf("caller %+v", *c)
		}
		if got := c.Grants.Verbs("vm.qcow2"); got != auth.Read {
			t.Errorf("it allows %v, want read", got)
		}
		if c.Sees("other.qcow2") {
			t.Error("it is for another image, too")
		}
	}
	if strings.Contains(ticket.Secret, "b-token") || strings.Contains(bearer(t, g, ticket.Secret).String(), ticket.Secret) {
		t.Error("a secret shows")
	}
}

func TestMintRefuses(t *testing.T) {
	path := write(t, "tokens:\n"+token("b", "b-token", "map, read", `"*.qcow2"`)+token("w", "w-token", "write", "a.qcow2"))
	g := start(t, auth.Options{State: kept(t, t.TempDir()), File: path})
	by := bearer(t, g, "b-token")
	bearerOfTicket := bearer(t, g, mint(t, g, by, "a.qcow2", auth.Map, time.Minute).Secret)
	ended := *by
	ended.Expires = time.Now().Add(-time.Second)
	cases := []struct {
		name string
		by   *auth.Caller
		req  auth.TicketRequest
		want error
		text string
	}{
		{"more verbs", by, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.All, TTL: time.Minute}, auth.ErrForbidden, `write, create, admin on image "a.qcow2"`},
		{"unseen", by, auth.TicketRequest{Image: "a.raw", Verbs: auth.Read, TTL: time.Minute}, storage.ErrNotFound, "a.raw"},
		{"a pattern", by, auth.TicketRequest{Image: "*.qcow2", Verbs: auth.Read, TTL: time.Minute}, storage.ErrNotFound, ""},
		{"another pattern", by, auth.TicketRequest{Image: "[a].qcow2", Verbs: auth.Read, TTL: time.Minute}, storage.ErrNotFound, ""},
		{"no verbs", by, auth.TicketRequest{Image: "a.qcow2", TTL: time.Minute}, storage.ErrInvalid, "verbs is empty"},
		{"strange verbs", by, auth.TicketRequest{Image: "a.qcow2", Verbs: 1 << 7, TTL: time.Minute}, storage.ErrInvalid, "verbs"},
		{"short", by, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Read, TTL: time.Millisecond}, storage.ErrInvalid, "ttl is 1ms, must be from 1s to 24h0m0s"},
		{"long", by, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Read, TTL: 25 * time.Hour}, storage.ErrInvalid, "ttl"},
		{"negative", by, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Read, TTL: -time.Hour}, storage.ErrInvalid, "ttl"},
		{"by a ticket", bearerOfTicket, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Map, TTL: time.Minute}, auth.ErrForbidden, "mints no tickets"},
		{"by anyone", auth.Anyone(), auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Map, TTL: time.Minute}, auth.ErrUnauthenticated, ""},
		{
			"by an impostor", &auth.Caller{Kind: auth.KindToken, Name: "w", Grants: auth.Anyone().Grants},
			auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Map, TTL: time.Minute},
			auth.ErrUnauthenticated, "",
		},
		{"after its end", &ended, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Map, TTL: time.Minute}, auth.ErrUnauthenticated, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ticket, err := g.Mint(t.Context(), c.by, c.req)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("ticket %v, error %v, want %v with %q", ticket, err, c.want, c.text)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Mint(ctx, by, auth.TicketRequest{Image: "a.qcow2", Verbs: auth.Map, TTL: time.Minute}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
	if g.Tickets() != 1 {
		t.Errorf("%d tickets, want 1", g.Tickets())
	}
}

func TestTicketNeedsState(t *testing.T) {
	for _, db := range []*state.DB{nil, state.New("")} {
		g := start(t, auth.Options{State: db})
		_, err := g.Mint(t.Context(), auth.Anyone(), auth.TicketRequest{Image: "a", Verbs: auth.Read, TTL: time.Minute})
		if !errors.Is(err, storage.ErrUnsupported) || !strings.Contains(err.Error(), "--state") {
			t.Errorf("error %v", err)
		}
	}
}

func TestTicketIsForgedInVain(t *testing.T) {
	dir := t.TempDir()
	g := start(t, auth.Options{State: kept(t, dir)})
	good := mint(t, g, auth.Anyone(), "vm.qcow2", auth.Read, time.Hour).Secret
	other := start(t, auth.Options{State: kept(t, t.TempDir())})
	const not = "not of this server"
	refusedBy := func(g *auth.Guard, text string) {
		t.Helper()
		_, err := g.Bearer(t.Context(), here, text)
		if !errors.Is(err, auth.ErrUnauthenticated) && !errors.As(err, new(*auth.SlowDownError)) {
			t.Errorf("%q: %v", text, err)
		}
	}
	refused(t, other, good, not) // it has no key yet
	foreign := mint(t, other, auth.Anyone(), "vm.qcow2", auth.Read, time.Hour).Secret
	refused(t, other, good, not)
	refused(t, g, foreign, not)
	dot := strings.LastIndexByte(good, '.')
	for _, text := range []string{
		good[:dot], good[:dot+1], good + "A", good + "\n", "\n" + good, good[:dot] + "." + good[dot:],
		good[:dot] + foreign[strings.LastIndexByte(foreign, '.'):],
		good[:20] + "\n" + good[20:], good[:dot+5] + "\r\n" + good[dot+5:],
		strings.Replace(good, "_1_", "_2_", 1), "extentd_ticket_1_", "extentd_ticket_1_.", "extentd_ticket_1_" + good[dot:],
	} {
		refusedBy(g, text)
	}
	for i := range good {
		for bit := range 8 {
			text := []byte(good)
			text[i] ^= 1 << bit
			refusedBy(g, string(text))
		}
	}
	if c := bearer(t, g, good); c.Kind != auth.KindTicket {
		t.Errorf("the true one: %+v", c)
	}
}

func TestTicketExpires(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		db := kept(t, dir)
		g, err := auth.New(t.Context(), auth.Options{State: db})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		short := mint(t, g, auth.Anyone(), "a", auth.Read, 10*time.Second)
		by := auth.Anyone()
		by.Expires = time.Now().Add(5 * time.Second)
		capped := mint(t, g, by, "a", auth.Read, time.Hour)
		if !capped.Expires.Equal(by.Expires) {
			t.Errorf("it expires at %v, and who minted it at %v", capped.Expires, by.Expires)
		}
		bearer(t, g, short.Secret)
		bearer(t, g, capped.Secret)
		time.Sleep(5 * time.Second)
		refused(t, g, capped.Secret, "expired")
		bearer(t, g, short.Secret)
		time.Sleep(5*time.Second - time.Millisecond)
		bearer(t, g, short.Secret)
		time.Sleep(time.Millisecond)
		refused(t, g, short.Secret, "expired")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if g.Tickets() != 0 {
			t.Errorf("%d tickets are remembered", g.Tickets())
		}
	})
}

func TestTicketsSurviveARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := write(t, "tokens:\n"+token("b", "b-token", "map, read", `"*"`))
	run := func(f func(g *auth.Guard)) {
		t.Helper()
		db := state.New(dir)
		g, err := auth.New(t.Context(), auth.Options{File: path, State: db})
		if err != nil {
			t.Fatal(err)
		}
		f(g)
		if err := errors.Join(g.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	run(func(*auth.Guard) {})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a state before there is a ticket: %v", err)
	}
	var stays, goes auth.Ticket
	run(func(g *auth.Guard) {
		stays = mint(t, g, bearer(t, g, "b-token"), "a", auth.Read, time.Hour)
		goes = mint(t, g, bearer(t, g, "b-token"), "a", auth.Read, time.Hour)
		bearer(t, g, goes.Secret)
	})
	run(func(g *auth.Guard) {
		bearer(t, g, stays.Secret)
		bearer(t, g, goes.Secret)
		if err := g.Revoke(t.Context(), bearer(t, g, "b-token"), goes.ID); err != nil {
			t.Fatal(err)
		}
		refused(t, g, goes.Secret, "revoked")
	})
	run(func(g *auth.Guard) {
		bearer(t, g, stays.Secret)
		refused(t, g, goes.Secret, "revoked")
		another := mint(t, g, bearer(t, g, "b-token"), "a", auth.Read, time.Hour)
		bearer(t, g, another.Secret)
	})
	text, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "extentd_ticket_1_") || strings.Contains(string(text), stays.Secret[17:60]) {
		t.Error("the state holds a ticket")
	}
}
