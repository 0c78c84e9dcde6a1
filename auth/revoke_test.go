package auth_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage"
)

func TestRevoke(t *testing.T) {
	g := start(t, auth.Options{State: kept(t, t.TempDir()), File: write(t, "tokens:\n"+
		token("owner", "owner-token", "map, read", `"*"`)+
		token("peer", "peer-token", "map, read, write, create", `"*"`)+
		token("admin", "admin-token", "admin", "a")+
		token("elsewhere", "elsewhere-token", "admin", "b"))})
	owner := bearer(t, g, "owner-token")
	ticket := mint(t, g, owner, "a", auth.Read, time.Hour)
	itself := bearer(t, g, ticket.Secret)
	administers := bearer(t, g, mint(t, g, bearer(t, g, "admin-token"), "a", auth.Admin, time.Hour).Secret)
	for _, by := range []*auth.Caller{itself, administers, bearer(t, g, "peer-token"), bearer(t, g, "elsewhere-token")} {
		if err := g.Revoke(t.Context(), by, ticket.ID); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("by %v: %v", by, err)
		}
	}
	if err := g.Revoke(t.Context(), owner, "nothing"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
	bearer(t, g, ticket.Secret)
	for _, by := range []string{"owner-token", "admin-token"} {
		ticket := mint(t, g, owner, "a", auth.Read, time.Hour)
		bearer(t, g, ticket.Secret)
		if err := g.Revoke(t.Context(), bearer(t, g, by), ticket.ID); err != nil {
			t.Errorf("by %s: %v", by, err)
		}
		refused(t, g, ticket.Secret, "revoked")
		if err := g.Revoke(t.Context(), bearer(t, g, by), ticket.ID); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("again: %v", err)
		}
	}
}

// A ticket that could not be removed from the state is of no use any more, and can be
// removed again.
func TestRevokeWithoutState(t *testing.T) {
	db := kept(t, t.TempDir())
	g := start(t, auth.Options{State: db})
	ticket := mint(t, g, auth.Anyone(), "a", auth.Read, time.Hour)
	bearer(t, g, ticket.Secret)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Revoke(t.Context(), auth.Anyone(), ticket.ID); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("error %v", err)
		}
		refused(t, g, ticket.Secret, "revoked")
	}
	before := g.Tickets()
	if _, err := g.Mint(t.Context(), auth.Anyone(), auth.TicketRequest{Image: "a", Verbs: auth.Read, TTL: time.Hour}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("mint: %v", err)
	}
	if g.Tickets() != before {
		t.Error("a ticket that nobody got lives")
	}
}

// What is taken from the entry of who minted a ticket is taken from the ticket.
func TestTicketFollowsItsMinter(t *testing.T) {
	all := "tokens:\n" + token("b", "b-token", "map, read, write", `"a*", c`)
	path := write(t, all)
	g := start(t, auth.Options{File: path, State: kept(t, t.TempDir())})
	by := bearer(t, g, "b-token")
	ticket := mint(t, g, by, "a1", auth.Read|auth.Write, time.Hour).Secret
	other := mint(t, g, by, "c", auth.Read, time.Hour).Secret
	verbs := func(secret string) auth.Verbs {
		c, err := g.Bearer(t.Context(), here, secret)
		if err != nil {
			return 0
		}
		return c.Grants.Verbs("a1") | c.Grants.Verbs("c")
	}
	for i, step := range []struct {
		file          string
		ticket, other auth.Verbs
	}{
		{"tokens:\n" + token("b", "b-token", "map, read", `"a*", c`), auth.Read, auth.Read},
		{"tokens:\n" + token("b", "b-token", "map, read, write", `"a*"`), auth.Read | auth.Write, 0},
		{"tokens:\n" + token("b", "b-token", "map", `"a*", c`), 0, 0},
		{all, auth.Read | auth.Write, auth.Read},
		{"tokens:\n" + token("b", "another-token", "map, read, write", `"a*", c`), 0, 0},
		{"tokens:\n" + token("renamed", "b-token", "map, read, write", `"a*", c`), 0, 0},
		{"tokens: []", 0, 0},
		{"tokens:\n" + token("b", "b-token", "admin, map, read, write, create", `"*"`), auth.Read | auth.Write, auth.Read},
	} {
		rewrite(t, path, step.file)
		eventually(t, fmt.Sprintf("step %d", i), func() bool {
			return verbs(ticket) == step.ticket && verbs(other) == step.other
		})
	}
}

