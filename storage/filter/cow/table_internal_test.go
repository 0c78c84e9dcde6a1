package cow

import (
	"math/rand/v2"
	"testing"
)

// TestTable compares the table with an array, around the edges of its parts.
func TestTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("changes of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const most = 1 << tableBits
	for _, base := range []int64{0, 1<<leafBits - 300, 1<<(leafBits+fanBits) - 257, 1<<(leafBits+3*fanBits) - 300, most - 600} {
		var tab table
		model := make([]state, 600)
		for range 400 {
			lo := random.IntN(len(model))
			hi := min(lo+random.IntN(200), len(model))
			s := state(random.IntN(3))
			tab.set(base+int64(lo), base+int64(hi), s)
			for i := lo; i < hi; i++ {
				model[i] = s
			}
			at := random.IntN(len(model))
			limit := at + 1 + random.IntN(len(model)-at)
			end := at
			for end < limit && model[end] == model[at] {
				end++
			}
			if got, to := tab.run(base+int64(at), base+int64(limit)); got != model[at] || to != base+int64(end) {
				t.Fatalf("run(%d, %d) = %d to %d, want %d to %d", at, limit, got, to-base, model[at], end)
			}
		}
		tab.set(0, most, zero)
		if s, end := tab.run(0, most); s != zero || end != most || tab.root.parts != nil {
			t.Errorf("all zero: %d to %d", s, end)
		}
	}
}

// TestTableJoins: what has become all one state takes no memory.
func TestTableJoins(t *testing.T) {
	var tab table
	for b := range int64(2 << leafBits) {
		tab.set(b, b+1, overlay)
	}
	p := &tab.root
	for p.parts != nil {
		p = &p.parts[0]
	}
	if p.words != nil || p.all != overlay {
		t.Error("a leaf of one state has words")
	}
	tab.set(0, 2<<leafBits, below)
	if tab.root.parts != nil {
		t.Error("an empty table has parts")
	}
	tab.set(0, 1<<tableBits-1, zero) // all but the last
	if s, end := tab.run(5, 1<<tableBits); s != zero || end != 1<<tableBits-1 {
		t.Errorf("run = %d to %d", s, end)
	}
	n := testing.AllocsPerRun(100, func() { tab.run(1<<40, 1<<tableBits) })
	if n != 0 {
		t.Errorf("run allocates %v times", n)
	}
}
