package auth_test

import (
	"crypto/rand"
	"crypto/rsa"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/extentd/extentd/auth"
)

// impatient is a guard whose keys are fresh for no time, kept for so long, and asked
// for without a pause.
func impatient(t *testing.T, opt auth.Options, keep time.Duration) *auth.Guard {
	t.Helper()
	g, err := auth.NewQuick(t.Context(), opt, 0, keep, time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func TestKeysRotate(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "old"))
	g := start(t, p.options(t, jobs))
	bearer(t, g, sign(t, jose.ES256, ecKey(), "old", p.claims(nil)))
	p.set(func() { p.keys = []any{public(ecKey().Public(), "old"), public(otherKey().Public(), "new")} })
	time.Sleep(2 * time.Millisecond) // the pause
	bearer(t, g, sign(t, jose.ES256, otherKey(), "new", p.claims(nil)))
	if p.count() != 2 {
		t.Errorf("the keys were asked for %d times, want 2", p.count())
	}
	bearer(t, g, sign(t, jose.ES256, ecKey(), "old", p.claims(map[string]any{"jti": "2"})))
	// Another key by a known id is a new key, too.
	p.set(func() { p.keys = []any{public(rsaKey().Public(), "new")} })
	time.Sleep(2 * time.Millisecond)
	bearer(t, g, sign(t, jose.RS256, rsaKey(), "new", p.claims(nil)))
	refused(t, g, sign(t, jose.ES256, ecKey(), "old", p.claims(map[string]any{"jti": "3"})), "signature")
}

// A key that the issuer takes away is not used for longer than it is fresh.
func TestKeyTakenAway(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "a"), public(otherKey().Public(), "b"))
	g := impatient(t, p.options(t, jobs), time.Hour)
	bearer(t, g, sign(t, jose.ES256, ecKey(), "a", p.claims(nil)))
	p.set(func() { p.keys = p.keys[1:] })
	eventually(t, "the key is gone", func() bool {
		text := sign(t, jose.ES256, ecKey(), "a", p.claims(map[string]any{"jti": time.Now().String()}))
		_, err := g.Bearer(t.Context(), netip.Addr{}, text)
		return err != nil
	})
	bearer(t, g, sign(t, jose.ES256, otherKey(), "b", p.claims(nil)))
}

// Whoever sends JWTs that nobody signed does not make us ask the issuer each time.
func TestIssuerIsNotAskedTooOften(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "a"))
	g, err := auth.New(t.Context(), p.options(t, jobs))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var work sync.WaitGroup
	began := time.Now()
	for i := range 4 {
		text := sign(t, jose.ES256, otherKey(), "z", p.claims(nil))
		work.Go(func() {
			for j := range 100 {
				if _, err := g.Bearer(t.Context(), netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}), text); err == nil {
					t.Error("accepted")
				}
			}
		})
	}
	work.Wait()
	if most := 1 + int(time.Since(began)/(5*time.Second)); p.count() > most {
		t.Errorf("the issuer was asked %d times, want %d", p.count(), most)
	}
}

func TestIssuerIsAway(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "a"))
	p.set(func() { p.down = true })
	var log journal
	opt := p.options(t, jobs)
	opt.Logger = log.logger()
	g := start(t, opt) // which is no error
	text := sign(t, jose.ES256, ecKey(), "a", p.claims(nil))
	for range 20 { // nor are they guesses
		refused(t, g, text, "the issuer of JWTs cannot be reached at the moment")
	}
	if !strings.Contains(log.String(), "gone fishing") || strings.Contains(log.String(), "slowing") {
		t.Errorf("log:\n%s", &log)
	}
	p.set(func() { p.down = false })
	eventually(t, "the issuer is back", func() bool {
		_, err := g.Bearer(t.Context(), here, text)
		return err == nil
	})
	if !strings.Contains(log.String(), "answers again") {
		t.Errorf("log:\n%s", &log)
	}
	// It goes away again: its keys are used all the same.
	p.set(func() { p.down = true })
	bearer(t, g, sign(t, jose.ES256, ecKey(), "a", p.claims(map[string]any{"jti": "2"})))
}

// Keys are used for a bounded time while the issuer is away.
func TestKeysAreKept(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "a"))
	file := jobs
	for _, keep := range []time.Duration{time.Nanosecond, time.Hour} {
		g := impatient(t, p.options(t, file), keep)
		p.set(func() { p.down = false })
		bearer(t, g, sign(t, jose.ES256, ecKey(), "a", p.claims(nil)))
		p.set(func() { p.down = true })
		_, err := g.Bearer(t.Context(), here, sign(t, jose.ES256, ecKey(), "a", p.claims(map[string]any{"jti": "2"})))
		if (err == nil) != (keep == time.Hour) {
			t.Errorf("kept for %v: %v", keep, err)
		}
	}
}

