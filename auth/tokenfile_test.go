package auth_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/auth"
)

const goodFile = `
tokens:
- name: backup
  sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  grants: [{verbs: [map, read], images: ["*.qcow2", 'vm-[0-9].raw']}, {verbs: [admin], images: ["tmp-*"]}]
- name: like-a-number # its hash must not be taken for one
  sha256: 12345678901234567890123456789012345678901234567890123456789012e4
  grants: []
certificates:
- {name: agent, subject: "CN=agent,O=Example\\, Inc.", grants: [{verbs: [write], images: ["*"]}]}
- {name: spiffe, san: "spiffe://example.org/agent", grants: []}
claims:
- {name: jobs, match: {sub: "system:serviceaccount:backup:*", email_verified: true}, grants: []}
`

func TestTokenFile(t *testing.T) {
	const grants = "grants: [{verbs: [map], images: [a]}]"
	h := hash("a")
	cases := []struct {
		name, text string
		want       []string // nil: it is good
	}{
		{"good", goodFile, nil},
		{"no entries", "tokens: []", nil},
		{"empty", "", []string{"is empty"}},
		{"a comment", "# nobody yet\n", []string{"is empty"}},
		{"null", "~", []string{"has no value"}},
		{"a list", "[]", []string{"must be a mapping"}},
		{"no yaml", "tokens: [", []string{"yaml: line 1: did not find expected node content"}},
		{"two documents", "tokens: []\n---\ntokens: []", []string{"holds more than one document"}},
		{"everything at once", `
tokens:
- {name: a, sha256: 12, grants: [{verbs: [red], images: ["[a"]}]}
- {nam: b, sha256: ` + h + `, grants: [{verbs: [], images: []}]}
- {name: c, sha256: ` + strings.ToUpper(h) + `, grants: [{verbs: [map]}]}
token: []
certificates:
- {name: d, ` + grants + `}
- {name: d, subject: x, san: y, ` + grants + `}
claims:
- {name: e, match: {}, ` + grants + `}
- {name: f, match: {sub: [a], n: 5, ok: yes please, gone: null}, ` + grants + `}
`, []string{
			"tokens[0].sha256: must be 64 hex digits: the SHA-256 of the token",
			"tokens[0].grants[0].verbs[0]: must be one of map, read, write, create, admin",
			"tokens[0].grants[0].images[0]: is no pattern: a [ or a \\ has no end",
			"tokens[1].nam: is unknown, must be one of grants, name, sha256",
			"tokens[1].grants[0].verbs: is empty",
			"tokens[1].grants[0].images: is empty",
			"tokens[1].name: is missing",
			"tokens[2].sha256: is the same as tokens[1].sha256",
			"tokens[2].grants[0].images: is missing",
			"token: is unknown, must be one of certificates, claims, tokens",
			"certificates[0]: must have either subject or san",
			"certificates[1].name: is the same as certificates[0].name",
			"certificates[1]: must have either subject or san",
			"claims[0].match: is empty: it would be for everybody",
			"claims[1].match.sub: must be a text",
			"claims[1].match.n: must be a text or true or false; a number is in quotes",
			"claims[1].match.gone: has no value",
		}},
		{
			"same name", "tokens:\n" + token("a", "1", "map", "a") + token("a", "2", "map", "a"),
			[]string{"tokens[1].name: is the same as tokens[0].name"},
		},
		{
			"same subject", "certificates: [{name: a, san: x, grants: []}, {name: b, san: x, grants: []}]",
			[]string{"certificates[1].san: is the same as certificates[0].san"},
		},
		{"bad names", `tokens: [{name: "a b", sha256: ` + h + `, grants: []}, {name: "", sha256: ` + hash("b") + `, grants: []}, {name: ` +
			strings.Repeat("x", 65) + `, sha256: ` + hash("c") + `, grants: []}]`, []string{
			"tokens[0].name: must be letters, digits and . _ @ -, a letter or digit first",
			"tokens[1].name: is empty",
			"tokens[2].name: is longer than 64",
		}},
		{
			"hash of nothing", "tokens:\n" + token("a", "", "map", "a") + token("b", "\n", "map", "a"),
			[]string{"tokens[0].sha256: is that of an empty token", "tokens[1].sha256: is that of an empty line"},
		},
		{"slash", "tokens:\n" + token("a", "1", "map", "a/*"), []string{"tokens[0].grants[0].images[0]: has a slash, which no image's name has"}},
		{"twice", "tokens: []\ntokens: []", []string{"tokens: is given twice"}},
		{"aliases", "tokens: &t []\nclaims: *t", []string{"claims: is an alias, which is not taken here"}},
		{
			"merge", "tokens: [{<<: {name: a}, sha256: " + h + ", grants: []}]",
			[]string{"tokens[0].<<: is unknown, must be one of grants, name, sha256", "tokens[0].name: is missing"},
		},
		{"too large", "tokens: [] #" + strings.Repeat("x", auth.MaxFile), []string{"is larger than 1048576 bytes"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			if err := auth.ParseFile([]byte(c.text)); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// A token that somebody put where its hash belongs is not repeated.
func TestTokenFileKeepsSecrets(t *testing.T) {
	err := auth.ParseFile([]byte("tokens: [{name: a, sha256: s3cr3t-t0ken, grants: []}]"))
	if err == nil || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("error %v", err)
	}
}

func TestTokenFileFindingsAreBounded(t *testing.T) {
	err := auth.ParseFile([]byte("tokens: [" + strings.Repeat("1,", 5000) + "]"))
	if err == nil || len(err.Error()) > 10_000 || !strings.HasSuffix(err.Error(), "and 4900 more") {
		t.Errorf("error of %d bytes", len(err.Error()))
	}
}

func TestLike(t *testing.T) {
	cases := []struct {
		pattern, text string
		want          bool
	}{
		{"a", "a", true},
		{"a", "ab", false},
		{"a", "A", false},
		{"", "", true},
		{"*", "", true},
		{"*", "any/thing:at?all", true},
		{"a*", "a", true},
		{"a*", "ba", false},
		{"*a", "ba", true},
		{"*a", "ab", false},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"ab*ba", "aba", false},
		{"system:serviceaccount:backup:*", "system:serviceaccount:backup:job", true},
		{"system:serviceaccount:backup:*", "system:serviceaccount:backup2:job", false},
		{"repo:org/*:ref:*/main", "repo:org/name:ref:refs/heads/main", true},
		{"a*b*c", "a-c-b", false},
		{"a*b*c", "abbc", true},
		{"a?c", "abc", false},
		{"a?c", "a?c", true},
		{"[ab]", "a", false},
		{`a\*`, "a*", false},
	}
	for _, c := range cases {
		if got := auth.Like(c.pattern, c.text); got != c.want {
			t.Errorf("Like(%q, %q) = %t", c.pattern, c.text, got)
		}
	}
}
