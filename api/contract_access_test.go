package api_test

import (
	"encoding/json"
	"net/url"
	"sync"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/load"
)

// contractTickets gets every answer about tickets.
func contractTickets(c *contract) {
	const all, one = "/v1/tickets", "/v1/tickets/{id}"
	json1 := []string{"Content-Type", "application/json"}
	mint := func(body string, more ...string) []string {
		return append(append([]string{"body", body}, json1...), more...)
	}
	c.check(422, "POST", all, "", mint(`{"image":"disk.raw","verbs":["map"]}`)...) // there is no guard
	c.check(404, "DELETE", one, "", "id", "none")

	f, _, db := guardedBy(c.t)
	owner := []string{"Authorization", "Bearer " + tokenFor(auth.Map|auth.Read)}
	c.with(f, func() {
		var ticket api.Ticket
		for _, body := range []string{`{"image":"mine.raw","verbs":["map","read"]}`, `{"image":"mine.raw","verbs":["read"],"ttl":"24h"}`} {
			decode(c.t, c.check(201, "POST", all, "", mint(body, owner...)...).body, &ticket)
		}
		for _, body := range []string{
			`{"image":"mine.raw","verbs":[]}`, `{"image":"mine.raw","verbs":["fly"]}`, `{"image":"mine.raw"}`, `{"verbs":["map"]}`, `{"image":"../x","verbs":["map"]}`,
			`{"image":"mine.raw","verbs":["map"],"ttl":"25h"}`, `{"image":"mine.raw","verbs":["map"],"ttl":"1ms"}`, `{"image":"mine.raw","verbs":["map"],"ttl":"tomorrow"}`,
			`{"image":"mine.raw","verbs":["map"],"ttl":-5}`, `{"image":"mine.raw","verbs":["map"],"name":"x"}`, `nonsense`,
		} {
			c.check(400, "POST", all, "", mint(body, owner...)...)
		}
		c.check(403, "POST", all, "", mint(`{"image":"mine.raw","verbs":["write"]}`, owner...)...)
		c.check(404, "POST", all, "", mint(`{"image":"theirs.raw","verbs":["map"]}`, owner...)...)
		c.check(413, "POST", all, "", mint(`{"image":"`+string(make([]byte, 1<<20))+`"}`, owner...)...)
		c.check(415, "POST", all, "", append([]string{"body", "{}"}, owner...)...)
		byTicket := []string{"Authorization", "Bearer " + ticket.Ticket}
		c.check(403, "POST", all, "", mint(`{"image":"mine.raw","verbs":["read"]}`, byTicket...)...)
		c.check(200, "GET", "/v1/images/{image}/data", "?ticket="+url.QueryEscape(ticket.Ticket), "image", mine)
		c.check(400, "DELETE", one, "?x=1", append(owner, "id", ticket.Id)...)
		c.check(404, "DELETE", one, "", append(byTicket, "id", ticket.Id)...)
		c.check(404, "DELETE", one, "", "id", ticket.Id, "Authorization", "Bearer "+tokenFor(auth.Map))
		c.check(204, "DELETE", one, "", append(owner, "id", ticket.Id)...)
		c.check(404, "DELETE", one, "", append(owner, "id", ticket.Id)...)
		c.check(401, "GET", "/v1/images/{image}/data", "?ticket="+url.QueryEscape(ticket.Ticket), "image", mine)

		decode(c.t, c.check(201, "POST", all, "", mint(`{"image":"mine.raw","verbs":["map"]}`, owner...)...).body, &ticket)
		if err := db.Close(); err != nil {
			c.t.Fatal(err)
		}
		c.check(500, "POST", all, "", mint(`{"image":"mine.raw","verbs":["map"]}`, owner...)...)
		c.check(500, "DELETE", one, "", append(owner, "id", ticket.Id)...)
	})
}

// contractRefusals is refused by every operation: for want of a token, because
// there were too many requests, and because there are too many under way.
func contractRefusals(c *contract) {
	each := func(status int) {
		var calls sync.WaitGroup // those that wait for room do so together
		for id, rows := range accessRows {
			row := &rows[0]
			if row.public || id == "getMetrics" && status != 401 { // who looks after the server gets through
				continue
			}
			calls.Go(func() {
				pairs := append([]string{"image", "mine.raw", "allocation", "none", "snapshot", "none", "id", "none"}, row.header...)
				if row.body != "" {
					pairs = append(pairs, "body", row.body)
				}
				if json.Valid([]byte(row.body)) {
					pairs = append(pairs, "Content-Type", mediaOf(row.method))
				}
				c.check(status, row.method, patternOf(c, id), "", pairs...)
			})
		}
		calls.Wait()
	}
	f, _, _ := guardedBy(c.t)
	c.with(f, func() { each(401) })
	c.with(f, func() { // until guesses are slowed down
		guess := []string{"Authorization", "Bearer guess"}
		for range 20 {
			c.f.get(c.t, "/metrics", guess...)
		}
		c.check(429, "GET", "/metrics", "", guess...)
	})

	limits := load.New(load.Options{Rate: 1e-9, Burst: 1})
	f = start(c.t, api.Options{Load: limits}, nil)
	f.get(c.t, "/v1/images")
	c.with(f, func() { each(429) })

	limits = load.New(load.Options{Connections: 1})
	if err := limits.Requests().Enter(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	f = start(c.t, api.Options{Load: limits}, nil)
	c.with(f, func() { each(503) })
}

// patternOf is the path of an operation.
func patternOf(c *contract, id string) string {
	for path, item := range c.doc.Paths.Map() {
		for _, op := range item.Operations() {
			if op.OperationID == id {
				return path
			}
		}
	}
	c.t.Fatalf("%s is not in the contract", id)
	return ""
}