func TestIssuerAnswersNonsense(t *testing.T) {
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	cases := []struct {
		name   string
		change func(p *provider)
		want   string
	}{
		{"http keys", func(p *provider) { p.jwks = "http://" + p.Listener.Addr().String() + "/keys" }, "no https URL"},
		{"file keys", func(p *provider) { p.jwks = "file:///etc/passwd" }, "no https URL"},
		{"no keys", func(p *provider) { p.keys = nil }, "there is none"},
		{"a secret as key", func(p *provider) {
			p.keys = []any{map[string]string{"kty": "oct", "k": "AAAA", "kid": "a"}}
		}, "there is none"},
		{"a key for encryption", func(p *provider) {
			p.keys = []any{jose.JSONWebKey{Key: ecKey().Public(), KeyID: "a", Use: "enc"}}
		}, "there is none"},
		{"a private key", func(p *provider) { p.keys = []any{jose.JSONWebKey{Key: ecKey(), KeyID: "a"}} }, "there is none"},
		{"a weak key", func(p *provider) { p.keys = []any{public(weak.Public(), "a")} }, "there is none"},
		{"no json", func(p *provider) { p.answer = []byte("<html>") }, "invalid character"},
		{"too large", func(p *provider) { p.answer = []byte(`{"keys":[],"x":"` + strings.Repeat("x", 2<<20) + `"}`) }, "larger than 1048576 bytes"},
		{"many keys", func(p *provider) { p.keys = make([]any, 101) }, "more than 100"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newProvider(t, public(ecKey().Public(), "a"))
			p.set(func() { c.change(p) })
			var log journal
			opt := p.options(t, jobs)
			opt.Logger = log.logger()
			g := start(t, opt)
			refused(t, g, sign(t, jose.ES256, ecKey(), "a", p.claims(nil)), "cannot be reached")
			if !strings.Contains(log.String(), c.want) {
				t.Errorf("log, want %q:\n%s", c.want, &log)
			}
		})
	}
}

// A key that is of no use harms none of the others.
func TestKeysOfOtherKinds(t *testing.T) {
	p := newProvider(t, map[string]string{"kty": "OKP", "crv": "Ed448", "x": "AAAA"}, map[string]string{"kty": "what"}, public(ecKey().Public(), "a"))
	bearer(t, start(t, p.options(t, jobs)), sign(t, jose.ES256, ecKey(), "a", p.claims(nil)))
}

// An issuer that nobody vouches for is none, and one that leads away from https
// neither.
func TestIssuerIsVerified(t *testing.T) {
	p, stranger := newProvider(t, public(ecKey().Public(), "a")), newProvider(t, public(ecKey().Public(), "a"))
	opt := p.options(t, jobs)
	opt.IssuerCA = ""
	text := sign(t, jose.ES256, ecKey(), "a", p.claims(nil))
	refused(t, start(t, opt), text, "cannot be reached")

	opt.IssuerCA = stranger.ca // all such servers have one certificate: it is trusted
	other := sign(t, jose.ES256, ecKey(), "a", stranger.claims(nil))
	refused(t, start(t, opt), other, "another issuer")

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	leads := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer leads.Close()
	var log journal
	opt = auth.Options{File: write(t, jobs), Issuer: leads.URL, Audience: audience, IssuerCA: p.ca, Logger: log.logger()}
	refused(t, start(t, opt), text, "cannot be reached")
	if !strings.Contains(log.String(), "away from https") {
		t.Errorf("log:\n%s", &log)
	}
}

// What is remembered of a JWT is forgotten when the file changes, and its tickets
// follow their entry.
func TestReloadWithJWT(t *testing.T) {
	p := newProvider(t, public(ecKey().Public(), "a"))
	opt := p.options(t, jobs)
	opt.State = kept(t, filepath.Join(t.TempDir(), "state"))
	g := start(t, opt)
	text := sign(t, jose.ES256, ecKey(), "a", p.claims(nil))
	by := bearer(t, g, text)
	ticket := mint(t, g, by, "vm", auth.Read, time.Hour)
	if ticket.Expires.After(by.Expires) {
		t.Errorf("the ticket expires at %v, the JWT at %v", ticket.Expires, by.Expires)
	}
	bearer(t, g, ticket.Secret)
	rewrite(t, opt.File, strings.Replace(jobs, "backup:*", "other:*", 1))
	eventually(t, "the other entry", func() bool { return bearer(t, g, text).Name == "rest" })
	refused(t, g, ticket.Secret, "may no longer")
	if err := os.WriteFile(opt.File, []byte(jobs), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first entry", func() bool { return bearer(t, g, text).Name == "jobs" })
	bearer(t, g, ticket.Secret)
}
