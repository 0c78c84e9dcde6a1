package stack_test

import (
	"bytes"
	"fmt"
	"slices"
)

// A model is what the top of a graph is to contain, and what it is to allow.
type model struct {
	content  []byte
	unknown  []bool // what was trimmed, or what a failed write was for, reads as anything
	fixed    bool   // it can neither grow nor shrink
	readOnly bool
	flaky    bool // operations fail now and then
}

func newModel(content []byte) *model {
	return &model{content: bytes.Clone(content), unknown: make([]bool, len(content))}
}

func (m *model) size() int64 { return int64(len(m.content)) }

func (m *model) resize(size int64) {
	grow := max(0, size-m.size())
	m.content = append(m.content, make([]byte, grow)...)[:size]
	m.unknown = append(m.unknown, make([]bool, grow)...)[:size]
}

// window keeps [off, off+n) alone.
func (m *model) window(off, n int64) {
	m.content, m.unknown = m.content[off:off+n:off+n], m.unknown[off:off+n:off+n]
}

func (m *model) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	m.resize(max(m.size(), off+int64(len(p))))
	copy(m.content[off:], p)
	clear(m.unknown[off : off+int64(len(p))])
}

// forget makes [off, off+n) unknown, as far as there is something.
func (m *model) forget(off, n int64) {
	if n = min(n, m.size()-off); n > 0 {
		copy(m.unknown[off:], slices.Repeat([]bool{true}, int(n)))
	}
}

// swab swaps groups of n bytes; what is left over is no part of it.
func (m *model) swab(n int) {
	m.window(0, m.size()/int64(n)*int64(n))
	for group := range slices.Chunk(m.content, n) {
		slices.Reverse(group)
	}
}

// equal reports how got, read at off, differs from what is to be there.
func (m *model) equal(got []byte, off int64) error {
	if bytes.Equal(got, m.content[off:off+int64(len(got))]) {
		return nil
	}
	for i, b := range got {
		if at := off + int64(i); b != m.content[at] && !m.unknown[at] {
			return fmt.Errorf("byte %d is %#x, want %#x", at, b, m.content[at])
		}
	}
	return nil
}
