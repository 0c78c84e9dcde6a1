// Package sdk tests what others make of openapi.yaml: the TypeScript and Python
// clients that are generated from it, against the built binary; that the pages
// about them show what has been run; and that the checks of openapi.yaml find
// what they are for.
package sdk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the binary under test.
var program string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	for _, made := range []string{
		"sdk/typescript/dist/main.js", "sdk/python/extentd_client/py.typed", "sdk/python/venv/bin/python",
		"apilint/node_modules/.bin/spectral", "oasdiff",
	} {
		if _, err := os.Stat(filepath.Join("../../.bin", made)); err != nil {
			fmt.Fprintf(os.Stderr, "%s is missing: make sdk api-lint\n", made)
			return 1
		}
	}
	if program = os.Getenv("EXTENTD_BINARY"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "extentd-sdk-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "extentd")
	build := exec.Command("go", "build", "-o", program, "../..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
