package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// leeway is what the clocks of the issuer and of this machine may differ by.
const leeway = 30 * time.Second

// maxSubject is the length in bytes of the longest subject, which stands in logs.
const maxSubject = 1024

// algorithms are those that need a private key to sign: neither none, nor one where
// the published key is the secret.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512,
		jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512,
		jose.EdDSA,
	}
}

// isJWT reports whether a secret looks like a signed JWT: three parts in base64url.
func isJWT(secret string) bool {
	dots := 0
	for i := range len(secret) {
		c := secret[i]
		switch {
		case c == '.':
			dots++
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return dots == 2
}

// jwt is who presented one, by the first entry of the token file that it matches.
func (g *Guard) jwt(ctx context.Context, r *rules, h handle, secret string, now time.Time) (*Caller, *refusal) {
	if g.issuer == nil {
		return nil, wrong("no issuer of JWTs is known here")
	}
	t, refused := g.issuer.verify(ctx, secret)
	if refused != nil {
		return nil, refused
	}
	ends, refused := lifetime(t, now)
	if refused != nil {
		return nil, refused
	}
	subject, _ := t["sub"].(string)
	if len(subject) > maxSubject {
		return nil, stale("the subject of the JWT is too long")
	}
	for i := range r.claims {
		e := &r.claims[i]
		if !e.matches(t) {
			continue
		}
		c := &Caller{Kind: KindJWT, Name: e.name, Subject: subject, Expires: ends, Grants: e.grants, proof: e.proof}
		r.known.put(h, cached{caller: c, until: ends.Add(leeway)}, now)
		return c, nil
	}
	return nil, stale("nobody is known by the claims of the JWT")
}

// lifetime is when a JWT ends, if it lives now. It must end.
func lifetime(jwt map[string]any, now time.Time) (time.Time, *refusal) {
	ends, ok := date(jwt["exp"])
	if !ok {
		return ends, stale("the JWT does not say when it expires")
	}
	if !now.Before(ends.Add(leeway)) {
		return ends, stale("the JWT has expired")
	}
	if nbf, there := jwt["nbf"]; there {
		if from, ok := date(nbf); !ok || now.Add(leeway).Before(from) {
			return ends, stale("the JWT is not valid yet")
		}
	}
	return ends, nil
}

// date is a NumericDate of RFC 7519, in s since 1970.
func date(claim any) (time.Time, bool) {
	n, ok := claim.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	s, err := n.Float64()
	if err != nil || !(s > 0 && s < 1<<40) { // no sum overflows
		return time.Time{}, false
	}
	whole, part := math.Modf(s)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true
}

// verify checks who has signed a JWT, and for whom, and returns its claims.
func (i *issuer) verify(ctx context.Context, text string) (map[string]any, *refusal) {
	v := &verification{issuer: i}
	var algs []string
	for _, a := range algorithms() {
		algs = append(algs, string(a))
	}
	t, err := oidc.NewVerifier(i.url, v, &oidc.Config{
		ClientID:             i.audience,
		SupportedSigningAlgs: algs,
		SkipExpiryCheck:      true, // see lifetime: it has another leeway
	}).Verify(ctx, text)
	switch {
	case v.refused != nil:
		return nil, v.refused
	case err != nil && !v.signed:
		return nil, wrong("the JWT is malformed, or signed in a way that is not taken")
	case err != nil:
		return nil, stale("the JWT is of another issuer, for another audience, or makes no sense")
	}
	var raw json.RawMessage
	if err := t.Claims(&raw); err != nil {
		return nil, stale("the claims of the JWT cannot be read")
	}
	claims := map[string]any{}
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	if err := in.Decode(&claims); err != nil {
		return nil, stale("the claims of the JWT cannot be read")
	}
	return claims, nil
}

// A verification is one of a signature. What the library is told, it tells only as a
// text: this keeps it.
type verification struct {
	issuer  *issuer
	signed  bool
	refused *refusal
}

var _ oidc.KeySet = (*verification)(nil)

// VerifySignature is called by the library, which has looked at the algorithm.
func (v *verification) VerifySignature(ctx context.Context, text string) ([]byte, error) {
	says, err := v.verify(ctx, text)
	if err != nil {
		v.refused = err
		return nil, errors.New(err.reason)
	}
	v.signed = true
	return says, nil
}

func (v *verification) verify(ctx context.Context, text string) ([]byte, *refusal) {
	jws, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil {
		return nil, wrong("the JWT is malformed, or signed in a way that is not taken")
	}
	keys, refused := v.issuer.keys(ctx)
	if refused != nil {
		return nil, refused
	}
	if says := keys.verify(jws); says != nil {
		return says, nil
	}
	// It may have been signed with a key that is newer than ours.
	newer := v.issuer.newer(ctx, keys)
	if newer == nil {
		return nil, wrong("the signature of the JWT is not one of the issuer's")
	}
	if says := newer.verify(jws); says != nil {
		return says, nil
	}
	return nil, wrong("the signature of the JWT is not one of the issuer's")
}

// verify is what was signed with one of the keys, nil if that is nothing.
func (k *keySet) verify(jws *jose.JSONWebSignature) []byte {
	header := jws.Signatures[0].Header
	for i := range k.keys {
		key := &k.keys[i]
		if header.KeyID != "" && header.KeyID != key.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		if says, err := jws.Verify(key.Key); err == nil {
			return says
		}
	}
	return nil
}

// hasScheme reports whether a URL is of https, or of http where that is allowed.
func hasScheme(url string, plainToo bool) bool {
	return strings.HasPrefix(url, "https://") || plainToo && strings.HasPrefix(url, "http://")
}
