// Package auth says who a caller is and what that caller may do: verbs on images
// whose names match patterns. It knows tokens of a file, JWTs of an OIDC issuer,
// client certificates, and tickets that callers mint for others.
//
// It guarantees that nobody may do more than a grant says, that secrets are
// compared in constant time, and that no error, and no Caller, holds one. It does
// not know HTTP or NBD: front ends bring what a client presents, and ask.
package auth
