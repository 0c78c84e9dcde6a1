package auth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/state"
)

// Options say how callers become known. Without a file, an issuer and certificates
// there is no authentication: anyone may do everything, and mint tickets.
type Options struct {
	// File is the token file, which also says what certificates and JWTs may do.
	// It is read again when it changes. Default: none.
	File string
	// Issuer is the URL of an OIDC issuer, whose JWTs are taken. It needs a File.
	// Default: none.
	Issuer string
	// Audience is what the aud of a JWT must hold. It is required with Issuer.
	Audience string
	// IssuerCA is a PEM file of the authorities for the issuer's TLS. Default:
	// those of the system.
	IssuerCA string
	// AnyCertificate: a client certificate that was verified may do everything,
	// unless the file says what it may. Default: false.
	AnyCertificate bool
	// State is where the key of tickets is kept, and which there are. Default: no
	// tickets are minted.
	State *state.DB
	// Logger is told what becomes of the file and the issuer, and of addresses
	// that are slowed down. Default: nobody is.
	Logger *slog.Logger
}

// timing are the durations that tests make shorter.
type timing struct {
	look       time.Duration // between two looks at the file
	sweep      time.Duration // between two looks for what has ended
	fresh      time.Duration // how long the issuer's keys are used without asking again
	keep       time.Duration // how long they are used while it cannot be reached
	pause      time.Duration // between two requests to the issuer, and after the first failure
	maxBackoff time.Duration // after many
}

func defaultTiming() timing {
	return timing{
		look: time.Second, sweep: time.Minute,
		fresh: 5 * time.Minute, keep: time.Hour, pause: 5 * time.Second, maxBackoff: time.Minute,
	}
}

// A Guard knows who a caller is by what it presents. It is safe for concurrent use.
type Guard struct {
	opt      Options
	timing   timing
	log      *slog.Logger
	blind    blind        // random, of this process
	seed     maphash.Seed // of visitors
	brake    brake
	issuer   *issuer // nil without one
	tickets  ledger
	failures atomic.Uint64
	rules    atomic.Pointer[rules]
	file     watched // used by New, and then by watch

	cancel context.CancelFunc
	work   sync.WaitGroup // watch and sweep
}

// New reads the token file and the tickets that are kept. An error says everything
// that is wrong with the file. That the issuer cannot be reached is none: it is
// asked at the first JWT, and again later. The guard is to be closed, and works until
// then, whatever becomes of ctx.
func New(ctx context.Context, opt Options) (*Guard, error) {
	return newGuard(ctx, opt, defaultTiming())
}

func newGuard(ctx context.Context, opt Options, t timing) (*Guard, error) {
	g := &Guard{opt: opt, timing: t, log: opt.Logger, seed: maphash.MakeSeed()}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if _, err := rand.Read(g.blind[:]); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if opt.Issuer != "" {
		if opt.File == "" {
			return nil, errors.New("auth: an issuer needs a token file that says what its subjects may do")
		}
		i, err := newIssuer(opt, t, g.log)
		if err != nil {
			return nil, err
		}
		g.issuer = i
	}
	g.rules.Store(g.newRules(nil, nil))
	if opt.File != "" {
		if err := g.load(); err != nil {
			g.issuer.close()
			return nil, err
		}
	}
	if err := g.tickets.load(opt.State, time.Now()); err != nil {
		g.issuer.close()
		return nil, err
	}
	ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx)) // who is served while others drain is guarded, too
	if opt.File != "" {
		g.work.Go(func() { g.watch(ctx) })
	}
	g.work.Go(func() { g.sweep(ctx) })
	return g, nil
}

// Close waits for the goroutines of the guard. It closes no state.
func (g *Guard) Close() error {
	g.cancel()
	g.work.Wait()
	g.issuer.close()
	return nil
}

// open reports whether there is no authentication.
func (g *Guard) open() bool {
	return g.opt.File == "" && g.opt.Issuer == "" && !g.opt.AnyCertificate
}

// Failures is how often somebody could not be made known, or was slowed down, since
// New.
func (g *Guard) Failures() uint64 { return g.failures.Load() }

// Bearer is who presented a secret: a token of the file, a JWT of the issuer, or a
// ticket. from is where it came from; it may be invalid, as for a unix socket.
//
// An error wraps [ErrUnauthenticated], and says why without the secret. After ten
// failures an address is slowed down, and gets a *[SlowDownError]: guesses are not
// looked at more than once in 100 ms, and more rarely with every further one, up to
// 5 s; five minutes without any, and it starts anew. What cannot be guessed, which is
// JWTs and tickets, is looked at all the same, and so is a token that was accepted
// from the same address before: nobody locks out others who share an address.
func (g *Guard) Bearer(ctx context.Context, from netip.Addr, secret string) (*Caller, error) {
	now := time.Now()
	c, refused := g.bearer(ctx, from, secret, now)
	if c != nil {
		return c, nil
	}
	g.failures.Add(1)
	if refused == nil {
		return nil, &SlowDownError{RetryAfter: max(time.Millisecond, g.brake.wait(from, now))}
	}
	if !refused.guess {
		return nil, refused
	}
	if d := g.brake.wait(from, now); d > 0 {
		return nil, &SlowDownError{RetryAfter: d}
	}
	if g.brake.fail(from, now) {
		g.log.Warn("many failures to authenticate, slowing the address down", "address", place(from))
	}
	return nil, refused
}

// bearer is the caller; or why there is none; or neither, if the secret is good and
// must wait like those that are not.
func (g *Guard) bearer(ctx context.Context, from netip.Addr, secret string, now time.Time) (*Caller, *refusal) {
	switch {
	case secret == "":
		return nil, stale("nothing was presented")
	case len(secret) > maxSecret:
		return nil, wrong("what was presented is longer than any token")
	}
	r := g.rules.Load()
	d := digestOf(secret)
	h := g.blind.handle(d)
	if t := r.tokens[h]; t != nil && t.hash.equal(d) {
		who := visitor(g.seed, from)
		if !t.visitors.has(who) {
			if g.brake.wait(from, now) > 0 {
				return nil, nil
			}
			t.visitors.note(who)
		}
		return t.caller, nil
	}
	if c := r.known.get(h, now); c != nil {
		return c, nil
	}
	switch {
	case strings.HasPrefix(secret, ticketPrefix):
		return g.ticket(r, h, secret, now)
	case isJWT(secret):
		return g.jwt(ctx, r, h, secret, now)
	}
	return nil, wrong("the token is not known")
}

// sweep forgets what has ended, until ctx does.
func (g *Guard) sweep(ctx context.Context) {
	tick := time.NewTicker(g.timing.sweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			g.brake.sweep(now)
			if err := g.tickets.sweep(now); err != nil {
				g.log.Error("tickets that have ended could not be removed", "error", err)
			}
		}
	}
}
