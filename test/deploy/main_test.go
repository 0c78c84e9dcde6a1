package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the binary that the manifests are for. Made by TestMain, or named by
// EXTENTD_BINARY.
var program = os.Getenv("EXTENTD_BINARY")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		fmt.Fprintln(os.Stderr, "qemu-img is missing: apt-get install qemu-utils")
		return 1
	}
	if program == "" {
		dir, err := os.MkdirTemp("", "extentd-deploy-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "extentd")
		// With the flags of the released one, so that it is built once.
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
		build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s\n", err, out)
			return 1
		}
	}
	return m.Run()
}
