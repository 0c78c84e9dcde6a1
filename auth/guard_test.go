package auth_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/auth"
)

func TestToken(t *testing.T) {
	var log journal
	g := start(t, auth.Options{Logger: log.logger(), File: write(t, "tokens:\n"+
		token("backup", "the-backup-token", "map, read", `"*.qcow2", vm-1.raw`)+
		token("admin", "the-admin-token", "map, read, write, create, admin", `"*"`))})

	c := bearer(t, g, "the-backup-token")
	if c.Kind != auth.KindToken || c.Name != "backup" || !c.Expires.IsZero() || c.String() != "token:backup" {
		t.Errorf("caller %v, %+v", c, *c)
	}
	for _, want := range []struct {
		image string
		verbs auth.Verbs
	}{{"a.qcow2", auth.Map | auth.Read}, {"vm-1.raw", auth.Map | auth.Read}, {"vm-2.raw", 0}} {
		if got := c.Grants.Verbs(want.image); got != want.verbs {
			t.Errorf("%s: %v, want %v", want.image, got, want.verbs)
		}
	}
	if c := bearer(t, g, "the-admin-token"); !c.May(auth.All, "any") {
		t.Error("the second token may not do everything")
	}

	refused(t, g, "the-backup-tokem", "the token is not known")
	refused(t, g, "the-backup-token ", "the token is not known")
	refused(t, g, hash("the-backup-token"), "the token is not known")
	refused(t, g, "", "nothing was presented")
	refused(t, g, strings.Repeat("x", auth.MaxSecret+1), "longer than any token")
	refused(t, g, "a.b.c", "no issuer")
	refused(t, g, "extentd_ticket_1_AAAA.AAAA", "not of this server")
	if got := g.Failures(); got != 7 {
		t.Errorf("%d failures, want 7", got)
	}
	if strings.Contains(log.String(), "the-") {
		t.Errorf("the log holds a secret:\n%s", &log)
	}
}

func TestNewRefuses(t *testing.T) {
	good := write(t, "tokens: []")
	cases := []struct {
		name string
		opt  auth.Options
		want string
	}{
		{"no file", auth.Options{File: filepath.Join(t.TempDir(), "none")}, "no such file"},
		{"a directory", auth.Options{File: t.TempDir()}, "is no regular file"},
		{"a bad file", auth.Options{File: write(t, "tokens: [1, 2]")}, "tokens[1]: must be a mapping"},
		{"issuer without file", auth.Options{Issuer: "https://id.example", Audience: "x"}, "needs a token file"},
		{"issuer without audience", auth.Options{File: good, Issuer: "https://id.example"}, "an audience is required"},
		{"issuer over http", auth.Options{File: good, Issuer: "http://id.example", Audience: "x"}, "must be https"},
		{"issuer with password", auth.Options{File: good, Issuer: "https://a:hidden@id.example", Audience: "x"}, "without user"},
		{"no url", auth.Options{File: good, Issuer: "id.example", Audience: "x"}, "must be a URL"},
		{"no authorities", auth.Options{File: good, Issuer: "https://id.example", Audience: "x", IssuerCA: good}, "has no certificate"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g, err := auth.New(t.Context(), c.opt)
			if err == nil {
				_ = g.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("error %q, want %q", err, c.want)
			}
		})
	}
}

func TestReload(t *testing.T) {
	var log journal
	one, two := "tokens:\n"+token("one", "first", "map", "a"), "tokens:\n"+token("two", "second", "map", "a")
	path := write(t, one)
	g := start(t, auth.Options{File: path, Logger: log.logger()})
	knows := func(secret string) bool {
		_, err := g.Bearer(t.Context(), netip.Addr{}, secret)
		var slow *auth.SlowDownError
		if err != nil && !errors.Is(err, auth.ErrUnauthenticated) && !errors.As(err, &slow) {
			t.Fatal(err)
		}
		return err == nil
	}
	swap := func(what string, change func()) {
		t.Helper()
		was, becomes := "first", "second"
		if knows("second") {
			was, becomes = becomes, was
		}
		change()
		eventually(t, what, func() bool { return !knows(was) })
		eventually(t, what, func() bool { return knows(becomes) })
	}
	swap("rename", func() { rewrite(t, path, two) })
	swap("in place", func() {
		if err := os.WriteFile(path, []byte(one), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	swap("same size and time", func() {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, two)
		if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
			t.Fatal(err)
		}
	})

	before := len(log.String())
	rewrite(t, path, "tokens: [oops]")
	eventually(t, "log of the broken file", func() bool { return strings.Contains(log.String(), "tokens[0]: must be a mapping") })
	if !knows("second") {
		t.Error("a broken file takes grants away")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "log of the missing file", func() bool { return strings.Contains(log.String(), "no such file") })
	if !knows("second") {
		t.Error("a missing file takes grants away")
	}
	swap("back again", func() { rewrite(t, path, one) })
	time.Sleep(50 * time.Millisecond) // ten looks
	if got := strings.Count(log.String()[before:], `"level":"ERROR"`); got != 2 {
		t.Errorf("%d errors in the log, want one for each change:\n%s", got, &log)
	}
}

// A secret volume of Kubernetes is a directory whose files are links through a link
// that is replaced.
func TestReloadOfSecretVolume(t *testing.T) {
	dir := t.TempDir()
	put := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "tokens.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("..1", "tokens:\n"+token("one", "first", "map", "a"))
	path := filepath.Join(dir, "tokens.yaml")
	if err := os.Symlink("..data/tokens.yaml", path); err != nil {
		t.Fatal(err)
	}
	g := start(t, auth.Options{File: path})
	bearer(t, g, "first")
	put("..2", "tokens:\n"+token("two", "second", "map", "a"))
	eventually(t, "the new file", func() bool {
		_, err := g.Bearer(t.Context(), here, "first")
		return err != nil
	})
	bearer(t, g, "second")
}

func TestFileThatEverybodyReads(t *testing.T) {
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true} {
		var log journal
		path := write(t, "tokens: []")
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		start(t, auth.Options{File: path, Logger: log.logger()})
		if got := strings.Contains(log.String(), "can be read by everybody"); got != want {
			t.Errorf("%v: warning %t, want %t", mode, got, want)
		}
	}
}

// A file that has not changed for long is not read again, and still is when it does.
func TestReloadOfSettledFile(t *testing.T) {
	one, two := "tokens:\n"+token("one", "first", "map", "a"), "tokens:\n"+token("two", "secnd", "map", "a")
	path := write(t, one)
	g := start(t, auth.Options{File: path})
	time.Sleep(2200 * time.Millisecond)
	bearer(t, g, "first")
	if err := os.WriteFile(path, []byte(two), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new content", func() bool {
		_, err := g.Bearer(t.Context(), here, "first")
		return err != nil
	})
	bearer(t, g, "secnd")
}
