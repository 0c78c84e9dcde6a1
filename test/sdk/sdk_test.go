package sdk

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An sdk is a generated client and the program that uses it.
type sdk struct {
	name    string
	dir     string // in .bin/sdk
	command []string
	trust   string // the variable that names a file of authorities
}

var sdks = []sdk{
	{"TypeScript", "typescript", []string{"node", "dist/main.js"}, "NODE_EXTRA_CA_CERTS"},
	{"Python", "python", []string{"venv/bin/python", "main.py"}, "SSL_CERT_FILE"},
}

// run runs the program against a server, with more in its environment.
func (s sdk) run(t *testing.T, url string, env ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, err := filepath.Abs(filepath.Join("../../.bin/sdk", s.dir))
	if err != nil {
		t.Fatal(err)
	}
	name := s.command[0]
	if strings.Contains(name, "/") {
		name = filepath.Join(dir, name)
	}
	cmd := exec.CommandContext(ctx, name, append(s.command[1:], url)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The programs list, map, read, write, publish, and tell problems apart.
func TestTasks(t *testing.T) {
	for _, s := range sdks {
		t.Run(s.name, func(t *testing.T) {
			out, err := s.run(t, serve(t))
			if err != nil || out != "all tasks done\n" {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// The same over TLS, with a token; and what is said without one.
func TestTasksWithTokenAndTLS(t *testing.T) {
	tokens, secret := token(t)
	cert, key := certificate(t)
	for _, s := range sdks {
		t.Run(s.name, func(t *testing.T) {
			url := serve(t, "--tokens", tokens, "--tls-cert", cert, "--tls-key", key)
			if !strings.HasPrefix(url, "https://") {
				t.Fatalf("the server is at %s", url)
			}
			out, err := s.run(t, url, s.trust+"="+cert, "EXTENTD_TOKEN="+secret)
			if err != nil || out != "all tasks done\n" {
				t.Errorf("%v\n%s", err, out)
			}
			out, err = s.run(t, url, s.trust+"="+cert)
			if err == nil || !strings.Contains(out, "Refused") || strings.Contains(out, secret) {
				t.Errorf("without a token: %v\n%s", err, out)
			}
			if out, err = s.run(t, url, "EXTENTD_TOKEN="+secret); err == nil {
				t.Errorf("with an authority that it does not know:\n%s", out)
			}
		})
	}
}
