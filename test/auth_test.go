package test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A tokenFile is the file of --tokens of a test. The token of an entry is its name
// and "-secret".
type tokenFile struct {
	t    testing.TB
	path string
}

func newTokenFile(t testing.TB, text string) *tokenFile {
	t.Helper()
	f := &tokenFile{t, filepath.Join(t.TempDir(), "tokens.yaml")}
	f.write(text)
	return f
}

// write replaces the file, by renaming one. token NAME stands for an entry's name
// and hash.
func (f *tokenFile) write(text string) {
	f.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(text) {
		before, name, found := strings.Cut(line, "token ")
		if !found {
			out.WriteString(line)
			continue
		}
		name, rest, _ := strings.Cut(name, ",")
		digest := sha256.Sum256([]byte(secretOf(name)))
		fmt.Fprintf(&out, "%sname: %s, sha256: %s,%s", before, name, hex.EncodeToString(digest[:]), rest)
	}
	must(f.t, os.WriteFile(f.path+".new", []byte(out.String()), 0o600))
	must(f.t, os.Rename(f.path+".new", f.path))
}

func secretOf(name string) string { return name + "-secret" }

func bearer(secret string) []string { return []string{"-H", "Authorization: Bearer " + secret} }

// call asks with curl, as the caller with a token, and returns the status.
func call(t *testing.T, s *server, secret, method, path, body string) answer {
	t.Helper()
	args := []string{"-X", method}
	if secret != "" {
		args = append(args, bearer(secret)...)
	}
	if body != "" {
		args = append(args, "-H", "Content-Type: application/json", "-d", body)
	}
	return curl(t, s, path, args...)
}

// expectCall fails unless the status is as wanted.
func expectCall(t *testing.T, s *server, status int, secret, method, path, body string) answer {
	t.Helper()
	a := call(t, s, secret, method, path, body)
	if a.status != status {
		t.Errorf("%s %s with %q: %d, want %d: %.300s", method, path, secret, a.status, status, a.body)
	}
	return a
}

// becomes waits for a status: files are looked at about once a second.
func becomes(t *testing.T, s *server, status int, secret, path string) {
	t.Helper()
	var a answer
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if a = call(t, s, secret, "GET", path, ""); a.status == status {
			return
		}
	}
	t.Fatalf("%s with %q: still %d, want %d", path, secret, a.status, status)
}

const someTokens = `tokens:
- {token reader, grants: [{verbs: [map, read], images: ["a*.raw"]}]}
- {token writer, grants: [{verbs: [map, read, write], images: ["a.raw"]}, {verbs: [map], images: ["b.raw"]}]}
- {token boss, grants: [{verbs: [map, read, write, create, admin], images: ["*"]}]}
`

// threeDisks is a directory of a.raw, ab.raw and b.raw.
func threeDisks(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a.raw", "ab.raw", "b.raw"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name, 512)), 0o600))
	}
	return dir
}

// TestTokens: who has a token may do what its grants say, from the built binary.
func TestTokens(t *testing.T) {
	t.Parallel()
	dir := threeDisks(t)
	f := newTokenFile(t, someTokens)
	s := serve(t, dir, "--tokens", f.path)
	listed := func(secret string) string {
		var list struct{ Images []struct{ Name string } }
		must(t, json.Unmarshal(expectCall(t, s, 200, secret, "GET", "/v1/images", "").body, &list))
		var names []string
		for _, i := range list.Images {
			names = append(names, i.Name)
		}
		return strings.Join(names, " ")
	}
	for secret, want := range map[string]string{"reader-secret": "a.raw ab.raw", "writer-secret": "a.raw b.raw", "boss-secret": "a.raw ab.raw b.raw"} {
		if got := listed(secret); got != want {
			t.Errorf("%s sees %q, want %q", secret, got, want)
		}
	}
	const zero = `{"offset":0,"length":512}`
	for _, c := range []struct {
		status               int
		secret, method, path string
		body                 string
	}{
		{401, "", "GET", "/v1/images", ""},
		{401, "other", "GET", "/v1/images", ""},
		{401, "reader", "GET", "/v1/images", ""},
		{200, "", "GET", "/healthz", ""},
		{200, "", "GET", "/openapi.yaml", ""},
		{401, "", "GET", "/metrics", ""},
		{200, "reader-secret", "GET", "/metrics", ""},
		{200, "reader-secret", "GET", "/v1/images/a.raw/data", ""},
		{404, "reader-secret", "GET", "/v1/images/b.raw/data", ""},
		{403, "reader-secret", "POST", "/v1/images/a.raw/zero", zero},
		{204, "writer-secret", "POST", "/v1/images/a.raw/zero", zero},
		{403, "writer-secret", "GET", "/v1/images/b.raw/data", ""},
		{200, "writer-secret", "GET", "/v1/images/b.raw/extents", ""},
		{403, "writer-secret", "DELETE", "/v1/images/a.raw", ""},
		{403, "writer-secret", "POST", "/v1/images", `{"name":"a.raw","format":"raw","size":512}`},
		{201, "boss-secret", "POST", "/v1/images", `{"name":"new.raw","format":"raw","size":512}`},
		{204, "boss-secret", "DELETE", "/v1/images/new.raw", ""},
	} {
		expectCall(t, s, c.status, c.secret, c.method, c.path, c.body)
	}
	f.write(strings.ReplaceAll(someTokens, `"a*.raw"`, `"b.raw"`))
	becomes(t, s, 404, "reader-secret", "/v1/images/a.raw")
	expectCall(t, s, 200, "reader-secret", "GET", "/v1/images/b.raw/data", "")
	f.write("tokens: [nonsense") // what is broken changes nothing
	time.Sleep(3 * time.Second)
	expectCall(t, s, 200, "reader-secret", "GET", "/v1/images/b.raw/data", "")
	if log := s.stderr.String(); strings.Contains(log, "-secret") || !strings.Contains(log, "token file") {
		t.Errorf("the log:\n%s", log)
	}
}

