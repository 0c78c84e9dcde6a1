package auth

import (
	"crypto/sha256"
	"encoding/hex"
)

// A proof stands for what makes a caller known to its entry in the token file: the
// hash of a token, a subject, what claims must be. An entry that keeps its name and
// wants another proof is another entry: the tickets that were minted by whoever had
// the first are not those of whoever has the second.
type proof [16]byte

func proofOf(kind Kind, text string) proof {
	sum := sha256.Sum256([]byte(string(kind) + "\n" + text))
	return proof(sum[:len(proof{})])
}

func (p proof) String() string { return hex.EncodeToString(p[:]) }

// A source is what grants: an entry of the token file, or that there is no need of
// one.
type source struct {
	kind  Kind
	name  string
	proof proof
}

func (c *Caller) source() source { return source{kind: c.Kind, name: c.Name, proof: c.proof} }

// rules are the token file in the form in which it is asked. They are not changed
// once they are made, their caches excepted.
type rules struct {
	tokens       map[handle]*token
	certificates []certificate
	claims       []claims
	sources      map[source]Grants
	known        cache
}

// A token is an entry for a bearer token.
type token struct {
	hash     digest
	caller   *Caller
	visitors *visitors // stays when the file changes
}

// everything is granted where nothing says otherwise.
func everything() Grants { return Grants{{Verbs: All, Images: []string{"*"}}} }

// newRules compiles a file that was checked; nil for none.
func (g *Guard) newRules(f *tokenFile, before *rules) *rules {
	r := &rules{tokens: map[handle]*token{}, sources: map[source]Grants{}}
	if g.open() {
		r.sources[Anyone().source()] = everything()
	}
	if g.opt.AnyCertificate {
		r.sources[source{kind: KindCertificate}] = everything()
	}
	if f == nil {
		return r
	}
	for _, e := range f.tokens {
		c := &Caller{Kind: KindToken, Name: e.name, Grants: e.grants, proof: proofOf(KindToken, hex.EncodeToString(e.hash[:]))}
		h := g.blind.handle(e.hash)
		t := &token{hash: e.hash, caller: c, visitors: &visitors{}}
		if same := before.tokens[h]; same != nil {
			t.visitors = same.visitors
		}
		r.tokens[h] = t
		r.sources[c.source()] = e.grants
	}
	for _, e := range f.certificates {
		e.proof = proofOf(KindCertificate, e.subject+"\n"+e.san)
		r.certificates = append(r.certificates, e)
		r.sources[source{KindCertificate, e.name, e.proof}] = e.grants
	}
	for _, e := range f.claims {
		e.proof = proofOf(KindJWT, e.text())
		r.claims = append(r.claims, e)
		r.sources[source{KindJWT, e.name, e.proof}] = e.grants
	}
	return r
}
