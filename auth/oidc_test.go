package auth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/extentd/extentd/auth"
)

const audience = "extentd"

// A provider is an OIDC issuer with a certificate of its own.
type provider struct {
	*httptest.Server
	ca string // file

	mu     sync.Mutex // protects all below
	keys   []any      // of the key set
	down   bool
	jwks   string // what it says instead of where its keys are
	asked  int    // how often for its keys
	answer []byte // instead of the key set
}

func newProvider(t testing.TB, keys ...any) *provider {
	t.Helper()
	p := &provider{keys: keys}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "gone fishing", http.StatusServiceUnavailable)
			return
		}
		jwks := p.jwks
		if jwks == "" {
			jwks = p.URL + "/keys"
		}
		reply(t, w, map[string]any{"issuer": p.URL, "jwks_uri": jwks, "id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked++
		if p.answer != nil {
			_, _ = w.Write(p.answer)
			return
		}
		reply(t, w, map[string]any{"keys": p.keys})
	})
	p.Server = httptest.NewUnstartedServer(mux)
	p.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of those who do not trust it
	p.StartTLS()
	t.Cleanup(p.Close)
	p.ca = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	if err := os.WriteFile(p.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func reply(t testing.TB, w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Error(err)
	}
}

func (p *provider) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *provider) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// options are those of a guard that trusts the provider.
func (p *provider) options(t testing.TB, file string) auth.Options {
	return auth.Options{File: write(t, file), Issuer: p.URL, Audience: audience, IssuerCA: p.ca}
}

const jobs = `
claims:
- {name: jobs, match: {sub: "system:serviceaccount:backup:*"}, grants: [{verbs: [map, read], images: ["*"]}]}
- {name: admins, match: {groups: ops, email_verified: true, email: "*@example.com"}, grants: [{verbs: [admin], images: ["*"]}]}
- {name: rest, match: {sub: "*"}, grants: [{verbs: [map], images: ["public-*"]}]}
`

// The keys of tests are made once: that of RSA takes long.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	otherKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey { _, key, err := ed25519.GenerateKey(rand.Reader); return must(key, err) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// public is a key as a key set has it.
func public(key crypto.PublicKey, id string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: id, Use: "sig"}
}

// sign makes a JWT.
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, id string, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		options = options.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// claims are good ones, and those on top; nil takes one away.
func (p *provider) claims(more map[string]any) map[string]any {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": p.URL, "aud": []string{"another", audience}, "sub": "system:serviceaccount:backup:nightly",
		"exp": now + 600, "nbf": now - 10, "iat": now - 10,
	}
	for k, v := range more {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	return all
}
