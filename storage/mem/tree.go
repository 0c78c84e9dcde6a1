package mem

import "math/bits"

const (
	// PageSize is the granularity of memory, bytes.
	PageSize = 1 << pageBits
	pageBits = 14

	fanBits = 6 // a node's children are the bits of a word
	fan     = 1 << fanBits
	levels  = 8 // of fanBits each: 2^48 pages, more than a file has
)

type page [PageSize]byte

// A node is a part of the tree of pages. None is empty but for the root. The
// lowest ones have pages, all others have nodes.
type node struct {
	used  uint64 // a bit for each child that there is
	nodes *[fan]*node
	pages *[fan]*page
}

func newNode(level int) *node {
	if level == 0 {
		return &node{pages: new([fan]*page)}
	}
	return &node{nodes: new([fan]*node)}
}

// A tree holds pages by their number: offset divided by PageSize.
type tree struct {
	root  *node // nil: empty
	count int64 // pages
}

// slot is the place of a page's number in a node.
func slot(number int64, level int) int { return int(number>>(level*fanBits)) & (fan - 1) }

// lowest is the node that the page of that number is in, or would be, or nil.
func (t *tree) lowest(number int64) *node {
	n := t.root
	for level := levels - 1; n != nil && level > 0; level-- {
		n = n.nodes[slot(number, level)]
	}
	return n
}

// get is the page of that number, or nil.
func (t *tree) get(number int64) *page {
	n := t.lowest(number)
	if n == nil {
		return nil
	}
	return n.pages[slot(number, 0)]
}

// add makes a page of a number that has none.
func (t *tree) add(number int64) *page {
	if t.root == nil {
		t.root = newNode(levels - 1)
	}
	n := t.root
	for level := levels - 1; level > 0; level-- {
		s := slot(number, level)
		if n.nodes[s] == nil {
			n.nodes[s] = newNode(level - 1)
			n.used |= 1 << s
		}
		n = n.nodes[s]
	}
	s := slot(number, 0)
	n.pages[s] = new(page)
	n.used |= 1 << s
	t.count++
	return n.pages[s]
}

// remove removes the page of that number, which there is, and the nodes that
// have nothing else.
func (t *tree) remove(number int64) {
	var path [levels]*node
	n := t.root
	for level := levels - 1; level > 0; level-- {
		path[level] = n
		n = n.nodes[slot(number, level)]
	}
	path[0] = n
	n.pages[slot(number, 0)] = nil
	t.count--
	for level := range levels {
		n := path[level]
		n.used &^= 1 << slot(number, level)
		if n.used != 0 {
			return
		}
		if level+1 < levels {
			path[level+1].nodes[slot(number, level+1)] = nil
		}
	}
	t.root = nil
}

// next is the number of the first page from a number on, or ok is false.
func (t *tree) next(number int64) (at int64, ok bool) {
	if t.root == nil || number>>(levels*fanBits) != 0 {
		return 0, false
	}
	return t.root.next(levels-1, number)
}

// next is tree.next in a node that the number lies in, or before.
func (n *node) next(level int, number int64) (at int64, ok bool) {
	s := slot(number, level)
	for used := n.used >> s << s; used != 0; used &= used - 1 {
		k := bits.TrailingZeros64(used)
		if k != s { // all of that child lies behind the number
			number = (number>>(level*fanBits)&^(fan-1) | int64(k)) << (level * fanBits)
		}
		if level == 0 {
			return number, true
		}
		if at, ok := n.nodes[k].next(level-1, number); ok {
			return at, true
		}
	}
	return 0, false
}

// run is the first number from one on that has no page.
func (t *tree) run(number int64) int64 {
	for {
		n := t.lowest(number)
		if n == nil {
			return number
		}
		s := slot(number, 0)
		pages := bits.TrailingZeros64(^(n.used >> s)) // up to the node's end, where nothing is shifted in
		number += int64(pages)
		if s+pages < fan {
			return number
		}
	}
}
