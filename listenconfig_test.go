package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListenConfig: what is incomplete or unsafe is refused before anything is
// bound.
func TestListenConfig(t *testing.T) {
	t.Chdir(t.TempDir())
	cert := []string{"--tls-cert", "c.pem", "--tls-key", "k.pem"}
	nbdCert := []string{"--nbd-tls-cert", "c.pem", "--nbd-tls-key", "k.pem"}
	with := func(before []string, more ...string) []string {
		return append(append([]string(nil), before...), more...)
	}
	for _, test := range []struct {
		want string // in the error; "" for none
		args []string
	}{
		{"", []string{"--listen", "127.0.0.1:0"}},
		{"", []string{"--listen", "[::1]:0"}},
		{"", []string{"--listen", "unix:/run/x"}},
		{"--insecure", []string{"--listen", ":0"}},
		{"", []string{"--listen", ":0", "--insecure"}},
		{"--insecure", with(cert, "--listen", ":0")}, // nobody says who they are
		{"", with(cert, "--listen", ":0", "--tls-client-ca", "a.pem")},
		{"", []string{"--listen", ":0", "--tokens", "t.yaml"}},
		{"HOST:PORT", []string{"--listen", "unix:"}},
		{"must be a path", []string{"--listen", "unix:@x"}},
		{"HOST:PORT", []string{"--listen", "7080"}},
		{"admin-listen", []string{"--admin-listen", "7081"}},
		{"", []string{"--admin-listen", ":0"}},
		{"", []string{"--admin-listen", "unix:/run/x"}},

		{"tls-cert needs tls-key", []string{"--tls-cert", "c.pem"}},
		{"tls-key needs tls-cert", []string{"--tls-key", "k.pem"}},
		{"tls-client-ca needs tls-cert", []string{"--tls-client-ca", "a.pem"}},
		{"nbd-tls-cert needs nbd-tls-key", []string{"--nbd-tls-cert", "c.pem"}},
		{"nbd-tls-client-ca needs nbd-tls-cert", []string{"--nbd-tls-client-ca", "a.pem"}},

		{"", []string{"--nbd", "127.0.0.1:0", "--nbd", "unix:/run/n"}},
		{"--insecure", []string{"--nbd", ":0"}},
		{"must be a path", []string{"--nbd", "unix:@n"}},
		{"--nbd-tls-client-ca", []string{"--nbd", "127.0.0.1:0", "--tokens", "t.yaml"}},
		{"--nbd-tls-client-ca", with(cert, "--tls-client-ca", "a.pem", "--nbd", "127.0.0.1:0")},
		{"--nbd-tls-client-ca", with(nbdCert, "--tokens", "t.yaml", "--nbd", "127.0.0.1:0")},
		{"", with(nbdCert, "--tokens", "t.yaml", "--nbd", ":0", "--nbd-tls-client-ca", "a.pem")},
		{"", []string{"--nbd", "unix:/run/n", "--tokens", "t.yaml"}},
		{"", []string{"--nbd", "127.0.0.1:0", "--tokens", "t.yaml", "--insecure"}},

		{"drain-delay", []string{"--drain-delay", "-1s"}},
		{"grace", []string{"--grace", "-1s"}},
		{"", []string{"--grace", "0s", "--drain-delay", "1m"}},
		{"socket-mode", []string{"--socket-mode", "rw"}},
		{"socket-mode", []string{"--socket-mode", "660"}},
		{"socket-mode", []string{"--socket-mode", "01777"}},
		{"socket-mode", []string{"--socket-mode", "0888"}},
		{"", []string{"--socket-mode", "0600"}},
	} {
		_, err := configure(t, append(test.args, ".")...)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
}

// TestSocketModeInFile: YAML has its own ideas of numbers. Only what is quoted is
// taken as it stands, and nothing is taken for another mode.
func TestSocketModeInFile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]fs.FileMode{`"0600"`: 0o600, `'0666'`: 0o666, "0660": 0, "660": 0, "0o660": 0, "432": 0} {
		path := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(path, []byte("dir: .\nsocket-mode: "+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := configure(t, "--config", path)
		if want == 0 {
			if err == nil || !strings.Contains(err.Error(), "quoted") {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if mode, e := c.TLS.socketMode(); err != nil || e != nil || mode != want {
			t.Errorf("%s: %v, want %v: %v, %v", text, mode, want, err, e)
		}
	}
}
