package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// seed drives every random choice of the tests. Each one derives its own
// source from it and its name, so that a failure of one can be repeated alone.
var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the random choices")

// Made by TestMain for all tests.
var (
	program string // the binary under test
	racy    string // the same with the race detector, if the tests have it
	scratch string // removed at the end
	served  string // the directory of the images of kinds_test.go
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	for tool, line := range map[string]string{
		"qemu-img": "apt-get install qemu-utils",
		"qemu-io":  "apt-get install qemu-utils",
		"qemu-nbd": "apt-get install qemu-utils",
		"curl":     "apt-get install curl",
		"nginx":    "apt-get install nginx-light",
		"nbdinfo":  "apt-get install libnbd-bin",
		"nbdcopy":  "apt-get install libnbd-bin",
		"fio":      "apt-get install fio",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "%s is missing: %s\n", tool, line)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "extentd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	scratch, served, program = dir, filepath.Join(dir, "served"), filepath.Join(dir, "extentd")
	if err := os.Mkdir(served, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := buildProgram(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("random choices: -seed %d\n", *seed)
	return m.Run()
}

// buildProgram builds the binary as it is released, or takes the one that
// EXTENTD_BINARY names.
func buildProgram() error {
	if built := os.Getenv("EXTENTD_BINARY"); built != "" {
		program, racy = built, built
		return nil
	}
	racy = program
	if detector {
		racy += "-race"
		if err := goBuild("CGO_ENABLED=1", "-race", "-o", racy, ".."); err != nil {
			return err
		}
	}
	return goBuild("CGO_ENABLED=0", "-o", program, "..")
}

func goBuild(env string, args ...string) error {
	build := exec.Command("go", append([]string{"build"}, args...)...)
	build.Env = append(os.Environ(), env)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}
