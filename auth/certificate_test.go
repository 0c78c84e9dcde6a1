package auth_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/auth"
)

// certificate is one that is signed with its own key: that it was verified is for
// others to see to.
func certificate(t testing.TB, change func(c *x509.Certificate)) []*x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, ecKey().Public(), ecKey())
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

const certificates = `
certificates:
- {name: agent, subject: "CN=agent,OU=a+OU=b,O=Example\\, Inc.", grants: [{verbs: [map, read], images: ["*"]}]}
- {name: host, san: host.example, grants: [{verbs: [map], images: ["*"]}]}
- {name: workload, san: "spiffe://example.org/ns/a", grants: [{verbs: [read], images: ["*"]}]}
- {name: mail, san: ops@example.org, grants: [{verbs: [admin], images: ["*"]}]}
`

func TestCertificate(t *testing.T) {
	named := func(cn string) func(c *x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: cn} }
	}
	dns := func(names ...string) func(c *x509.Certificate) {
		return func(c *x509.Certificate) { named("x")(c); c.DNSNames = names }
	}
	agent := func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "agent", Organization: []string{"Example, Inc."}, OrganizationalUnit: []string{"a", "b"}}
	}
	cases := []struct {
		name   string
		change func(c *x509.Certificate)
		want   string // the caller; "" for none
	}{
		{"subject", agent, "certificate:agent:CN=agent,OU=a+OU=b,O=Example\\, Inc."},
		{"a longer subject", func(c *x509.Certificate) { agent(c); c.Subject.Country = []string{"XX"} }, ""},
		{"a part of the subject", named("agent"), ""},
		{"a subject in a name", named("agent,OU=a+OU=b,O=Example\\, Inc."), ""},
		{"unknown attributes", func(c *x509.Certificate) {
			agent(c)
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "x"}}
		}, ""},
		{"dns name", dns("other.example", "host.example"), "certificate:host:host.example"},
		{"a name below it", dns("a.host.example"), ""},
		{"a wildcard", dns("*.example"), ""},
		{"a common name is no dns name", named("host.example"), ""},
		{"uri", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/ns/a"}} }, "certificate:workload:spiffe://example.org/ns/a"},
		{"a uri as dns name", dns("spiffe://example.org/ns/a"), ""},
		{"email", func(c *x509.Certificate) { c.EmailAddresses = []string{"ops@example.org"} }, "certificate:mail:ops@example.org"},
		{"an email address as dns name", dns("ops@example.org"), ""},
		{"expired", func(c *x509.Certificate) { agent(c); c.NotAfter = time.Now().Add(-time.Minute) }, ""},
		{"not yet", func(c *x509.Certificate) { agent(c); c.NotBefore = time.Now().Add(time.Minute) }, ""},
		{"nobody", named("x"), ""},
	}
	g := start(t, auth.Options{File: write(t, certificates)})
	wantFailures := uint64(0)
	for _, c := range cases {
		chain := certificate(t, c.change)
		got, err := g.Certificate(chain)
		if c.want == "" {
			wantFailures++
			if !errors.Is(err, auth.ErrUnauthenticated) {
				t.Errorf("%s: caller %v, error %v", c.name, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want || !got.Expires.Equal(chain[0].NotAfter) || got.Grants.Verbs("a") == 0 {
			t.Errorf("%s: caller %+v, error %v, want %s", c.name, got, err, c.want)
		}
	}
	_, err := g.Certificate(certificate(t, named(`a, "b"`)))
	if want := `the certificate of "CN=a\\, \\\"b\\\""`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	wantFailures++
	for _, chain := range [][]*x509.Certificate{nil, {nil}} {
		wantFailures++
		if _, err := g.Certificate(chain); !errors.Is(err, auth.ErrUnauthenticated) {
			t.Errorf("no certificate: %v", err)
		}
	}
	if g.Failures() != wantFailures {
		t.Errorf("%d failures, want %d", g.Failures(), wantFailures)
	}
}

func TestAnyCertificate(t *testing.T) {
	g := start(t, auth.Options{AnyCertificate: true, State: kept(t, t.TempDir())})
	one := func(c *x509.Certificate) { c.DNSNames = []string{"one.example"} }
	by, err := g.Certificate(certificate(t, one))
	if err != nil || by.String() != "certificate:one.example" || !by.May(auth.All, "any") {
		t.Fatalf("caller %+v, error %v", by, err)
	}
	if _, err := g.Certificate(certificate(t, func(c *x509.Certificate) { one(c); c.NotAfter = time.Now().Add(-time.Minute) })); err == nil {
		t.Error("an expired one is accepted")
	}
	if _, err := g.Certificate(certificate(t, func(c *x509.Certificate) { c.DNSNames = []string{strings.Repeat("x", 2000)} })); err == nil {
		t.Error("a long name is accepted")
	}
	ticket := mint(t, g, by, "a", auth.Read, 24*time.Hour)
	if !ticket.Expires.Equal(by.Expires) {
		t.Errorf("the ticket expires at %v, the certificate at %v", ticket.Expires, by.Expires)
	}
	if got := bearer(t, g, ticket.Secret); got.Subject != "one.example" || got.May(auth.Write, "a") {
		t.Errorf("the ticket is for %+v", got)
	}
	other, err := g.Certificate(certificate(t, func(c *x509.Certificate) { c.Subject.CommonName = "two" }))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Revoke(t.Context(), other, ticket.ID); err != nil { // as it may administer the image
		t.Error(err)
	}
}
