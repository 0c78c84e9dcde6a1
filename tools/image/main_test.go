package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Made by TestMain for all tests.
var (
	binaries []Binary
	built    v1.ImageIndex
)

const (
	source  = "../.." // the module whose image it is
	version = "v0.0.0-test"
)

// date is that of every file in the image under test.
var date = time.Unix(1_700_000_000, 0).UTC()

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == confined {
		fmt.Fprintln(os.Stderr, confine(os.Args[2], os.Args[3], os.Args[4:]))
		os.Exit(1)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		fmt.Fprintln(os.Stderr, "qemu-img is missing: apt-get install qemu-utils")
		return 1
	}
	dir, err := os.MkdirTemp("", "extentd-image-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := buildIndex(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildIndex makes what is tested, for both architectures.
func buildIndex(dir string) error {
	for _, arch := range []string{"amd64", "arm64"} {
		out := filepath.Join(dir, arch)
		if err := compile(arch, out); err != nil {
			return err
		}
		binaries = append(binaries, Binary{&v1.Platform{OS: "linux", Architecture: arch}, out})
	}
	var err error
	built, err = Index(content(), binaries)
	return err
}

func compile(arch, out string) error {
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", out, ".")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build for %s: %w\n%s", arch, err, text)
	}
	return nil
}

func content() Content {
	return Content{
		License:      filepath.Join(source, "LICENSE"),
		Certificates: "/etc/ssl/certs/ca-certificates.crt",
		Version:      version,
		Created:      date,
	}
}
