package auth

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// certificate is an entry for client certificates.
type certificate struct {
	name    string
	subject string // as pkix.Name prints it; "" for any
	san     string // a DNS name, URI or email address; "" for any
	grants  Grants
	proof   proof
}

// Certificate is who presented a chain of certificates, the client's own first,
// which were verified already. The first entry of the token file that names it
// counts. An error wraps [ErrUnauthenticated].
func (g *Guard) Certificate(chain []*x509.Certificate) (*Caller, error) {
	now := time.Now()
	c, refused := g.certificate(chain, now)
	if refused != nil {
		g.failures.Add(1)
		return nil, refused
	}
	return c, nil
}

func (g *Guard) certificate(chain []*x509.Certificate, now time.Time) (*Caller, *refusal) {
	if len(chain) == 0 || chain[0] == nil {
		return nil, stale("there is no certificate")
	}
	leaf := chain[0]
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return nil, stale("the certificate has expired, or is not valid yet")
	}
	subject := leaf.Subject.String()
	r := g.rules.Load()
	for i := range r.certificates {
		e := &r.certificates[i]
		c := &Caller{Kind: KindCertificate, Name: e.name, Expires: leaf.NotAfter, Grants: e.grants, proof: e.proof}
		switch {
		case e.subject != "" && e.subject == subject:
			c.Subject = subject
			return c, nil
		case e.san != "" && hasSAN(leaf, e.san):
			c.Subject = e.san
			return c, nil
		}
	}
	if g.opt.AnyCertificate {
		if subject == "" {
			subject = firstSAN(leaf)
		}
		if len(subject) > maxSubject {
			return nil, stale("the subject of the certificate is too long")
		}
		return &Caller{Kind: KindCertificate, Subject: subject, Expires: leaf.NotAfter, Grants: everything()}, nil
	}
	// The subject is the client's own, and as it belongs into the file.
	return nil, stale(fmt.Sprintf("nobody is known by the certificate of %.200q", subject))
}

// hasSAN reports whether a certificate is for the name. What the name looks like
// says what kind it is, so that an authority that lets its clients choose one kind
// gives them none of the others.
func hasSAN(c *x509.Certificate, name string) bool {
	switch {
	case strings.Contains(name, ":"):
		for _, u := range c.URIs {
			if u.String() == name {
				return true
			}
		}
		return false
	case strings.Contains(name, "@"):
		return slices.Contains(c.EmailAddresses, name)
	default:
		return slices.Contains(c.DNSNames, name)
	}
}

func firstSAN(c *x509.Certificate) string {
	if len(c.URIs) > 0 {
		return c.URIs[0].String()
	}
	for _, names := range [][]string{c.DNSNames, c.EmailAddresses} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return ""
}
