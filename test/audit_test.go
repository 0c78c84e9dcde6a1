package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// auditLines are the records in a text, which may have other lines.
func auditLines(t testing.TB, text []byte) []audit.Record {
	t.Helper()
	var all []audit.Record
	for line := range bytes.Lines(text) {
		var which struct{ Audit bool }
		var r audit.Record
		err := json.Unmarshal(line, &which)
		if err == nil && which.Audit {
			err = json.Unmarshal(line, &r)
			all = append(all, r)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
	}
	return all
}

func readAudit(t testing.TB, path string) []audit.Record {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return auditLines(t, text)
}

// told is what of a record a test foretells.
func told(r *audit.Record) string {
	text := fmt.Sprintf("%s %s %s %s: %d %s", r.Caller.Kind, r.Caller.Name, r.Method, r.Image, r.Status, r.Result)
	if r.Problem != "" {
		text += " " + r.Problem
	}
	if r.Change != nil {
		change, _ := json.Marshal(r.Change)
		text += " " + string(change)
	}
	if r.Replayed {
		text += " replayed"
	}
	if r.NBD != nil {
		change, _ := json.Marshal(r.NBD)
		text += " " + string(change)
	}
	return text
}

func auditTokens(t testing.TB, path string, tokens map[string]string) {
	t.Helper()
	text := "tokens:\n"
	for name, grants := range tokens {
		sum := sha256.Sum256([]byte(longSecret(name)))
		text += fmt.Sprintf("  - {name: %s, sha256: %s, grants: [%s]}\n", name, hex.EncodeToString(sum[:]), grants)
	}
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// longSecret is the token of a name: long, and easy to find where it must not be.
func longSecret(name string) string { return name + "-TOKEN-" + strings.Repeat("s3cr3t", 6) }

func authorized(name string) []string { return []string{"Authorization", "Bearer " + longSecret(name)} }

// Each change is a record, and each attempt; nothing else is.
func TestAudit(t *testing.T) {
	t.Parallel()
	dir, logs := t.TempDir(), t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.create(".qcow2", 4*mib)
	auditTokens(t, filepath.Join(logs, "tokens"), map[string]string{
		"writer": `{verbs: [map, read, write], images: ["*"]}`,
		"reader": `{verbs: [map, read], images: ["*"]}`,
	})
	path := filepath.Join(logs, "audit")
	s := serve(t, dir, overNBD("--audit-log", path, "--tokens", filepath.Join(logs, "tokens"))...)
	data := imagePath(file, "/data")
	ask := func(status int, method, path string, body any, headers ...string) {
		t.Helper()
		var a answer
		var err error
		if raw, ok := body.([]byte); ok {
			a, err = s.send(method, path, raw, headers...)
		} else {
			a, err = s.sendJSON(method, path, body, headers...)
		}
		must(t, accepted(method+" "+path, a, err, status))
	}
	writer, reader := authorized("writer"), authorized("reader")
	s.expect(t, http.StatusOK, "/v1/images", reader...) // reads are no changes
	s.expect(t, http.StatusUnauthorized, data)
	ask(204, "PUT", data, make([]byte, 4096), append(writer, "Content-Range", "bytes 8192-12287/*")...)
	ask(204, "POST", imagePath(file, "/zero"), object{"offset": 0, "length": 65536}, writer...)
	ask(403, "PUT", data, make([]byte, 512), append(reader, "Content-Range", "bytes 0-511/*")...)
	ask(401, "DELETE", imagePath(file, ""), nil)
	ask(403, "DELETE", imagePath(file, ""), nil, writer...)
	ask(404, "POST", imagePath("none.raw", "/flush"), object{}, writer...)
	ask(400, "PUT", data, make([]byte, 3), append(writer, "Content-Range", "bytes 0-511/*")...)
	ask(405, "BREW", "/v1/images", nil, writer...)
	want := []string{
		`token writer PUT x.qcow2: 204 ok {"offset":8192,"length":4096}`,
		`token writer POST x.qcow2: 204 ok {"offset":0,"length":65536}`,
		`token reader PUT x.qcow2: 403 refused /problems/forbidden {"offset":0,"length":512}`,
		`unknown  DELETE x.qcow2: 401 refused /problems/unauthenticated`,
		`token writer DELETE x.qcow2: 403 refused /problems/forbidden`,
		`token writer POST none.raw: 404 refused /problems/not-found`,
		`token writer PUT x.qcow2: 400 refused /problems/invalid-request {"offset":0,"length":512}`,
		`unknown  BREW : 405 refused /problems/method-not-allowed`,
	}
	for range 2 {
		ask(201, "POST", "/v1/tickets", object{"image": file, "verbs": []string{"read"}, "ttl": "1m"}, append(writer, "Idempotency-Key", "k")...)
	}
	want = append(want, `token writer POST : 201 ok {"name":"x.qcow2","verbs":["read"]}`, `token writer POST : 201 ok replayed`)
	c := s.openNBD(t, file, true)
	for off := range int64(3) {
		if _, err := c.do(wire.CmdWrite, wire.FlagPayloadLen, 4096*off, 0, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.do(wire.CmdTrim, 0, mib, 64*kib, nil); err != nil {
		t.Fatal(err)
	}
	must(t, c.conn.Close())
	r := s.openNBD(t, file, true) // reads alone
	if _, err := r.do(wire.CmdRead, 0, 0, 512, nil); err != nil {
		t.Fatal(err)
	}
	must(t, r.conn.Close())
	want = append(want, `anyone   x.qcow2: 0 ok {"writes":3,"trims":1,"written_bytes":12288,"trimmed_bytes":65536}`)
	s.stop()
	got := make([]string, 0, len(want))
	for _, r := range readAudit(t, path) {
		got = append(got, told(&r))
		if r.Time.IsZero() || r.Protocol == "http" && (r.Request == "" || r.Remote == "") {
			t.Errorf("incomplete: %+v", r)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := len(auditLines(t, []byte(s.stderr.String()))); n > 0 {
		t.Errorf("%d records are among the logs too", n)
	}
}

// Without a file the records are among the logs, whatever is logged; with the ids
// that the other lines have.
func TestAuditAmongLogs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	c := newCollector(t)
	s := serveWith(t, dir, c.env(), "--log-level", "error")
	trace, header := traceparent(1, true)
	must(t, s.put(file, 0, make([]byte, 512), false, "Traceparent", header, "X-Request-Id", "my-id"))
	s.stop()
	all := auditLines(t, []byte(s.stderr.String()))
	if len(all) != 1 || all[0].Trace != trace || all[0].Request != "my-id" || all[0].Message != "audit" || all[0].Caller.Kind != "anyone" {
		t.Errorf("got %+v", all)
	}
}

// logrotate may rename the file and say so, or not.
func TestAuditRotation(t *testing.T) {
	t.Parallel()
	dir, logs := t.TempDir(), t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	path := filepath.Join(logs, "audit")
	s := serve(t, dir, "--audit-log", path)
	put := func() { must(t, s.put(file, 0, make([]byte, 512), false)) }
	put()
	must(t, os.Rename(path, path+".1"))
	must(t, s.cmd.Process.Signal(syscall.SIGHUP))
	there := func() bool {
		_, err := os.Stat(path)
		return err == nil
	}
	await(t, "a new file after SIGHUP", there)
	put()
	must(t, os.Rename(path, path+".2"))
	await(t, "a new file without a signal", there)
	put()
	s.stop()
	for _, p := range []string{path + ".1", path + ".2", path} {
		if n := len(readAudit(t, p)); n != 1 {
			t.Errorf("%d records in %s, want 1", n, filepath.Base(p))
		}
	}
}

// Nothing secret is logged, traced, measured, or in the audit.
func TestNothingSecretIsTold(t *testing.T) {
	t.Parallel()
	dir, logs := t.TempDir(), t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	auditTokens(t, filepath.Join(logs, "tokens"), map[string]string{"writer": `{verbs: [map, read, write, create, admin], images: ["*"]}`})
	c := newCollector(t)
	path := filepath.Join(logs, "audit")
	s := serveWith(t, dir, c.env(), "--audit-log", path, "--tokens", filepath.Join(logs, "tokens"), "--log-level", "debug")
	writer := authorized("writer")
	a, err := s.sendJSON("POST", "/v1/tickets", object{"image": file, "verbs": []string{"read", "write"}, "ttl": "10m"}, writer...)
	must(t, accepted("POST /v1/tickets", a, err, http.StatusCreated))
	var ticket struct{ ID, Ticket string }
	must(t, json.Unmarshal(a.body, &ticket))
	secrets := []string{longSecret("writer"), longSecret("nobody"), ticket.Ticket, "wrong-" + ticket.Ticket, "a-Body-That-Is-Secret"}
	body := slices.Concat([]byte("a-Body-That-Is-Secret"), make([]byte, 512-21))
	inQuery := "ticket=" + ticket.Ticket
	for _, r := range []struct {
		status       int
		method, path string
		body         []byte
		headers      []string
	}{
		{204, "PUT", "/data", body, append(writer, "Content-Range", "bytes 0-511/*")},
		{401, "PUT", "/data", body, append(authorized("nobody"), "Content-Range", "bytes 0-511/*")},
		{204, "PUT", "/data?" + inQuery, body, []string{"Content-Range", "bytes 0-511/*"}},
		{400, "PUT", "/data?x=1&" + inQuery, body, []string{"Content-Range", "bytes 0-511/*"}},
		{403, "DELETE", "?" + inQuery, nil, nil},
		{401, "DELETE", "?ticket=wrong-" + ticket.Ticket, nil, nil},
		{200, "GET", "/data?" + inQuery, nil, nil},
		{401, "GET", "/data?ticket=wrong-" + ticket.Ticket, nil, nil},
	} {
		a, err := s.send(r.method, imagePath(file, r.path), r.body, r.headers...)
		must(t, accepted(r.method+" "+r.path, a, err, r.status))
		if r.method != "GET" || r.status != 200 {
			mustNotTell(t, r.method+" "+r.path, string(a.body)+fmt.Sprint(a.header), secrets)
		}
	}
	_, metrics := s.expect(t, http.StatusOK, "/metrics", writer...)
	s.stop()
	records := readAudit(t, path)
	if len(records) != 7 {
		t.Errorf("%d records, want 7", len(records))
	}
	if last := records[3]; last.Caller.Kind != "ticket" || last.Caller.Ticket != ticket.ID || last.Caller.Name != "writer" {
		t.Errorf("who has a ticket is told as %+v", last.Caller)
	}
	text, err := os.ReadFile(path)
	must(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) < 8 {
		t.Errorf("%d spans", len(c.spans))
	}
	if !strings.Contains(s.stderr.String(), `"msg":"request"`) {
		t.Error("requests are not logged at the level debug")
	}
	for what, all := range map[string]string{"the log": s.stderr.String(), "the audit log": string(text), "spans": c.raw.String(), "metrics": string(metrics)} {
		mustNotTell(t, what, all, secrets)
	}
}

func mustNotTell(t testing.TB, what, text string, secrets []string) {
	t.Helper()
	for _, secret := range secrets {
		if strings.Contains(text, secret) || strings.Contains(text, secret[:len(secret)/2+8]) {
			t.Errorf("%s holds %q:\n%.2000s", what, secret, text)
		}
	}
}
