package sdk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const contract = `openapi: 3.0.3
info: {title: t, version: "1"}
paths:
  /things:
    get:
      operationId: listThings
      parameters:
        - {name: limit, in: query, schema: {type: integer, maximum: 1000}}
      responses:
        "200":
          description: Things.
          content:
            application/json:
              schema:
                type: object
                required: [things]
                properties: {things: {type: array, items: {type: string}}, next: {type: string}}
`

// A history is a repository with the script and the list of intended breaks.
type history struct {
	t   *testing.T
	dir string
}

func newHistory(t *testing.T) history {
	h := history{t, t.TempDir()}
	h.git("init", "--quiet")
	h.write("tools/apilint/intended-breaks.txt", "# none\n")
	h.commit("begin")
	return h
}

func (h history) git(args ...string) {
	h.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"}, args...)...)
	cmd.Dir = h.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func (h history) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h history) commit(message string) {
	h.t.Helper()
	h.git("add", "--all")
	h.git("commit", "--quiet", "--allow-empty", "--message", message)
}

// check runs the script.
func (h history) check() (string, bool) {
	h.t.Helper()
	var paths [2]string
	for i, path := range []string{"../../scripts/api-breaking", "../../.bin/oasdiff"} {
		abs, err := filepath.Abs(path)
		if err != nil {
			h.t.Fatal(err)
		}
		paths[i] = abs
	}
	cmd := exec.Command(paths[0], paths[1])
	cmd.Dir = h.dir
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

func (h history) want(ok bool, says string) {
	h.t.Helper()
	if out, got := h.check(); got != ok || !strings.Contains(out, says) {
		h.t.Errorf("ok %v, want %v and %q:\n%s", got, ok, says, out)
	}
}

var (
	additive = strings.Replace(contract, "next: {type: string}", "next: {type: string}, more: {type: string}", 1)
	breaking = strings.Replace(contract, "things: {type: array, items: {type: string}}, ", "", 1)
	stricter = strings.Replace(contract, "maximum: 1000", "maximum: 10", 1)
)

// Without a release, the contract is compared with what it was before its newest
// change, committed or not; with one, with that of the release.
func TestBreakingChangesAreFound(t *testing.T) {
	h := newHistory(t)
	h.write("openapi.yaml", contract)
	h.commit("the contract")
	h.want(true, "is new")

	h.write("openapi.yaml", additive)
	h.commit("more")
	h.want(true, "beside")
	h.write("openapi.yaml", breaking)
	h.want(false, "things")
	h.commit("less")
	h.write("other", "")
	h.commit("something else")
	h.want(false, "things")
	h.write("openapi.yaml", breaking+"x-nothing: true\n")
	h.commit("after the break, without a release")
	h.want(true, "beside")

	h.git("tag", "v1.0.0")
	h.write("openapi.yaml", breaking)
	h.commit("nothing")
	h.write("openapi.yaml", strings.Replace(breaking, "maximum: 1000", "maximum: 10", 1))
	h.commit("stricter")
	h.write("openapi.yaml", strings.Replace(breaking, "maximum: 1000", "maximum: 10", 1)+"x-nothing: true\n")
	h.commit("later, and still of the release after v1.0.0")
	h.want(false, "limit")
}

// What is listed, with a reason, is meant; anything beside it is not.
func TestIntendedBreaks(t *testing.T) {
	h := newHistory(t)
	h.write("openapi.yaml", contract)
	h.commit("the contract")
	h.write("openapi.yaml", stricter)
	h.commit("stricter")
	out, ok := h.check()
	_, change, found := strings.Cut(out, "in API ")
	if ok || !found {
		t.Fatalf("ok %v:\n%s", ok, out)
	}
	change, _, _ = strings.Cut(change, " [")
	h.write("tools/apilint/intended-breaks.txt", "- "+change+": nobody asks for more\n")
	h.want(true, "beside")
	h.write("openapi.yaml", strings.Replace(breaking, "maximum: 1000", "maximum: 10", 1))
	h.want(false, "things")
}

// A clone without the history says which line gets it.
func TestBreakingChangesNeedTheHistory(t *testing.T) {
	h := newHistory(t)
	h.write("openapi.yaml", contract)
	h.commit("the contract")
	h.write("openapi.yaml", additive)
	h.commit("more")
	shallow := history{t, filepath.Join(t.TempDir(), "clone")}
	h.git("clone", "--quiet", "--depth", "1", "file://"+h.dir, shallow.dir)
	shallow.want(false, "git fetch --unshallow --tags")
}
