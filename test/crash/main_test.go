package crash_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// seed drives every random choice: each test derives its own source from it.
var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the random choices")

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

func TestMain(m *testing.M) {
	flag.Parse()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "%s is missing: apt-get install qemu-utils\n", tool)
			os.Exit(1)
		}
	}
	fmt.Printf("random choices: -seed %d\n", *seed)
	goleak.VerifyTestMain(m)
}

// source returns the random source of a name: the same for the same -seed.
func source(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(*seed, h.Sum64()))
}

// soak runs a test as round 0, and then with rising numbers for a part of the
// time that SOAK says; parts is how many tests share it. Each round waits for its
// parallel subtests.
func soak(t *testing.T, parts int, do func(t *testing.T, round int)) {
	t.Helper()
	var d time.Duration
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	deadline := time.Now().Add(d / time.Duration(parts))
	for round := 0; round == 0 || time.Now().Before(deadline) && !t.Failed(); round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) { do(t, round) })
	}
}

// run runs a command in a directory and ends the test if it fails.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := try(dir, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a command in a directory. A process that another test has forked, and
// that has not become its program yet, has the locks of files that were closed
// here: then it tries again.
func try(dir string, args ...string) (string, error) {
	for attempt := 0; ; attempt++ {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err == nil || attempt == 50 || !strings.Contains(string(out), "Failed to get") {
			return string(out), err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// code is the exit code of a command that ran.
func code(err error) int {
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // straight from exec
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

var dumped atomic.Int64 // number of files that dump has made

// dump writes contents to files of a directory of their own, as they are called.
func dump(t testing.TB, contents map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), fmt.Sprint(dumped.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
