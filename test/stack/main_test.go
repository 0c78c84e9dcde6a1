package stack_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// seed drives every random choice: each test derives its own source from it.
var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the random choices")

func TestMain(m *testing.M) {
	flag.Parse()
	fmt.Printf("random choices: -seed %d\n", *seed)
	goleak.VerifyTestMain(m)
}

// source returns the random source of a name: the same for the same -seed.
func source(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(*seed, h.Sum64()))
}

// budget is how long a test of that name goes on: a part of what SOAK says, or
// the default.
func budget(t *testing.T, otherwise time.Duration) time.Duration {
	t.Helper()
	const parts = 4 // soak tests of this package share it
	text := os.Getenv("SOAK")
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return d / parts
}
