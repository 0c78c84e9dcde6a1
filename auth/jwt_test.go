package auth_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/extentd/extentd/auth"
)

func TestJWT(t *testing.T) {
	p := newProvider(t, public(rsaKey().Public(), "r"), public(ecKey().Public(), "e"), public(edKey().Public(), "d"))
	var log journal
	opt := p.options(t, jobs)
	opt.Logger = log.logger()
	g := start(t, opt)
	cases := []struct {
		name   string
		text   string
		caller string // kind:name:subject
		verbs  auth.Verbs
	}{
		{"rs256", sign(t, jose.RS256, rsaKey(), "r", p.claims(nil)), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"ps512", sign(t, jose.PS512, rsaKey(), "r", p.claims(nil)), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"es256", sign(t, jose.ES256, ecKey(), "e", p.claims(nil)), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"eddsa", sign(t, jose.EdDSA, edKey(), "d", p.claims(nil)), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"no key id", sign(t, jose.ES256, ecKey(), "", p.claims(nil)), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"one audience", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{"aud": audience})), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"expired within the leeway", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{"exp": time.Now().Unix() - 5})), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"not yet within the leeway", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{"nbf": time.Now().Unix() + 10})), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"no nbf", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{"nbf": nil})), "jwt:jobs:system:serviceaccount:backup:nightly", auth.Map | auth.Read},
		{"all claims", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{
			"sub": "eve", "groups": []string{"dev", "ops"}, "email": "eve@example.com", "email_verified": true,
		})), "jwt:admins:eve", auth.Admin},
		{"one claim of a wrong type", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{
			"sub": "eve", "groups": []string{"ops"}, "email": "eve@example.com", "email_verified": "true",
		})), "jwt:rest:eve", 0},
		{"one claim missing", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{
			"sub": "eve", "groups": []string{"ops"}, "email_verified": true,
		})), "jwt:rest:eve", 0},
		{"a list in a list", sign(t, jose.ES256, ecKey(), "e", p.claims(map[string]any{
			"sub": "eve", "groups": [][]string{{"ops"}}, "email": "eve@example.com", "email_verified": true,
		})), "jwt:rest:eve", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // the second time it is remembered
				got := bearer(t, g, c.text)
				if got.String() != c.caller || got.Kind != auth.KindJWT || got.Expires.IsZero() {
					t.Errorf("caller %v, %+v, want %s", got, *got, c.caller)
				}
				if v := got.Grants.Verbs("vm.qcow2"); v != c.verbs {
					t.Errorf("it may %v, want %v", v, c.verbs)
				}
			}
		})
	}
	if g.Failures() != 0 {
		t.Errorf("%d failures", g.Failures())
	}
	if p.count() != 1 {
		t.Errorf("the keys were asked for %d times, want once", p.count())
	}
	for _, c := range cases {
		for part := range strings.SplitSeq(c.text, ".") {
			if strings.Contains(log.String(), part) {
				t.Errorf("%s: the log holds a part of it", c.name)
			}
		}
	}
}