// Tickets that anyone minted end with that.
func TestTicketOfAnyone(t *testing.T) {
	db := kept(t, t.TempDir())
	open, err := auth.New(t.Context(), auth.Options{State: db})
	if err != nil {
		t.Fatal(err)
	}
	ticket := mint(t, open, auth.Anyone(), "a", auth.Read, time.Hour)
	if c := bearer(t, open, ticket.Secret); c.May(auth.Write, "a") {
		t.Error("it allows more than it says")
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	path := write(t, "tokens:\n"+token("b", "b-token", "map, read", `"*"`))
	for _, opt := range []auth.Options{{File: path, State: db}, {AnyCertificate: true, State: db}} {
		refused(t, start(t, opt), ticket.Secret, "may no longer")
	}
	bearer(t, start(t, auth.Options{State: db}), ticket.Secret)
}

func TestTicketsAreBounded(t *testing.T) {
	g := start(t, auth.Options{State: kept(t, t.TempDir()), File: write(t, "tokens:\n"+
		token("many", "many-token", "map", `"*"`)+token("few", "few-token", "map", `"*"`))})
	many := bearer(t, g, "many-token")
	first := mint(t, g, many, "a", auth.Map, time.Hour)
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for {
				_, err := g.Mint(t.Context(), many, auth.TicketRequest{Image: "a", Verbs: auth.Map, TTL: time.Hour})
				if err != nil {
					if !errors.Is(err, storage.ErrRefused) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	work.Wait()
	if got := g.Tickets(); got != auth.MaxTicketsMinter {
		t.Fatalf("%d tickets, want %d", got, auth.MaxTicketsMinter)
	}
	mint(t, g, bearer(t, g, "few-token"), "a", auth.Map, time.Hour)
	if err := g.Revoke(t.Context(), many, first.ID); err != nil {
		t.Fatal(err)
	}
	mint(t, g, many, "a", auth.Map, time.Hour)
}

func TestConcurrentUse(t *testing.T) {
	path := write(t, "tokens:\n"+token("b", "b-token", "map, read", `"*"`))
	g := start(t, auth.Options{File: path, State: kept(t, t.TempDir())})
	var work sync.WaitGroup
	var atWork atomic.Int32
	for range 4 {
		atWork.Add(1)
		work.Go(func() {
			defer atWork.Add(-1)
			for range 25 {
				by, err := g.Bearer(t.Context(), here, "b-token")
				if err != nil {
					t.Error(err)
					return
				}
				ticket, err := g.Mint(t.Context(), by, auth.TicketRequest{Image: "a", Verbs: auth.Read, TTL: time.Hour})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := g.Bearer(t.Context(), here, ticket.Secret); err != nil {
					t.Error(err)
				}
				if err := g.Revoke(t.Context(), by, ticket.ID); err != nil {
					t.Error(err)
				}
				if _, err := g.Bearer(t.Context(), here, ticket.Secret); !errors.Is(err, auth.ErrUnauthenticated) {
					t.Errorf("after it was revoked: %v", err)
				}
				_, _ = g.Bearer(t.Context(), here, "wrong") // the address is slowed, and the token is not
			}
		})
	}
	for i := 0; atWork.Load() > 0; i++ {
		rewrite(t, path, "tokens:\n"+token("b", "b-token", "map, read", `"*"`)+fmt.Sprintf("# %d\n", i))
		time.Sleep(time.Millisecond)
	}
	work.Wait()
	if got := g.Tickets(); got != 0 {
		t.Errorf("%d tickets live", got)
	}
}
