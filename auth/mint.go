package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/extentd/extentd/storage"
)

// The lives that tickets may have.
const (
	MinTTL = time.Second
	MaxTTL = 24 * time.Hour
)

// A TicketRequest says what a ticket is to be for.
type TicketRequest struct {
	Image string        // its name, of which the caller has checked that images may have it
	Verbs Verbs         // at least one
	TTL   time.Duration // MinTTL to MaxTTL
}

// A Ticket is a secret with which its bearer may do something with one image for
// some time.
type Ticket struct {
	ID      string
	Secret  string
	Expires time.Time // UTC; a multiple of 1 ms
}

// Mint makes a ticket. It ends with what the caller presented, if that is sooner. It
// is durable. What is granted to the caller later, and what is taken away, is not
// taken from the ticket alone: it never allows what the caller's own entry does not.
//
// An error is a *[storage.InvalidError] for verbs or ttl, or wraps
// [storage.ErrNotFound] for an image that the caller may not see, [ErrForbidden]
// for verbs that it does not have, and for a ticket, which mints none,
// [ErrUnauthenticated] where the caller has ended, [storage.ErrUnsupported] without
// a state that is kept, and [storage.ErrRefused] where there are too many tickets.
func (g *Guard) Mint(ctx context.Context, by *Caller, r TicketRequest) (Ticket, error) {
	now := time.Now()
	if err := g.mayMint(by, r, now); err != nil {
		return Ticket{}, err
	}
	if !g.opt.State.Kept() {
		return Ticket{}, fmt.Errorf("%w: tickets need a state that survives a restart: start the server with --state DIR", storage.ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return Ticket{}, err
	}
	ends := now.Add(r.TTL)
	if !by.Expires.IsZero() && by.Expires.Before(ends) {
		ends = by.Expires
	}
	rec := &record{
		note:    note{id: rand.Text(), image: r.Image, verbs: r.Verbs, expires: ends.UnixMilli()},
		source:  by.source(),
		subject: by.Subject,
	}
	key, err := g.tickets.add(rec, now)
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{ID: rec.id, Secret: key.encode(&rec.note), Expires: rec.ends()}, nil
}

func (g *Guard) mayMint(by *Caller, r TicketRequest, now time.Time) error {
	granted, known := g.rules.Load().sources[by.source()]
	switch {
	case by.Kind == KindTicket:
		return fmt.Errorf("%w: a ticket mints no tickets", ErrForbidden)
	case !known, !by.Expires.IsZero() && !now.Before(by.Expires):
		return stale("who asks for a ticket is not known any more")
	case r.Verbs == 0:
		return &storage.InvalidError{Field: "verbs", Detail: "is empty, must be some of " + All.list()}
	case !All.Has(r.Verbs):
		return &storage.InvalidError{Field: "verbs", Detail: "has unknown ones, must be some of " + All.list()}
	case r.TTL < MinTTL || r.TTL > MaxTTL:
		return &storage.InvalidError{Field: "ttl", Detail: fmt.Sprintf("is %v, must be from %v to %v", r.TTL, MinTTL, MaxTTL)}
	}
	may := by.Grants.Verbs(r.Image) & granted.Verbs(r.Image)
	if may == 0 || !plain(r.Image) {
		return fmt.Errorf("%w: image %q", storage.ErrNotFound, r.Image)
	}
	if missing := r.Verbs &^ may; missing != 0 {
		return fmt.Errorf("%w: %s on image %q is more than is granted", ErrForbidden, missing.list(), r.Image)
	}
	return nil
}

// Revoke ends a ticket, for whoever minted it, or may administer its image. Nobody
// can use it when Revoke returns, and after a restart neither, unless there is an
// error. For others, and for tickets, there is no such ticket:
// [storage.ErrNotFound].
func (g *Guard) Revoke(ctx context.Context, by *Caller, id string) error {
	rec := g.tickets.find(id)
	if rec == nil || by.Kind == KindTicket || !rec.isOf(by) && !by.May(Admin, rec.image) {
		return fmt.Errorf("%w: ticket", storage.ErrNotFound)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return g.tickets.remove(rec)
}
