// Package imageio speaks the dialect of oVirt imageio, which backup programs speak:
// /images/{ticket}, with tickets of this service.
//
// It guarantees what that server documents of requests and answers; where a client
// could notice a difference, openapi.yaml and docs/dialects.md say so. It opens no
// control socket, and advertises no unix socket.
package imageio

import (
	_ "embed"
	"fmt"
	"net/http"
	"strings"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
)

//go:embed openapi.yaml
var spec []byte

// connections is how many connections clients are told to use at a time for one
// image, in either direction.
const connections = 8

// New returns the dialect.
func New() *api.Dialect {
	const one = "/images/{ticket}"
	return &api.Dialect{
		Name: "imageio", Prefix: "/images/", Spec: spec,
		Credential: ticket, Secret: true, Hidden: true,
		Routes: []api.DialectRoute{
			{Method: http.MethodOptions, Pattern: one, Public: aboutAll, Handler: options},
			{Method: http.MethodGet, Pattern: one, Handler: get},
			{Method: http.MethodHead, Pattern: one, Handler: head},
			{Method: http.MethodPut, Pattern: one, Handler: put},
			{Method: http.MethodPatch, Pattern: one, Handler: patch},
			{Method: http.MethodGet, Pattern: one + "/extents", Handler: extents},
			{Method: http.MethodGet, Pattern: one + "/checksum", Handler: checksum},
			{Method: http.MethodGet, Pattern: one + "/checksum/algorithms", Public: api.Everybody, Handler: algorithmNames},
		},
	}
}

// every is the ticket of who asks about none.
const every = "*"

func aboutAll(x *api.Exchange) bool { return x.Path("ticket") == every }

// ticket is the one in the path, before the bitmap if there is one.
func ticket(x *api.Exchange) (string, error) {
	secret, _, _ := strings.Cut(x.Path("ticket"), "@")
	if !auth.IsTicket(secret) {
		return "", fmt.Errorf("%w: the path holds no ticket", auth.ErrUnauthenticated)
	}
	return secret, nil
}

// image is the one that the ticket is for.
func image(x *api.Exchange) string {
	for _, g := range x.Caller().Grants {
		for _, name := range g.Images {
			return name
		}
	}
	return ""
}

// bitmap is the one that the path names after the ticket.
func bitmap(x *api.Exchange) (name string, named bool) {
	_, name, named = strings.Cut(x.Path("ticket"), "@")
	return name, named
}

// option is a parameter of the query that has one of two values, the first by
// default.
func option(x *api.Exchange, name, first, second string) (string, error) {
	values, err := x.Query(name)
	if err != nil {
		return "", err
	}
	if !values.Has(name) {
		return first, nil
	}
	switch value := values.Get(name); value {
	case first, second:
		return value, nil
	}
	return "", api.Invalid(name, "must be "+first+" or "+second)
}

// closeIfAsked ends the connection after the answer, for who asks for that.
func closeIfAsked(x *api.Exchange) {
	if values, err := x.Query(); err == nil && values.Get("close") == "y" {
		x.Header().Set("Connection", "close")
	}
}
