package cow

// A state says where the bytes of a block are.
type state uint8

const (
	below   state = iota // in the node below, and zeros where that ends
	zero                 // nowhere: they are zeros
	overlay              // in the overlay
)

const (
	blockBits = 16
	leafBits  = 13 // a leaf has 2 bits for each of so many blocks: 2 KiB
	fanBits   = 8
	tableBits = leafBits + 4*fanBits // with blockBits: storage.MaxSize
	wordBits  = 5                    // a word has so many blocks
)

// A table has the state of every block. What is all one state takes no memory,
// however large it is. The zero value says below.
type table struct{ root subtree }

// A subtree has the state of 1<<bits blocks, where bits is known from how deep it
// lies.
type subtree struct {
	all   state                  // of every block, where there is neither of those below
	parts *[1 << fanBits]subtree // above the leaves
	words *[1 << (leafBits - wordBits)]uint64
}

// pattern is a word of blocks that are all s.
func pattern(s state) uint64 { return uint64(s) * 0x5555_5555_5555_5555 }

// set makes the blocks [lo, hi) s.
func (t *table) set(lo, hi int64, s state) {
	if lo < hi {
		t.root.set(tableBits, lo, hi, s)
	}
}

// run is the state of block lo, and the end of the blocks from there that have
// the same, hi at most.
func (t *table) run(lo, hi int64) (s state, end int64) {
	s, end = t.root.run(tableBits, lo)
	for end < hi {
		next, to := t.root.run(tableBits, end)
		if next != s {
			break
		}
		end = to
	}
	return s, min(end, hi)
}

// set is table.set, counted from the subtree's first block.
func (t *subtree) set(bits int, lo, hi int64, s state) {
	whole := lo == 0 && hi == 1<<bits
	switch uniform := t.parts == nil && t.words == nil; {
	case whole:
		*t = subtree{all: s}
		return
	case uniform && t.all == s:
		return
	case bits == leafBits:
		t.setLeaf(lo, hi, s)
	default:
		t.setParts(bits-fanBits, lo, hi, s)
	}
}

// setParts is set for what is no leaf, with the bits of its parts.
func (t *subtree) setParts(bits int, lo, hi int64, s state) {
	if t.parts == nil {
		t.parts = new([1 << fanBits]subtree)
		for i := range t.parts {
			t.parts[i].all = t.all
		}
	}
	for i := lo >> bits; i<<bits < hi; i++ {
		first := i << bits
		t.parts[i].set(bits, max(lo-first, 0), min(hi-first, 1<<bits), s)
	}
	for i := range t.parts {
		if p := &t.parts[i]; p.parts != nil || p.words != nil || p.all != s {
			return
		}
	}
	*t = subtree{all: s}
}

// setLeaf is set for a leaf.
func (t *subtree) setLeaf(lo, hi int64, s state) {
	if t.words == nil {
		t.words = new([1 << (leafBits - wordBits)]uint64)
		for i := range t.words {
			t.words[i] = pattern(t.all)
		}
	}
	for i := lo >> wordBits; i<<wordBits < hi; i++ {
		first := i << wordBits
		from, to := max(lo-first, 0), min(hi-first, 1<<wordBits)
		mask := ^uint64(0) >> (64 - 2*(to-from)) << (2 * from)
		t.words[i] = t.words[i]&^mask | pattern(s)&mask
	}
	for _, w := range t.words {
		if w != pattern(s) {
			return
		}
	}
	*t = subtree{all: s}
}

// run is the state of a block, and the end of a run from there, which may go on.
func (t *subtree) run(bits int, at int64) (s state, end int64) {
	var first int64 // of the subtree
	for t.parts != nil {
		bits -= fanBits
		i := (at - first) >> bits
		t, first = &t.parts[i], first+i<<bits
	}
	if t.words == nil {
		return t.all, first + 1<<bits
	}
	s = t.block(at - first)
	for end = at - first + 1; end < 1<<bits; {
		switch {
		case end&(1<<wordBits-1) == 0 && t.words[end>>wordBits] == pattern(s):
			end += 1 << wordBits
		case t.block(end) != s:
			return s, first + end
		default:
			end++
		}
	}
	return s, first + end
}

// block is the state of a block of a leaf.
func (t *subtree) block(at int64) state {
	return state(t.words[at>>wordBits] >> (2 * (at & (1<<wordBits - 1))) & 3)
}
