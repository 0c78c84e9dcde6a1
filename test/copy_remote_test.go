package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRemoteVerbs: of an image of a server the verbs print what they print of its
// file.
func TestRemoteVerbs(t *testing.T) {
	t.Parallel()
	s := serve(t, served)
	for _, name := range []string{"v3", "three-layers", "zstd", "extended-64k", "data-file", "snapshots", "bitmaps", "raw-odd", "aes"} {
		t.Run(name, func(t *testing.T) { verbsAgree(t, s, kindNamed(t, name)) })
	}
	refusedVerbs(t, s)
}

func verbsAgree(t *testing.T, s *server, k *kind) {
	for _, output := range []string{"json", "human"} {
		local, errs, code := verb(t, served, "map", "--output", output, k.file)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		remote, errs, code := verb(t, served, "map", "--output", output, s.url+"/"+k.file)
		if code != 0 || errs != "" {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		if diff := cmp.Diff(local, remote); diff != "" && !strings.Contains(k.file, "data") {
			t.Errorf("the map by the server differs (-file +server):\n%.2000s", diff)
		}
	}
	url := s.url + "/v1/images/" + k.file
	local, _, _ := verb(t, served, "info", "--output", "json", k.file)
	remote, errs, code := verb(t, served, "info", "--output", "json", url)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	var a, b map[string]any
	unmarshal(t, local, &a)
	unmarshal(t, remote, &b)
	if b["filename"] != url {
		t.Errorf("filename is %v", b["filename"])
	}
	for _, m := range []map[string]any{a, b} {
		delete(m, "filename")
		delete(m, "full-backing-filename") // it is the server's to say where that is
		if q, ok := m["format-specific"].(map[string]any); ok && q["data"].(map[string]any)["data-file"] != nil {
			delete(m, "actual-size") // with the data file, by the server
		}
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("info by the server differs (-file +server):\n%s", diff)
	}
	if human, errs, code := verb(t, served, "info", url); code != 0 || !strings.HasPrefix(human, "image: "+url+"\nfile format: ") {
		t.Errorf("exit code %d\n%s%s", code, human, errs)
	}
}

// refusedVerbs are command lines that make no sense.
func refusedVerbs(t *testing.T, s *server) {
	for _, test := range [][]string{
		{"map", "--format", "raw", s.url + "/x.raw"},
		{"info", "--config", "x", s.url + "/x.raw"},
		{"map", s.url + "/missing.raw"},
		{"info", s.url},
		{"ls", "served"},
		{"ls", "http://user:hidden@" + strings.TrimPrefix(s.url, "http://")},
		{"ls", s.url + "?token=hidden"},
		{"ls", "--output", "xml", s.url},
	} {
		if out, errs, code := verb(t, served, test...); code != 1 || out != "" || strings.Count(errs, "\n") != 1 || strings.Contains(errs, "hidden") {
			t.Errorf("%v: exit code %d\n%s%s", test, code, out, errs)
		}
	}
}

func TestLs(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "ls")
	for i := range 105 { // more than a page
		m.raw(fmt.Sprintf("-%03d.raw", i), mib)
	}
	broken := m.raw("-broken.qcow2", 20)
	s := serve(t, m.dir, "--read-only")
	out, errs, code := verb(t, m.dir, "ls", s.url)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 107 || strings.Join(strings.Fields(lines[1]), " ") != "ls-000.raw raw 1 MiB 0 B read-only" {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if !strings.HasPrefix(lines[106], broken) || !strings.Contains(lines[106], "corrupt") {
		t.Errorf("%s", lines[106])
	}
	out, _, code = verb(t, m.dir, "ls", "--output", "json", s.url+"/")
	var all []image
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 || len(all) != 106 || all[0].Name != "ls-000.raw" || all[105].Problem == nil {
		t.Errorf("exit code %d, %v, %d images", code, err, len(all))
	}
	out, _, code = verb(t, m.dir, "ls", s.url+"/v1/images/ls-007.raw")
	if code != 0 || strings.Count(out, "\n") != 2 || !strings.Contains(out, "ls-007.raw") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	empty := serve(t, t.TempDir())
	if out, _, code := verb(t, m.dir, "ls", "--output", "json", empty.url); code != 0 || out != "[]\n" {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// TestCopySecrets: with a token, a token file, and tickets; none of them is ever
// printed, and what they do not allow fails at once.
func TestCopySecrets(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "secret")
	m.run("mkdir", "served")
	from := m.raw("-from.raw", 3*mib)
	m.io(from, m.write(0, 2*mib))
	m.run("cp", from, "served/a.raw")
	tokens := newTokenFile(t, `
tokens:
  - {token all, grants: [{verbs: [map, read, write, create, admin], images: ["*"]}]}
  - {token reader, grants: [{verbs: [map, read], images: ["a.raw"]}]}
`)
	s := serve(t, m.path("served"), "--tokens", tokens.path)
	must(t, os.WriteFile(m.path("all"), []byte(secretOf("all")+"\n"), 0o600))
	ticket := mintTicket(t, s, `{"image": "a.raw", "verbs": ["map", "read"], "ttl": "10m"}`)
	never := []string{secretOf("all"), secretOf("reader"), ticket}
	run := func(code int, token string, args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = m.dir
		cmd.Env = append(os.Environ(), "EXTENTD_TOKEN="+token)
		out, err := cmd.CombinedOutput()
		if exitCode(err) != code {
			t.Errorf("%v: %v, want exit code %d\n%s", args, err, code, out)
		}
		for _, secret := range never {
			if strings.Contains(string(out), secret) {
				t.Errorf("%v: a secret is printed:\n%s", args, out)
			}
		}
		return string(out)
	}
	run(0, "", "copy", "--progress", "--token-file", "all", from, s.url+"/b.qcow2")
	run(0, secretOf("all"), "copy", "--verify", s.url+"/b.qcow2", "c.raw")
	m.same(from, "c.raw")
	run(0, "", "copy", "--output", "json", "--progress", s.url+"/a.raw?ticket="+ticket, "d.raw")
	m.same(from, "d.raw")
	run(0, "", "copy", "--ticket", ticket, s.url+"/a.raw", "e.qcow2")
	run(0, secretOf("reader"), "map", s.url+"/a.raw")
	run(0, "", "info", s.url+"/a.raw?ticket="+ticket)
	if out := run(0, secretOf("reader"), "ls", s.url); strings.Contains(out, "b.qcow2") || !strings.Contains(out, "a.raw") {
		t.Errorf("a reader of a.raw sees\n%s", out)
	}
	for _, c := range []struct {
		token, want string
		args        []string
	}{
		{"", "401", []string{"copy", s.url + "/a.raw", "x.raw"}},
		{"wrong", "401", []string{"copy", s.url + "/a.raw", "x.raw"}},
		{"", "40", []string{"copy", s.url + "/b.qcow2?ticket=" + ticket, "x.raw"}},
		{"", "401", []string{"copy", s.url + "/a.raw?ticket=" + ticket + "x", "x.raw"}},
		{"", "40", []string{"copy", "--force", from, s.url + "/a.raw?ticket=" + ticket}},
		{secretOf("reader"), "40", []string{"copy", from, s.url + "/new.raw"}},
		{"", "no others", []string{"copy", "--force", from, s.url + "/a.raw?ticket=" + ticket + "&x=y"}},
		{"", "a user", []string{"copy", "--force", from, "http://user:" + ticket + "@127.0.0.1:1/a.raw"}},
		{"", "no such", []string{"copy", "--token-file", "missing", s.url + "/a.raw", "x.raw"}},
	} {
		out := run(1, c.token, c.args...)
		if !strings.Contains(out, c.want) {
			t.Errorf("%v: %s, want %s", c.args, out, c.want)
		}
	}
	if log := s.stderr.String(); strings.Contains(log, ticket) || strings.Contains(log, secretOf("all")) {
		t.Errorf("the server's log:\n%s", log)
	}
}

// mintTicket asks for a ticket, as who may do everything.
func mintTicket(t testing.TB, s *server, body string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+"/v1/tickets", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secretOf("all"))
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Ticket string `json:"ticket"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusCreated || got.Ticket == "" {
		t.Fatalf("%s: %v, %+v", resp.Status, err, got)
	}
	return got.Ticket
}
