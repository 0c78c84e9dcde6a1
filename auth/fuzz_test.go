package auth

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What a token file holds never ends the program, and one that is taken grants
// nothing to nobody in particular.
func FuzzTokenFile(f *testing.F) {
	f.Add("tokens: [{name: a, sha256: " + strings.Repeat("ab", 32) + `, grants: [{verbs: [map], images: ["*"]}]}]`)
	f.Add(`certificates: [{name: a, subject: "CN=a", grants: []}]`)
	f.Add(`claims: [{name: a, match: {sub: "*", ok: true}, grants: []}]`)
	f.Add("a: &a [*a]")
	f.Add("? [a]\n: b")
	f.Add("claims: !!map [{<<: *x}]")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseFile([]byte(text))
		if err != nil {
			if err.Error() == "" {
				t.Error("the error says nothing")
			}
			return
		}
		for _, e := range file.tokens {
			if e.name == "" || e.hash == (digest{}) {
				t.Errorf("token %+v", e)
			}
		}
		for _, e := range file.certificates {
			if e.name == "" || (e.subject == "") == (e.san == "") {
				t.Errorf("certificate %+v", e)
			}
		}
		for _, e := range file.claims {
			if e.name == "" || e.matches(map[string]any{}) {
				t.Errorf("claims %+v", e)
			}
		}
		g := &Guard{opt: Options{File: "x"}}
		r := g.newRules(file, &rules{})
		if len(r.tokens) != len(file.tokens) || r.sources[Anyone().source()] != nil {
			t.Error("the rules are not those of the file")
		}
	})
}

// What is no ticket is never taken for one.
func FuzzTicket(f *testing.F) {
	var key ticketKey
	if _, err := rand.Read(key[:]); err != nil {
		f.Fatal(err)
	}
	n := note{id: rand.Text(), image: "vm.qcow2", verbs: Read, expires: time.Now().UnixMilli()}
	f.Add(new(ticketKey).encode(&n))
	f.Add(ticketPrefix + ".")
	f.Add(ticketPrefix + strings.Repeat("A", 60) + "." + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, text string) {
		if got, ok := key.decode(text); ok {
			t.Errorf("%q is taken for %+v", text, got)
		}
		// With the right signature it is read, and has one text.
		known := ticketPrefix + text
		if dot := strings.LastIndexByte(text, '.'); dot >= 0 {
			known = ticketPrefix + text[:dot]
		}
		signed := known + "." + base64.RawURLEncoding.EncodeToString(key.sign(known))
		if got, ok := key.decode(signed); ok && (key.encode(&got) != signed || !got.valid()) {
			t.Errorf("%q is taken for %+v", signed, got)
		}
	})
}

func TestTicketText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := ticketKey(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		n := note{
			id:      rapid.StringMatching(`[A-Z2-7]{26}`).Draw(t, "id"),
			image:   rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,254}`).Draw(t, "image"),
			verbs:   Verbs(rapid.IntRange(1, int(All)).Draw(t, "verbs")),
			expires: rapid.Int64Min(0).Draw(t, "expires"),
		}
		text := key.encode(&n)
		if got, ok := key.decode(text); !ok || got != n {
			t.Fatalf("%+v, %t, want %+v", got, ok, n)
		}
		at, bit := rapid.IntRange(0, len(text)-1).Draw(t, "at"), rapid.IntRange(0, 7).Draw(t, "bit")
		changed := []byte(text)
		changed[at] ^= 1 << bit
		if got, ok := key.decode(string(changed)); ok {
			t.Fatalf("changed at %d, it is %+v", at, got)
		}
	})
}

// Records that the state cannot have, and some that it can.
func FuzzRecord(f *testing.F) {
	rec := record{note: note{id: rand.Text(), image: "a", verbs: Read}, source: source{kind: KindToken, name: "b"}, subject: "c"}
	text, err := rec.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec.id, text)
	f.Add("", []byte("{}"))
	f.Fuzz(func(t *testing.T, id string, text []byte) {
		rec, err := decodeRecord(id, text)
		if err == nil && !rec.valid() {
			t.Errorf("record %+v", rec)
		}
	})
}
