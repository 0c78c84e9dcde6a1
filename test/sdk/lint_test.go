package sdk

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lint runs the linter, and returns which rules found what.
func lint(t *testing.T, spec string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "openapi.yaml")
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../../.bin/apilint/node_modules/.bin/spectral", "lint", "--quiet", "--fail-severity=hint",
		"--format=text", "--ruleset", "../../tools/apilint/ruleset.yaml", path)
	out, err := cmd.CombinedOutput()
	if (err == nil) != (len(strings.TrimSpace(string(out))) == 0) {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// The linter has nothing to say of openapi.yaml, and finds each thing that is
// wrong with one that is broken in many places.
func TestLinterFindsWhatIsWrong(t *testing.T) {
	spec := read(t, "../../openapi.yaml")
	if out := lint(t, spec); out != "" {
		t.Errorf("openapi.yaml:\n%s", out)
	}
	breaks := []struct{ rule, pattern, with string }{
		{"summary", `(operationId: listImages\n +tags: \[images\]\n) +summary: List images\n`, "$1"},
		{"operation-id-camel-case", `operationId: createImage`, "operationId: create_image"},
		{"operation-operationId", `      operationId: getLimits\n`, ""},
		{"operation-tags", `(operationId: getImage\n) +tags: \[images\]\n`, "$1"},
		{"operation-tag-defined", `(operationId: deleteImage\n +tags: )\[images\]`, "$1[pictures]"},
		{"paths-lower-case", `(?m)^  /v1/images/\{image\}/trim:`, "  /v1/images/{image}/trimData:"},
		{"members-snake-case", `read_only: \{type: boolean\}`, "readOnly: {type: boolean}"},
		{"parameters-snake-case", `- name: volunteer`, "- name: alsoMore"},
		{"oas3-parameter-description", `(- name: If-Range\n +in: header\n) +description: \|\n.*\n.*\n`, "$1"},
		{"described", `(?m)(^    BlockSizePreferred:\n) +description: .*\n`, "$1"},
		{"errors-are-problems", `(?s)(\n    NotFound:\n.*?)application/problem\+json:`, "${1}application/json:"},
		{"bad-requests-are-said", `(operationId: getHealth(?s:.*?)) +"400": .*\n`, "$1"},
		{"bodies-are-closed", `(?m)(^    TrimRange:\n +type: object\n) +additionalProperties: false\n`, "$1"},
		{"bytes-are-binary", `(application/octet-stream:\n +schema: )\{type: string, format: binary\}`, "$1{type: string}"},
		{"oas3-valid-media-example", `example: \{offset: 1048576, length: 65536\}`, "example: {offset: begin, length: 65536}"},
		{"oas3-unused-component", `(?m)^  responses:\n    OK:`, "  responses:\n    Nobody: {description: Nobody gives this.}\n    OK:"},
	}
	for _, b := range breaks {
		at := regexp.MustCompile(b.pattern).FindStringSubmatchIndex(spec)
		if at == nil {
			t.Fatalf("openapi.yaml has no %q to break", b.pattern)
		}
		with := regexp.MustCompile(b.pattern).ExpandString(nil, b.with, spec, at)
		spec = spec[:at[0]] + string(with) + spec[at[1]:]
	}
	out := lint(t, spec)
	for _, b := range breaks {
		if !strings.Contains(out, " "+b.rule+" ") {
			t.Errorf("%s was not found", b.rule)
		}
	}
	if t.Failed() {
		t.Logf("%.8000s", out)
	}
}
