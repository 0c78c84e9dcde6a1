package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// An issuer signs JWTs, and says with what.
type issuer struct {
	t   *testing.T
	url string
	key *ecdsa.PrivateKey
	id  string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{t: t}
	i.rotate("first")
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.url, "jwks_uri": i.url + "/keys", "authorization_endpoint": i.url, "token_endpoint": i.url,
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: "ES256", Use: "sig"}}})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	i.url = server.URL
	return i
}

func (i *issuer) rotate(id string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(i.t, err)
	i.key, i.id = key, id
}

func (i *issuer) claims() jwt.Claims {
	now := time.Now()
	return jwt.Claims{
		Issuer: i.url, Subject: "system:serviceaccount:backup:mover", Audience: jwt.Audience{"extentd"},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)), Expiry: jwt.NewNumericDate(now.Add(time.Hour)),
	}
}

func (i *issuer) sign(key jose.SigningKey, c jwt.Claims) string {
	i.t.Helper()
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", i.id))
	must(i.t, err)
	text, err := jwt.Signed(signer).Claims(c).Serialize()
	must(i.t, err)
	return text
}

func (i *issuer) token(edit func(c *jwt.Claims)) string {
	i.t.Helper()
	c := i.claims()
	if edit != nil {
		edit(&c)
	}
	return i.sign(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, c)
}

// TestJWT: JWTs of the issuer are taken if all of them is right.
func TestJWT(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	f := newTokenFile(t, `tokens:
- {token boss, grants: [{verbs: [map], images: ["*"]}]}
claims:
- {name: movers, match: {sub: "system:serviceaccount:backup:*"}, grants: [{verbs: [map, read], images: ["a*.raw"]}]}
`)
	s := serve(t, threeDisks(t), "--tokens", f.path, "--oidc-issuer", i.url, "--oidc-audience", "extentd")
	good := i.token(nil)
	expectCall(t, s, 200, good, "GET", "/v1/images/a.raw/data", "")
	expectCall(t, s, 403, good, "POST", "/v1/images/a.raw/flush", "{}")
	expectCall(t, s, 404, good, "GET", "/v1/images/b.raw", "")
	expectCall(t, s, 200, "boss-secret", "GET", "/v1/images/b.raw", "")

	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	must(t, err)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + strings.Split(good, ".")[1] + "."
	stranger := newIssuer(t)
	signature := strings.Split(good, ".")[2]
	for what, bad := range map[string]string{
		"expired":       i.token(func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-10 * time.Minute)) }),
		"not yet valid": i.token(func(c *jwt.Claims) { c.NotBefore = jwt.NewNumericDate(time.Now().Add(10 * time.Minute)) }),
		"audience":      i.token(func(c *jwt.Claims) { c.Audience = jwt.Audience{"others"} }),
		"no audience":   i.token(func(c *jwt.Claims) { c.Audience = nil }),
		"issuer":        i.token(func(c *jwt.Claims) { c.Issuer = stranger.url }),
		"subject":       i.token(func(c *jwt.Claims) { c.Subject = "system:serviceaccount:default:x" }),
		"never ends":    i.token(func(c *jwt.Claims) { c.Expiry = nil }),
		"alg none":      none,
		"key confusion": i.sign(jose.SigningKey{Algorithm: jose.HS256, Key: der}, i.claims()),
		"other key":     stranger.sign(jose.SigningKey{Algorithm: jose.ES256, Key: stranger.key}, i.claims()),
		"no signature":  strings.TrimSuffix(good, signature),
		"other claims":  strings.Split(good, ".")[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"x"}`)) + "." + signature,
	} {
		if a := call(t, s, bad, "GET", "/v1/images/a.raw/data", ""); a.status != 401 && a.status != 404 && a.status != 403 {
			t.Errorf("%s: %d", what, a.status)
		}
	}
	i.rotate("second")
	becomes(t, s, 200, i.token(nil), "/v1/images/a.raw/data")
	if strings.Contains(s.stderr.String(), signature) {
		t.Error("the log holds a JWT")
	}
}

// TestCertificates: client certificates have the grants of their entries, over HTTP
// and over NBD.
func TestCertificates(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	a.Client("reader")
	a.Client("stranger")
	f := newTokenFile(t, `tokens:
