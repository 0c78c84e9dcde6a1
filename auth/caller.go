package auth

import (
	"context"
	"path"
	"time"
)

// A Grant allows verbs on the images whose names match one of the patterns, which
// are those of [path.Match]; names hold no slash.
type Grant struct {
	Verbs  Verbs
	Images []string
}

// Grants allow what one of them allows.
type Grants []Grant

// Verbs are what is allowed on the image.
func (g Grants) Verbs(image string) Verbs {
	var v Verbs
	for i := range g {
		for _, pattern := range g[i].Images {
			if ok, err := path.Match(pattern, image); ok && err == nil {
				v |= g[i].Verbs
				break
			}
		}
	}
	return v
}

// A Kind is how a caller became known.
type Kind string

// The kinds of callers.
const (
	KindAnyone      Kind = "anyone"      // there is no authentication
	KindToken       Kind = "token"       // of the token file
	KindJWT         Kind = "jwt"         // of an OIDC issuer
	KindCertificate Kind = "certificate" // of a client
	KindTicket      Kind = "ticket"      // minted by another caller
)

// A Caller is who makes a request. It is not changed once it is made.
type Caller struct {
	Kind Kind
	// Name is that of the entry in the token file that grants; of a ticket, that
	// of who minted it. "" for anyone.
	Name string
	// Subject tells apart callers that one entry is for: the subject of a JWT or of
	// a certificate. Otherwise "".
	Subject string
	// Ticket is the id of the ticket, otherwise "".
	Ticket string
	// Expires is when what the caller presented ends; zero for never.
	Expires time.Time
	Grants  Grants

	proof proof // of the entry; zero where there is none
}

//nolint:gochecknoglobals // only read: one for every request would be garbage
var anyone = Caller{Kind: KindAnyone, Grants: Grants{{Verbs: All, Images: []string{"*"}}}}

// Anyone is who makes requests where there is no authentication: everything is
// allowed.
func Anyone() *Caller { return &anyone }

// May reports whether all of v are allowed on the image.
func (c *Caller) May(v Verbs, image string) bool { return c.Grants.Verbs(image).Has(v) }

// Sees reports whether the caller may know that the image is there.
func (c *Caller) Sees(image string) bool { return c.Grants.Verbs(image) != 0 }

// String names the caller in logs: its kind and its name.
func (c *Caller) String() string {
	s := string(c.Kind)
	for _, part := range []string{c.Name, c.Subject, c.Ticket} {
		if part != "" {
			s += ":" + part
		}
	}
	return s
}

type callerKey struct{}

// NewContext returns a context that says who makes the request.
func NewContext(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// FromContext is who makes the request: anyone, if nobody has said.
func FromContext(ctx context.Context) *Caller {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		return c
	}
	return Anyone()
}
