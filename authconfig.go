package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/extentd/extentd/auth"
)

// AuthConfig says how callers become known.
type AuthConfig struct {
	Tokens   string `koanf:"tokens"`
	Issuer   string `koanf:"oidc-issuer"`
	Audience string `koanf:"oidc-audience"`
	IssuerCA string `koanf:"oidc-ca"`
}

func authFlags(f *pflag.FlagSet) {
	f.String("tokens", "", "serve only those that the YAML `FILE` has grants for, by token, JWT or client certificate")
	f.String("oidc-issuer", "", "take JWTs of the OpenID Connect issuer at `URL`, for the claims that --tokens grants something")
	f.String("oidc-audience", "", "the audience, `AUD`, that a JWT must be meant for")
	f.String("oidc-ca", "", "trust the authorities in the PEM `FILE` when asking the issuer (default: those of the system)")
}

// check refuses what is incomplete.
func (c *AuthConfig) check() error {
	switch {
	case c.Issuer != "" && c.Tokens == "":
		return errors.New("oidc-issuer needs tokens: its claims say what a JWT allows")
	case c.Issuer != "" && c.Audience == "":
		return errors.New("oidc-issuer needs oidc-audience: a JWT that was made for another service must not be taken")
	case c.Issuer == "" && (c.Audience != "" || c.IssuerCA != ""):
		return errors.New("oidc-audience and oidc-ca need oidc-issuer")
	}
	return nil
}

// guard are the options of the guard. Where there are client certificates and no
// file, whoever has one of the right authority may do everything.
func (c *AuthConfig) guard(certificates bool) auth.Options {
	return auth.Options{
		File: c.Tokens, Issuer: c.Issuer, Audience: c.Audience, IssuerCA: c.IssuerCA,
		AnyCertificate: certificates && c.Tokens == "",
	}
}

// openGuard reads who may do what.
func (s *Server) openGuard(ctx context.Context, config *Config) error {
	opt := config.Auth.guard(config.TLS.ClientCA != "")
	opt.State, opt.Logger = s.state, s.log
	guard, err := auth.New(ctx, opt)
	if err != nil {
		return err
	}
	s.guard, s.failures = guard, guard.Failures
	if from, err := reach("listen", config.Listen); err == nil && from == anywhere && config.authenticated() && config.TLS.Cert == "" {
		s.log.Warn("tokens cross the network as they are: give --tls-cert, unless something in front of this server speaks TLS", "listen", config.Listen)
	}
	return nil
}