- {token boss, grants: [{verbs: [map], images: ["*"]}]}
certificates:
- {name: readers, subject: "CN=reader", grants: [{verbs: [map, read], images: ["a*.raw"]}]}
- {name: writers, subject: "CN=client", grants: [{verbs: [map, read, write], images: ["a.raw", "b.raw"]}]}
`)
	flags := append(a.HTTP(), "--tls-client-ca", a.Path("ca-cert.pem"), "--tokens", f.path)
	s := serve(t, threeDisks(t), append(flags, a.flags(true)...)...)
	with := func(name string) []string {
		return []string{"--cacert", a.Path("ca-cert.pem"), "--cert", a.Path(name + "-cert.pem"), "--key", a.Path(name + "-key.pem")}
	}
	for _, c := range []struct {
		status int
		path   string
		args   []string
	}{
		{200, "/v1/images/a.raw/data", with("reader")},
		{404, "/v1/images/b.raw/data", with("reader")},
		{200, "/v1/images/b.raw/data", with("client")},
		{401, "/v1/images/a.raw/data", with("stranger")},
		{401, "/v1/images/a.raw/data", []string{"--cacert", a.Path("ca-cert.pem")}},
		{200, "/v1/images/b.raw", append(bearer("boss-secret"), "--cacert", a.Path("ca-cert.pem"))},
		{403, "/v1/images/b.raw/data", append(bearer("boss-secret"), with("client")...)}, // what is said counts
	} {
		if got := curl(t, s, c.path, c.args...); got.status != c.status {
			t.Errorf("%s with %v: %d, want %d", c.path, c.args, got.status, c.status)
		}
	}
	if _, code, _ := tryCurl(t, s, "/v1/images", "--cacert", a.Path("ca-cert.pem"), "--cert", other.Path("client-cert.pem"), "--key", other.Path("client-key.pem")); code == 0 {
		t.Error("a certificate of another authority was taken")
	}

	reader := certificateDir(t, a, "reader")
	address := s.nbd[0]
	list := mustTool(t, "nbdinfo", "--list", "--json", uriOf(address, "", "tls-certificates", reader))
	if !strings.Contains(list, `"ab.raw"`) || strings.Contains(list, `"b.raw"`) {
		t.Errorf("the reader's exports: %s", list)
	}
	if out := mustTool(t, "nbdinfo", "--json", uriOf(address, "a.raw", "tls-certificates", reader)); !strings.Contains(out, `"is_read_only": true`) {
		t.Errorf("the reader's export: %s", out)
	}
	if out := mustTool(t, "nbdinfo", "--json", uriOf(address, "a.raw", "tls-certificates", a.Dir)); !strings.Contains(out, `"is_read_only": false`) {
		t.Errorf("the writer's export: %s", out)
	}
	for _, refused := range []string{
		uriOf(address, "b.raw", "tls-certificates", reader),
		uriOf(address, "ab.raw", "tls-certificates", a.Dir),
		uriOf(address, "a.raw", "tls-certificates", certificateDir(t, a, "stranger")),
	} {
		if out, _, err := tool("nbdinfo", "--size", refused); err == nil {
			t.Errorf("%s is served: %s", refused, out)
		}
	}
	narrowed(t, s, f, a)
}

// narrowed: a connection ends when its client may do less than when it began.
func narrowed(t *testing.T, s *server, f *tokenFile, a *authority) {
	t.Helper()
	c := dialNBD(t, s.nbd[0])
	config := tlsOf(a, "client")
	must(t, c.startTLS(config, true))
	must(t, c.open("a.raw", false))
	if _, err := c.readAll(0, 512); err != nil {
		t.Fatal(err)
	}
	f.write(fmt.Sprintf("tokens:\n- {token boss, grants: [{verbs: [map], images: [%q]}]}\n", "*"))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := c.readAll(0, 512); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a client without an entry is served still")
		}
	}
}

// tlsOf is how a client with a certificate of the authority begins TLS.
func tlsOf(a *authority, name string) *tls.Config {
	return &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{a.Pair(name)}}
}

// certificateDir is a directory for libnbd, with another client's certificate as
// the client's.
func certificateDir(t *testing.T, a *authority, name string) string {
	t.Helper()
	dir := a.without()
	must(t, os.WriteFile(filepath.Join(dir, "client-cert.pem"), readFile(t, a.Path(name+"-cert.pem")), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "client-key.pem"), readFile(t, a.Path(name+"-key.pem")), 0o600))
	return dir
}
