package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// An issuer knows the keys of an OIDC issuer. It asks for them when there is a JWT
// to check, and again when they are no longer fresh or a JWT was signed with another
// one; never more often than once in a pause. Safe for concurrent use.
type issuer struct {
	url, audience string
	plain         bool // http will do: the issuer is on this machine
	client        *http.Client
	timing        timing
	log           *slog.Logger
	known         atomic.Pointer[keySet] // nil before the first answer

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	work   sync.WaitGroup // fetches

	mu       sync.Mutex // protects all below; not held during any I/O
	closed   bool
	flight   chan struct{} // closed when the fetch under way ends; nil without one
	notUntil time.Time     // when the next may begin
	failed   int           // in a row
}

const fetchTime = 10 * time.Second

func newIssuer(opt Options, t timing, log *slog.Logger) (*issuer, error) {
	u, err := url.Parse(opt.Issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("auth: OIDC issuer: must be a URL without user, query and fragment")
	}
	i := &issuer{url: opt.Issuer, audience: opt.Audience, plain: u.Scheme == "http", timing: t, log: log}
	if !hasScheme(opt.Issuer, loopback(u.Hostname())) {
		return nil, errors.New("auth: OIDC issuer: must be https: who can change its answers can be anybody")
	}
	if opt.Audience == "" {
		return nil, errors.New("auth: OIDC issuer: an audience is required: JWTs for others are not for us")
	}
	var roots *x509.CertPool
	if opt.IssuerCA != "" {
		text, err := os.ReadFile(opt.IssuerCA)
		if err != nil {
			return nil, fmt.Errorf("auth: authorities of the OIDC issuer: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("auth: authorities of the OIDC issuer: %s has no certificate", opt.IssuerCA)
		}
	}
	i.client = &http.Client{
		Timeout: fetchTime,
		Transport: &bounded{next: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout:        fetchTime,
			ForceAttemptHTTP2:      true,
		}},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > 3 || !hasScheme(r.URL.String(), i.plain) {
				return errors.New("redirected too often, or away from https")
			}
			return nil
		},
	}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i, nil
}

// loopback reports whether a host is this machine.
func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// close ends the fetch under way. There may be no issuer.
func (i *issuer) close() {
	if i == nil {
		return
	}
	i.mu.Lock()
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.work.Wait()
	i.client.CloseIdleConnections()
}

// keys are those that a JWT is checked with. What is no longer fresh is asked for
// anew, and used meanwhile.
func (i *issuer) keys(ctx context.Context) (*keySet, *refusal) {
	known := i.known.Load()
	var age time.Duration
	if known != nil {
		if age = time.Since(known.since); age < i.timing.fresh {
			return known, nil
		}
	}
	flight := i.fetch() //nolint:contextcheck // others wait for the answer too: it does not end with one request
	if known != nil && age < i.timing.keep {
		return known, nil
	}
	i.await(ctx, flight)
	if now := i.known.Load(); now != known && now != nil {
		return now, nil
	}
	return nil, stale("the issuer of JWTs cannot be reached at the moment")
}

// newer are keys that were asked for after those, nil if there are none.
func (i *issuer) newer(ctx context.Context, than *keySet) *keySet {
	if now := i.known.Load(); now != than {
		return now
	}
	i.await(ctx, i.fetch()) //nolint:contextcheck // others wait for the answer too: it does not end with one request
	if now := i.known.Load(); now != than {
		return now
	}
	return nil
}

func (i *issuer) await(ctx context.Context, flight chan struct{}) {
	if flight == nil {
		return
	}
	select {
	case <-flight:
	case <-ctx.Done():
	}
}

// fetch asks for the keys, unless somebody does, or has just done so. The channel is
// closed when there is an answer; nil if there will be none.
func (i *issuer) fetch() chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || i.flight != nil || time.Now().Before(i.notUntil) {
		return i.flight
	}
	flight := make(chan struct{})
	i.flight = flight
	i.work.Go(func() {
		ctx, cancel := context.WithTimeout(i.ctx, fetchTime)
		defer cancel()
		keys, err := i.ask(ctx)
		i.landed(keys, err)
		close(flight)
	})
	return flight
}

// landed notes the answer.
func (i *issuer) landed(keys *keySet, err error) {
	i.mu.Lock()
	i.flight = nil
	before := i.failed
	wait := i.timing.pause
	if err == nil {
		i.failed = 0
		i.known.Store(keys)
	} else {
		i.failed++
		for n := 1; n < i.failed && wait < i.timing.maxBackoff; n++ {
			wait = min(2*wait, i.timing.maxBackoff)
		}
	}
	i.notUntil = time.Now().Add(wait)
	closed := i.closed
	i.mu.Unlock()
	switch {
	case closed:
	case err != nil:
		i.log.Error("the keys of the OIDC issuer could not be fetched", "issuer", i.url, "error", err, "again_in", wait)
	case before > 0:
		i.log.Info("the OIDC issuer answers again", "issuer", i.url)
	}
}

// ask asks the issuer where its keys are, and for them: both may change.
func (i *issuer) ask(ctx context.Context) (*keySet, error) {
	since := time.Now()
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, i.client), i.url)
	if err != nil {
		return nil, shortened(err)
	}
	var says struct {
		Keys string `json:"jwks_uri"`
	}
	if err := p.Claims(&says); err != nil {
		return nil, shortened(err)
	}
	if !hasScheme(says.Keys, i.plain) {
		return nil, errors.New("its jwks_uri is no https URL")
	}
	keys, err := fetchKeys(ctx, i.client, says.Keys)
	if err != nil {
		return nil, shortened(err)
	}
	return &keySet{keys: keys, since: since}, nil
}

// shortened bounds what others have put into an error.
func shortened(err error) error {
	const most = 300
	if text := err.Error(); len(text) > most {
		return errors.New(text[:most] + "...")
	}
	return err
}
