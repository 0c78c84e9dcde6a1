package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strings"
	"time"
)

// A ticket's text is the prefix, which has the version, what it says and a dot, both
// in base64url, and the HMAC-SHA256 of everything before the dot. What it says is
//
//	8 bytes   when it ends, ms since 1970, big-endian
//	1 byte    its verbs
//	26 bytes  its id
//	the rest  the name of the image
//
// Who minted it is not in there: it is handed to others.
const (
	ticketPrefix = "extentd_ticket_1_"
	idSize       = 26 // of rand.Text
	ticketFixed  = 8 + 1 + idSize
	maxImage     = 255
)

// A ticketKey signs tickets.
type ticketKey [32]byte

// A note is what a ticket says.
type note struct {
	id      string
	image   string
	verbs   Verbs
	expires int64 // ms since 1970
}

func (n *note) ends() time.Time { return time.UnixMilli(n.expires).UTC() }

// encode is the text of a ticket.
func (k *ticketKey) encode(n *note) string {
	says := binary.BigEndian.AppendUint64(make([]byte, 0, ticketFixed+len(n.image)), uint64(n.expires))
	says = append(says, byte(n.verbs))
	says = append(says, n.id...)
	says = append(says, n.image...)
	text := ticketPrefix + base64.RawURLEncoding.EncodeToString(says)
	return text + "." + base64.RawURLEncoding.EncodeToString(k.sign(text))
}

func (k *ticketKey) sign(text string) []byte {
	mac := hmac.New(sha256.New, k[:])
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// decode is what a ticket says, if it is one that this key has signed. There is one
// text for it, and no other.
func (k *ticketKey) decode(text string) (note, bool) {
	dot := strings.LastIndexByte(text, '.')
	if dot < 0 || !strings.HasPrefix(text, ticketPrefix) || len(text) > maxSecret {
		return note{}, false
	}
	signed, mac := text[:dot], text[dot+1:]
	if len(mac) != base64.RawURLEncoding.EncodedLen(sha256.Size) || strings.ContainsAny(text, "\r\n") { // which the decoder ignores
		return note{}, false
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(mac)
	if err != nil || !hmac.Equal(sum, k.sign(signed)) {
		return note{}, false
	}
	says, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(signed, ticketPrefix))
	if err != nil || len(says) <= ticketFixed || len(says) > ticketFixed+maxImage {
		return note{}, false
	}
	n := note{
		verbs: Verbs(says[8]),
		id:    string(says[9:ticketFixed]),
		image: string(says[ticketFixed:]),
	}
	ms := binary.BigEndian.Uint64(says)
	if ms > math.MaxInt64 || !n.valid() {
		return note{}, false
	}
	n.expires = int64(ms)
	return n, true
}

func (n *note) valid() bool {
	return n.verbs != 0 && All.Has(n.verbs) && len(n.id) == idSize && plain(n.image)
}

// plain reports whether a name is a pattern that is for itself alone. All names that
// images may have are.
func plain(image string) bool {
	return image != "" && len(image) <= maxImage && !strings.ContainsAny(image, `*?[]\/`)
}

// ticket is who presented one: what it says, as far as who minted it may still do
// that.
func (g *Guard) ticket(r *rules, h handle, secret string, now time.Time) (*Caller, *refusal) {
	key := g.tickets.key.Load()
	if key == nil {
		return nil, wrong("the ticket is not of this server")
	}
	n, ok := key.decode(secret)
	if !ok {
		return nil, wrong("the ticket is not of this server")
	}
	if !now.Before(n.ends()) {
		return nil, stale("the ticket has expired")
	}
	rec := g.tickets.find(n.id)
	if rec == nil || rec.note != n || rec.revoked.Load() {
		return nil, stale("the ticket was revoked, or is not known any more")
	}
	verbs := n.verbs & r.sources[rec.source].Verbs(n.image)
	if verbs == 0 {
		return nil, stale("who minted the ticket may no longer do what it is for")
	}
	c := &Caller{
		Kind: KindTicket, Name: rec.source.name, Subject: rec.subject, Ticket: n.id, Expires: n.ends(),
		Grants: Grants{{Verbs: verbs, Images: []string{n.image}}},
	}
	r.known.put(h, cached{caller: c, until: n.ends(), ticket: rec}, now)
	return c, nil
}

// IsTicket reports whether a secret is meant to be a ticket: it need not be one that
// is good.
func IsTicket(secret string) bool { return strings.HasPrefix(secret, ticketPrefix) }

// Mask is a text of a stranger's with what looks like a ticket in it left out, for
// logs and answers.
func Mask(text string) string {
	before, _, found := strings.Cut(text, ticketPrefix)
	if !found {
		return text
	}
	return before + ticketPrefix + "..."
}
