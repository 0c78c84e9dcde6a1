package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
)

// A secret is a value that is shown nowhere.
type secret string

// MarshalJSON tells secrets from each other, and nothing else of them.
func (s secret) MarshalJSON() ([]byte, error) {
	return json.Marshal(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))))
}

// A webURL may hold a password, and its query may be as good as one.
type webURL string

// shown is the part of it that everybody may see, "" if it cannot be told.
func (u webURL) shown() string {
	parsed, err := url.Parse(string(u))
	if err != nil || parsed.Opaque != "" {
		return ""
	}
	parsed.User, parsed.RawQuery, parsed.ForceQuery, parsed.Fragment, parsed.RawFragment = nil, "", false, "", ""
	return parsed.String()
}

// MarshalJSON hides what shown does.
func (u webURL) MarshalJSON() ([]byte, error) {
	if shown := u.shown(); shown == string(u) {
		return json.Marshal(shown)
	}
	return secret(u).MarshalJSON()
}
