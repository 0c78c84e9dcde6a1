package api

import (
	"context"
	"fmt"
	"time"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// defaultTicketTTL is how long a ticket is good for if nobody says.
const defaultTicketTTL = time.Hour

// MintTicket implements POST /v1/tickets.
func (s *server) MintTicket(ctx context.Context, request MintTicketRequestObject) (MintTicketResponseObject, error) {
	r, err := ticketRequest(request.Body)
	if err != nil {
		return nil, err
	}
	if s.opt.Guard == nil {
		return nil, fmt.Errorf("%w: this server mints no tickets", storage.ErrUnsupported)
	}
	t, err := s.opt.Guard.Mint(ctx, auth.FromContext(ctx), r)
	if err != nil {
		return nil, err
	}
	return MintTicket201JSONResponse{
		Body:    Ticket{Id: t.ID, Ticket: t.Secret, Expires: t.Expires.UTC()},
		Headers: MintTicket201ResponseHeaders{Location: "/v1/tickets/" + t.ID},
	}, nil
}

func ticketRequest(b *TicketRequest) (auth.TicketRequest, error) {
	r := auth.TicketRequest{Image: b.Image, TTL: defaultTicketTTL}
	if !service.ValidName(b.Image) {
		return r, invalid("image", rulePattern, namePattern)
	}
	names := make([]string, len(b.Verbs))
	for i, v := range b.Verbs {
		names[i] = string(v)
	}
	var err error
	if r.Verbs, err = auth.ParseVerbs(names); err != nil {
		return r, invalid("verbs", ruleValue, err.Error())
	}
	if b.Ttl == nil {
		return r, nil
	}
	if r.TTL, err = time.ParseDuration(*b.Ttl); err != nil {
		return r, invalid("ttl", ruleSyntax, "must be a duration such as 10m or 1h30m")
	}
	return r, nil
}

// RevokeTicket implements DELETE /v1/tickets/{id}.
func (s *server) RevokeTicket(ctx context.Context, request RevokeTicketRequestObject) (RevokeTicketResponseObject, error) {
	if s.opt.Guard == nil {
		return nil, fmt.Errorf("ticket %q: %w", shorten(request.Id), storage.ErrNotFound)
	}
	if err := s.opt.Guard.Revoke(ctx, auth.FromContext(ctx), request.Id); err != nil {
		return nil, err
	}
	return RevokeTicket204Response{}, nil
}
