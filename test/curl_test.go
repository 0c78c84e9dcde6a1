package test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An answer is what curl got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// curl asks with the real tool: arguments are curl's, but for the path.
func curl(t *testing.T, s *server, path string, args ...string) answer {
	t.Helper()
	a, code, errs := tryCurl(t, s, path, args...)
	if code != 0 {
		t.Fatalf("curl %v %s: exit code %d: %s", args, path, code, errs)
	}
	return a
}

// tryCurl allows for failure, and returns curl's exit code.
func tryCurl(t *testing.T, s *server, path string, args ...string) (answer, int, string) {
	t.Helper()
	dir := t.TempDir()
	head, body := filepath.Join(dir, "head"), filepath.Join(dir, "body")
	args = append([]string{"-sS", "--max-time", "60", "--path-as-is", "-D", head, "-o", body, "-w", "%{http_code}"}, args...)
	cmd := exec.Command("curl", append(args, s.url+path)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var a answer
	_, _ = fmt.Sscan(string(out), &a.status)
	if !slices.Contains(args, "--head") { // curl puts the header there then
		a.body, _ = os.ReadFile(body) // none for an empty one
	}
	a.header = lastHeader(t, head)
	return a, code, errs.String()
}

// lastHeader parses the header of the last response, after interim ones.
func lastHeader(t *testing.T, path string) http.Header {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := bytes.Split(bytes.TrimSpace(text), []byte("\r\n\r\n"))
	_, fields, _ := bytes.Cut(blocks[len(blocks)-1], []byte("\r\n"))
	header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(fields, "\r\n\r\n"...)))).ReadMIMEHeader()
	if err != nil && len(fields) > 0 {
		t.Fatalf("%v\n%s", err, text)
	}
	return http.Header(header)
}
