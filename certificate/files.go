// Package certificate keeps the TLS configuration of a server in step with the
// files that it comes from.
//
// It guarantees that a handshake that begins a second or more after the files have
// changed, in whatever way, uses what they hold, if it is whole: a certificate
// whose key does not match, a file that is missing or cut short, leaves what was
// there in use, and is logged once. A client whose authority was taken out of its
// file is not let in again, session tickets or not.
//
// It does not end connections that stand: Trusts and Verify say whether the
// certificate of one is still good.
package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Options name the files. Cert and Key are required.
type Options struct {
	Cert     string // PEM: the server's certificate, and those between it and its authority
	Key      string // PEM: its private key
	ClientCA string // PEM: the authorities of clients' certificates. Default: none are asked for
	// ClientAuth is what is asked of clients where there is a ClientCA. Default:
	// tls.RequireAndVerifyClientCert.
	ClientAuth tls.ClientAuthType
	// MaxVersion is the newest version of TLS that is spoken; the oldest is 1.2.
	// Default: what Go speaks.
	MaxVersion uint16
	// NextProtos are the protocols that ALPN chooses from. Default: none.
	NextProtos []string
	// Every is how long files are not looked at again. Default: 1 s.
	Every time.Duration
	// Logger is told of changes (info), and of those that were refused (warn).
	// Default: nobody is.
	Logger *slog.Logger
}

// Files are a server's certificate, its key, and the authorities of its clients.
// They are safe for concurrent use, and need not be closed.
type Files struct {
	opt    Options
	began  time.Time
	looked atomic.Int64 // when the files were looked at last, ns since began
	now    atomic.Pointer[loaded]

	mu      sync.Mutex // held by who looks at the files; others do not wait
	refused string     // what the last look met: it is not logged again
}

// Open reads the files.
func Open(opt Options) (*Files, error) {
	if opt.ClientAuth == tls.NoClientCert {
		opt.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if opt.Every <= 0 {
		opt.Every = time.Second
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Files{opt: opt, began: time.Now()}
	texts, err := f.read()
	if err != nil {
		return nil, err
	}
	l, err := load(&f.opt, texts)
	if err != nil {
		return nil, err
	}
	f.now.Store(l)
	return f, nil
}

// Config is for any number of connections. Its tickets are good for as long as
// the authority of who got them is.
func (f *Files) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		MaxVersion: f.opt.MaxVersion,
		NextProtos: f.opt.NextProtos,
		// Tickets are sealed with keys of this one, which Go renews. Whoever comes
		// back with one is measured by what the callback returns: without a chain
		// to one of its ClientCAs there is no resumption, and a certificate is
		// asked for again.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			f.look()
			return f.now.Load().config, nil
		},
	}
}

// Trusts reports whether the chains that a connection's certificate was verified
// by still lead to an authority that clients may have. A connection without any
// has nothing to lose.
func (f *Files) Trusts(chains [][]*x509.Certificate) bool {
	if len(chains) == 0 {
		return true
	}
	f.look()
	l := f.now.Load()
	if l.first {
		return true
	}
	for _, chain := range chains {
		if len(chain) > 0 && l.has(chain[len(chain)-1]) {
			return true
		}
	}
	return false
}

// Verify is for connections that are asked now and then, and of which only what
// the client has shown is known: it fails when its certificate, chain[0], would not
// be taken anymore because the authorities are others now.
func (f *Files) Verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return nil
	}
	f.look()
	l := f.now.Load()
	if l.first {
		return nil
	}
	opt := x509.VerifyOptions{
		Roots: l.config.ClientCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range chain[1:] {
		opt.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opt)
	return err
}

// look loads the files if they have changed, unless they were looked at a moment
// ago. Whoever finds somebody at it goes on with what there is.
func (f *Files) look() {
	now, last := int64(time.Since(f.began)), f.looked.Load()
	if now-last < int64(f.opt.Every) || !f.looked.CompareAndSwap(last, now) || !f.mu.TryLock() {
		return
	}
	defer f.mu.Unlock()
	texts, err := f.read()
	if err == nil && f.now.Load().of(texts) {
		f.refused = ""
		return
	}
	var l *loaded
	if err == nil {
		l, err = load(&f.opt, texts)
	}
	if err != nil {
		if err.Error() != f.refused {
			f.opt.Logger.Warn("certificates have changed and cannot be used; the ones before stay", "error", err)
			f.refused = err.Error()
		}
		return
	}
	f.refused = ""
	// Who has been let in by other authorities is looked at again.
	l.first = f.now.Load().first && bytes.Equal(f.now.Load().texts[clientCA], texts[clientCA])
	f.now.Store(l)
	f.opt.Logger.Info("certificates have changed", "certificate", f.opt.Cert, "expires", l.expires)
}

// The files, in the order in which they are kept.
const (
	cert = iota
	key
	clientCA
	files
)

// maxFile is the longest file that is read, bytes.
const maxFile = 1 << 20

var errTooLong = errors.New("the file is longer than 1 MiB")

// read reads the files to their ends: sizes and times would tell less, and they
// are short.
func (f *Files) read() (texts [files][]byte, err error) {
	for i, path := range [files]string{cert: f.opt.Cert, key: f.opt.Key, clientCA: f.opt.ClientCA} {
		if path == "" && i == clientCA {
			continue
		}
		if texts[i], err = readFile(path); err != nil {
			return texts, err
		}
	}
	return texts, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = errTooLong
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}
