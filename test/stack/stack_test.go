package stack_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
)

// A stack is a base and filters over it, from below.
type stack struct {
	base    base
	filters []maker
}

func (s *stack) String() string {
	kinds := []string{s.base.kind}
	for _, m := range s.filters {
		kinds = append(kinds, m.kind)
	}
	return strings.Join(kinds, "-")
}

// open builds the stack over the content, ready to be written to, with the model
// of its top.
func (s *stack) open(t *testing.T, random *rand.Rand, content []byte) *run {
	t.Helper()
	m := newModel(content)
	opt := storage.NodeOptions{Check: true}
	top := storage.NewNode(s.base.kind, s.base.make(t, content), opt)
	for _, maker := range s.filters {
		f, err := maker.make(t, random, top, m)
		if err != nil {
			t.Fatalf("%v: %s: %v", s, maker.kind, err)
		}
		top = storage.NewNode(maker.kind+"("+top.Name()+")", f, opt)
	}
	if err := top.StartWriting(t.Context()); (err != nil) != m.readOnly {
		t.Fatalf("%v: StartWriting = %v", s, err)
	}
	limits, err := top.Limits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &run{model: m, top: top, random: random, limits: limits}
}

// test runs operations against one stack.
func (s *stack) test(t *testing.T, random *rand.Rand, steps int) {
	t.Helper()
	size := 8 * (256 + random.Int64N(16<<10)) // swab leaves nothing of it over
	if random.IntN(3) == 0 {
		size &^= 4095
	}
	size = max(size, 32<<10)
	r := s.open(t, random, content(random, size))
	for range steps {
		r.step(t)
	}
	r.extents(t)
	if err := r.top.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestEveryFilter alone over every base.
func TestEveryFilter(t *testing.T) {
	for _, b := range bases() {
		for _, m := range makers() {
			s := stack{b, []maker{m}}
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				s.test(t, source(t.Name()), 200)
			})
		}
	}
}

// TestSoakStacks: three filters in random order, one of them perhaps twice.
func TestSoakStacks(t *testing.T) {
	random := source(t.Name())
	all, under := makers(), bases()
	deadline := time.Now().Add(budget(t, 20*time.Second))
	for round := 0; time.Now().Before(deadline) && !t.Failed(); round++ {
		s := stack{base: under[random.IntN(len(under))]}
		for range 3 {
			s.filters = append(s.filters, all[random.IntN(len(all))])
		}
		local := rand.New(rand.NewPCG(random.Uint64(), 0))
		t.Run(fmt.Sprintf("%d-%v", round, &s), func(t *testing.T) { s.test(t, local, 100) })
	}
}

// TestEveryPairInBothOrders: no filter takes another for something else.
func TestEveryPairInBothOrders(t *testing.T) {
	under := bases()
	for _, a := range makers() {
		for _, b := range makers() {
			s := stack{under[source(a.kind+b.kind).IntN(len(under))], []maker{a, b}}
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				s.test(t, source(t.Name()), 80)
			})
		}
	}
}
