package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An exported disk is what a client of KubeVirt's pull mode copies.
type exported struct {
	s     *server
	disk  string // with its bitmap, if there is one
	token string
}

// An exportedExtent is one of a page.
type exportedExtent struct {
	Offset, Length int64
	Type           int
	Description    string
}

// extents follows the pages as clients do.
func (e *exported) extents(t testing.TB, page int) (all []exportedExtent, size int64) {
	t.Helper()
	for offset := int64(0); ; {
		var p struct {
			Extents     []exportedExtent
			NextOffset  *int64 `json:"next_offset"`
			VirtualSize int64  `json:"virtual_size"`
		}
		path := fmt.Sprintf("/exports/%s/map?offset=%d&page_size=%d", e.disk, offset, page)
		_, body := e.s.expect(t, http.StatusOK, path, "x-kubevirt-export-token", e.token)
		must(t, json.Unmarshal(body, &p))
		all = append(all, p.Extents...)
		if p.NextOffset == nil {
			return all, p.VirtualSize
		}
		offset = *p.NextOffset
	}
}

// pull brings a copy up to date: what is data or dirty is read, and what is dirty and
// zero is zeroed.
func (e *exported) pull(t testing.TB, into []byte) (read int64) {
	t.Helper()
	extents, size := e.extents(t, 3)
	at := int64(0)
	for _, x := range extents {
		if x.Offset != at || size != int64(len(into)) {
			t.Fatalf("%+v after %d, of %d", x, at, size)
		}
		at += x.Length
		part := into[x.Offset : x.Offset+x.Length]
		switch x.Description {
		case "data", "dirty":
			header, body := e.s.expect(t, http.StatusOK, fmt.Sprintf("/exports/%s/data?offset=%d&length=%d", e.disk, x.Offset, x.Length), "x-kubevirt-export-token", e.token)
			if header.Get("Content-Length") != fmt.Sprint(x.Length) || copy(part, body) != len(body) {
				t.Fatalf("%+v: %v", x, header)
			}
			read += x.Length
		case "hole,zero", "dirty,zero":
			clear(part)
		case "zero", "clean":
			if !slices.ContainsFunc(extents, func(x exportedExtent) bool { return strings.Contains(x.Description, "dirty") }) {
				clear(part)
			}
		default:
			t.Fatalf("%+v", x)
		}
	}
	if at != size {
		t.Fatalf("the map ends at %d of %d", at, size)
	}
	return read
}

// TestKubevirtPull: a full backup and an incremental one of a disk as KubeVirt lays
// it, a thin overlay with a bitmap beside the raw disk, while QEMU writes in between.
func TestKubevirtPull(t *testing.T) {
	t.Parallel()
	d := newThin(t, "pull", nameNowhere, "data_file_raw=on")
	d.qemuWrites(20)
	bitmap := []string{"bitmap", "--add", "--enable", "--image-opts", d.options()}
	d.m.run("qemu-img", append(bitmap, "backup-1")...)
	tokens := newTokenFile(t, "tokens:\n- {token backup, grants: [{verbs: [map, read], images: [disk]}]}\n")
	s := serve(t, t.TempDir(), append(d.flag(), "--dialect", "kubevirt", "--tokens", tokens.path)...)
	full := &exported{s, "disk", secretOf("backup")}
	got := make([]byte, thinSize)
	full.pull(t, got)
	if !bytes.Equal(got, d.model) {
		t.Fatal("the full backup differs")
	}
	d.closed(t, s)
	d.qemuWrites(3)
	incremental := &exported{s, "disk@backup-1", secretOf("backup")}
	if read := incremental.pull(t, got); !bytes.Equal(got, d.model) || read > thinSize/2 {
		t.Fatalf("the incremental backup differs, or read %d bytes", read)
	}
	for _, page := range []int{1, 2, 512} {
		all, _ := incremental.extents(t, 1<<20)
		if paged, _ := incremental.extents(t, page); !slices.Equal(all, paged) {
			t.Errorf("pages of %d: %v, want %v", page, paged, all)
		}
	}
	s.expect(t, http.StatusUnauthorized, "/exports/disk/map")
	s.expect(t, http.StatusNotFound, "/exports/other/map", "x-kubevirt-export-token", secretOf("backup"))
}

