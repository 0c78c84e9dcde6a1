package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// loaded is what the files held at one time.
type loaded struct {
	config  *tls.Config
	texts   [files][]byte
	roots   map[string]struct{} // the authorities of clients, DER
	first   bool                // there were no other authorities before
	expires time.Time           // of the server's certificate
}

// of reports whether it was loaded from these texts.
func (l *loaded) of(texts [files][]byte) bool {
	for i := range texts {
		if !bytes.Equal(l.texts[i], texts[i]) {
			return false
		}
	}
	return true
}

func (l *loaded) has(root *x509.Certificate) bool {
	_, has := l.roots[string(root.Raw)]
	return has
}

func load(opt *Options, texts [files][]byte) (*loaded, error) {
	pair, err := tls.X509KeyPair(texts[cert], texts[key])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", opt.Cert, opt.Key, err)
	}
	l := &loaded{texts: texts, first: true, roots: make(map[string]struct{}), expires: pair.Leaf.NotAfter}
	l.config = &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		MaxVersion:   opt.MaxVersion,
		NextProtos:   opt.NextProtos,
	}
	if opt.ClientCA == "" {
		return l, nil
	}
	authorities, err := parse(texts[clientCA])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opt.ClientCA, err)
	}
	l.config.ClientAuth = opt.ClientAuth
	l.config.ClientCAs = x509.NewCertPool()
	for _, a := range authorities {
		l.config.ClientCAs.AddCert(a)
		l.roots[string(a.Raw)] = struct{}{}
	}
	return l, nil
}

var errNone = errors.New("it holds no certificate")

// parse reads all certificates of a file. One that is damaged is not passed over:
// who relied on it would be locked out.
func parse(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errNone
	}
	return all, nil
}