func TestJWTRefused(t *testing.T) {
	p := newProvider(t, public(rsaKey().Public(), "r"), public(ecKey().Public(), "e"))
	g := start(t, p.options(t, strings.Replace(jobs, `sub: "*"`, `sub: "never"`, 1)))
	now := time.Now().Unix()
	es := func(more map[string]any) string { return sign(t, jose.ES256, ecKey(), "e", p.claims(more)) }
	good := es(nil)
	parts := strings.Split(good, ".")
	pkix, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	ecPKIX, err := x509.MarshalPKIXPublicKey(ecKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(public(rsaKey().Public(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	none := func(alg string) string {
		return part(map[string]any{"alg": alg, "typ": "JWT", "kid": "e"}) + "." + part(p.claims(nil)) + "."
	}
	embedded := func() string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: otherKey()}, &jose.SignerOptions{EmbedJWK: true})
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(must(json.Marshal(p.claims(nil))))
		if err != nil {
			t.Fatal(err)
		}
		return must(jws.CompactSerialize())
	}
	cases := []struct{ name, text, reason string }{
		{"none", none("none"), "signed in a way that is not taken"},
		{"None", none("None"), "signed in a way that is not taken"},
		{"no algorithm", part(map[string]any{"typ": "JWT"}) + "." + parts[1] + ".", "signed in a way that is not taken"},
		{"signature taken away", parts[0] + "." + parts[1] + ".", "signature"},
		{"hs256 with the rsa key as pem", sign(t, jose.HS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}), "r", p.claims(nil)), "signed in a way that is not taken"},
		{"hs256 with the rsa key as der", sign(t, jose.HS256, pkix, "r", p.claims(nil)), "signed in a way that is not taken"},
		{"hs256 with the rsa key as jwk", sign(t, jose.HS256, jwk, "r", p.claims(nil)), "signed in a way that is not taken"},
		{"hs512 with the ec key", sign(t, jose.HS512, ecPKIX, "e", p.claims(nil)), "signed in a way that is not taken"},
		{"another key by that id", sign(t, jose.ES256, otherKey(), "e", p.claims(nil)), "signature"},
		{"another key without id", sign(t, jose.ES256, otherKey(), "", p.claims(nil)), "signature"},
		{"its own key embedded", embedded(), "signature"},
		{"an unknown id", sign(t, jose.ES256, ecKey(), "z", p.claims(nil)), "signature"},
		{"the id of another key", sign(t, jose.ES256, ecKey(), "r", p.claims(nil)), "signature"},
		{"expired", es(map[string]any{"exp": now - 60}), "the JWT has expired"},
		{"never expires", es(map[string]any{"exp": nil}), "does not say when it expires"},
		{"expires at text", es(map[string]any{"exp": "2099-01-01"}), ""},
		{"expires too late", es(map[string]any{"exp": 1e300}), ""},
		{"expires before 1970", es(map[string]any{"exp": -5}), "does not say when it expires"},
		{"not yet", es(map[string]any{"nbf": now + 120}), "the JWT is not valid yet"},
		{"not yet at all", es(map[string]any{"nbf": 1e15}), "the JWT is not valid yet"},
		{"another audience", es(map[string]any{"aud": "another"}), "for another audience"},
		{"a longer audience", es(map[string]any{"aud": audience + "2"}), "for another audience"},
		{"no audience", es(map[string]any{"aud": nil}), "for another audience"},
		{"another issuer", es(map[string]any{"iss": "https://evil.example"}), "of another issuer"},
		{"a longer issuer", es(map[string]any{"iss": p.URL + "/"}), "of another issuer"},
		{"no issuer", es(map[string]any{"iss": nil}), "of another issuer"},
		{"nobody known", es(map[string]any{"sub": "system:serviceaccount:other:job"}), "nobody is known by the claims"},
		{"no subject", es(map[string]any{"sub": nil}), "nobody is known by the claims"},
		{"a long subject", es(map[string]any{"sub": "system:serviceaccount:backup:" + strings.Repeat("x", 2000)}), "too long"},
		{"other claims under the signature", parts[0] + "." + part(p.claims(map[string]any{"sub": "system:serviceaccount:backup:x"})) + "." + parts[2], "signature"},
		{"no base64", "!!." + parts[1] + "." + parts[2], "is not known"},
		{"json form", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}..`, "is not known"},
		{"empty parts", "..", "malformed"},
		{"a large one", es(map[string]any{"x": strings.Repeat("x", auth.MaxSecret)}), "longer than any token"},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			// Each comes from elsewhere: too many failures of one are slowed down.
			from := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
			got, err := g.Bearer(t.Context(), from, c.text)
			if err == nil {
				t.Fatalf("accepted as %v", got)
			}
			if !strings.HasPrefix(err.Error(), "not authenticated: ") || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("error %q, want %q", err, c.reason)
			}
			for _, piece := range strings.Split(c.text, ".") {
				if len(piece) > 8 && strings.Contains(err.Error(), piece) {
					t.Errorf("error %q holds the secret", err)
				}
			}
		})
	}
	for i := range len(parts[2]) - 1 { // the last character has bits that say nothing
		text := []byte(good)
		text[len(good)-len(parts[2])+i] ^= 1
		if _, err := g.Bearer(t.Context(), netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), string(text)); err == nil {
			t.Errorf("accepted with another signature: %s", fmt.Sprint(i))
		}
	}
	bearer(t, g, good)
}