// TestDialectsTellNoSecrets: what is in a path or a query is in no log, trace,
// metric or record, and the record says whose it was.
func TestDialectsTellNoSecrets(t *testing.T) {
	t.Parallel()
	dir, logs := t.TempDir(), t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.raw(".raw", mib)
	auditTokens(t, filepath.Join(logs, "tokens"), map[string]string{"writer": `{verbs: [map, read, write, create, admin], images: ["*"]}`})
	c := newCollector(t)
	path := filepath.Join(logs, "audit")
	s := serveWith(t, dir, c.env(), "--audit-log", path, "--tokens", filepath.Join(logs, "tokens"), "--log-level", "debug", "--dialect", "imageio", "--dialect", "kubevirt")
	writer := authorized("writer")
	a, err := s.sendJSON("POST", "/v1/tickets", object{"image": file, "verbs": []string{"read", "write"}}, writer...)
	must(t, accepted("POST /v1/tickets", a, err, http.StatusCreated))
	var ticket struct{ ID, Ticket string }
	must(t, json.Unmarshal(a.body, &ticket))
	secrets := []string{longSecret("writer"), ticket.Ticket, "not-even-a-ticket-or-a-token", "a-Body-That-Is-Secret"}
	one, body := "/images/"+ticket.Ticket, []byte("a-Body-That-Is-Secret")
	for _, r := range []struct {
		status       int
		method, path string
		body         []byte
		headers      []string
	}{
		{200, "OPTIONS", one, nil, nil},
		{206, "GET", one, nil, []string{"Range", "bytes=0-4"}},
		{200, "PUT", one, body, nil},
		{416, "PUT", one, body, []string{"Content-Range", "bytes 9999999-*/*"}},
		{200, "PATCH", one, []byte(`{"op":"zero","offset":512,"size":1024}`), nil},
		{200, "GET", one + "/extents", nil, nil},
		{404, "GET", one + "/extents?context=dirty", nil, nil},
		{405, "DELETE", one, nil, nil},
		{404, "POST", one + "/nothing", nil, nil},
		{404, "PUT", "/v1" + one + "/nothing", body, nil},
		{403, "PUT", "/images/not-even-a-ticket-or-a-token", body, nil},
		{403, "GET", "/images/" + longSecret("writer"), nil, nil},
		{405, "DELETE", "/images/" + longSecret("writer"), nil, nil},
		{200, "GET", "/exports/" + file + "/data?x-kubevirt-export-token=" + longSecret("writer"), nil, nil},
		{401, "GET", "/exports/" + file + "/map?x-kubevirt-export-token=not-even-a-ticket-or-a-token", nil, nil},
		{405, "PUT", "/exports/" + file + "/map?x-kubevirt-export-token=" + ticket.Ticket, body, nil},
	} {
		a, err := s.send(r.method, r.path, r.body, r.headers...)
		must(t, accepted(r.method+" "+r.path, a, err, r.status))
		if r.status >= 400 {
			mustNotTell(t, r.method+" "+r.path, string(a.body)+fmt.Sprint(a.header), secrets)
		}
	}
	_, metrics := s.expect(t, http.StatusOK, "/metrics", writer...)
	s.stop()
	records := readAudit(t, path)
	var told []string
	for _, r := range records[1:] {
		told = append(told, fmt.Sprintf("%s %s %q %q %d", r.Method, r.Route, r.Image, r.Caller.Ticket, r.Status))
	}
	want := []string{
		fmt.Sprintf("PUT /images/{ticket} %q %q 200", file, ticket.ID),
		fmt.Sprintf("PUT /images/{ticket} %q %q 416", file, ticket.ID),
		fmt.Sprintf("PATCH /images/{ticket} %q %q 200", file, ticket.ID),
		`DELETE  "" "" 405`, `POST  "" "" 404`, `PUT  "" "" 404`, `PUT /images/{ticket} "" "" 403`, `DELETE  "" "" 405`, `PUT  "" "" 405`,
	}
	if !slices.Equal(told, want) {
		t.Errorf("the audit:\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	if c := records[3].Change; c == nil || c.Offset == nil || *c.Offset != 512 || *c.Length != 1024 {
		t.Errorf("the change of a PATCH: %+v", c)
	}
	text, err := os.ReadFile(path)
	must(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, all := range map[string]string{"the log": s.stderr.String(), "the audit log": string(text), "spans": c.raw.String(), "metrics": string(metrics)} {
		mustNotTell(t, what, all, secrets)
	}
}

// TestDialectFlag: what is not a dialect is refused, and what was not asked for is
// not spoken.
func TestDialectFlag(t *testing.T) {
	t.Parallel()
	if _, stderr, code := verb(t, t.TempDir(), "serve", "--dialect", "klingon"); code == 0 || !strings.Contains(stderr, "must be imageio or kubevirt") {
		t.Errorf("%d: %s", code, stderr)
	}
	t.Run("environment", func(t *testing.T) {
		s := serveWith(t, t.TempDir(), []string{"EXTENTD_DIALECT=kubevirt"})
		s.expect(t, http.StatusOK, "/kubevirt/openapi.yaml")
		s.expectProblem(t, http.StatusNotFound, "not-found", "/imageio/openapi.yaml")
		s.expectProblem(t, http.StatusNotFound, "not-found", "/images/x")
	})
	t.Run("file", func(t *testing.T) {
		config := filepath.Join(t.TempDir(), "extentd.yaml")
		must(t, os.WriteFile(config, []byte("dialect: [imageio, kubevirt, imageio]\n"), 0o600))
		s := serve(t, t.TempDir(), "--config", config)
		s.expect(t, http.StatusOK, "/kubevirt/openapi.yaml")
		s.expect(t, http.StatusOK, "/imageio/openapi.yaml")
	})
}