// mintFor mints a ticket.
func mintFor(t *testing.T, s *server, secret, body string) (id, ticket string) {
	t.Helper()
	var minted struct{ ID, Ticket string }
	must(t, json.Unmarshal(expectCall(t, s, 201, secret, "POST", "/v1/tickets", body).body, &minted))
	return minted.ID, minted.Ticket
}

// TestTickets: a ticket is for its image and verbs, over a restart, until it ends, is
// revoked, or who minted it may do no more.
func TestTickets(t *testing.T) {
	t.Parallel()
	dir := threeDisks(t)
	f := newTokenFile(t, someTokens)
	s := serve(t, dir, "--tokens", f.path)
	readID, read := mintFor(t, s, "writer-secret", `{"image":"a.raw","verbs":["read"],"ttl":"10m"}`)
	_, write := mintFor(t, s, "writer-secret", `{"image":"a.raw","verbs":["read","write"],"ttl":"10m"}`)
	_, short := mintFor(t, s, "boss-secret", `{"image":"b.raw","verbs":["read"],"ttl":"2s"}`)
	revoked, gone := mintFor(t, s, "reader-secret", `{"image":"ab.raw","verbs":["map"]}`)
	expectCall(t, s, 403, "writer-secret", "POST", "/v1/tickets", `{"image":"a.raw","verbs":["admin"]}`)
	expectCall(t, s, 404, "writer-secret", "POST", "/v1/tickets", `{"image":"ab.raw","verbs":["map"]}`)
	expectCall(t, s, 404, "writer-secret", "DELETE", "/v1/tickets/"+revoked, "")
	expectCall(t, s, 200, gone, "GET", "/v1/images/ab.raw", "")
	expectCall(t, s, 204, "reader-secret", "DELETE", "/v1/tickets/"+revoked, "")

	check := func() {
		t.Helper()
		query := "?ticket=" + url.QueryEscape(read)
		expectCall(t, s, 200, "", "GET", "/v1/images/a.raw/data"+query, "")
		expectCall(t, s, 200, read, "GET", "/v1/images/a.raw/data", "")
		expectCall(t, s, 403, "", "GET", "/v1/images/a.raw"+query, "")
		expectCall(t, s, 404, "", "GET", "/v1/images/ab.raw/data"+query, "")
		expectCall(t, s, 403, read, "POST", "/v1/images/a.raw/flush", "{}")
		expectCall(t, s, 204, write, "POST", "/v1/images/a.raw/flush", "{}")
		expectCall(t, s, 403, write, "POST", "/v1/tickets", `{"image":"a.raw","verbs":["read"]}`)
		expectCall(t, s, 401, gone, "GET", "/v1/images/ab.raw", "")
		expectCall(t, s, 401, read[:len(read)-2]+"xx", "GET", "/v1/images/a.raw/data", "")
		expectCall(t, s, 400, read, "GET", "/v1/images/a.raw/data"+query, "")
		expectCall(t, s, 400, "", "GET", "/v1/images/a.raw/data"+query+"&ticket=x", "")
		expectCall(t, s, 400, "", "GET", "/v1/images/a.raw/data"+query+"&len=1", "")
		expectCall(t, s, 401, "", "GET", "/v1/images/a.raw/data?ticket=writer-secret", "")
	}
	check()
	s.stop()
	s = serve(t, dir, "--tokens", f.path)
	check()
	becomes(t, s, 401, short, "/v1/images/b.raw/data")
	f.write(strings.ReplaceAll(someTokens, "[map, read, write], images: [\"a.raw\"]", "[map, write], images: [\"a.raw\"]"))
	becomes(t, s, 401, read, "/v1/images/a.raw/data") // nothing is left that it allows
	expectCall(t, s, 403, write, "GET", "/v1/images/a.raw/data", "")
	f.write(strings.ReplaceAll(someTokens, "{token writer", "{token successor"))
	becomes(t, s, 401, write, "/v1/images/a.raw/data")
	expectCall(t, s, 204, "boss-secret", "DELETE", "/v1/tickets/"+readID, "")
	for _, secret := range []string{"-secret", read, write, short, gone} {
		if strings.Contains(s.stderr.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// TestGuessing: what guesses is slowed down, and who has a token goes on.
func TestGuessing(t *testing.T) {
	t.Parallel()
	s := serve(t, threeDisks(t), "--tokens", newTokenFile(t, someTokens).path)
	expectCall(t, s, 200, "reader-secret", "GET", "/v1/images", "")
	slowed := 0
	for k := range 40 {
		a := call(t, s, fmt.Sprint("guess-", k), "GET", "/v1/images", "")
		switch a.status {
		case http.StatusUnauthorized:
		case http.StatusTooManyRequests:
			if a.header.Get("Retry-After") == "" {
				t.Errorf("no Retry-After: %v", a.header)
			}
			slowed++
		default:
			t.Errorf("%d: %s", a.status, a.body)
		}
		if k%10 == 9 {
			expectCall(t, s, 200, "reader-secret", "GET", "/v1/images", "")
		}
	}
	if slowed == 0 {
		t.Error("40 guesses were looked at")
	}
}
