package storagetest

import (
	"bytes"
	"fmt"
	"slices"
)

// A model is what a file or image is to contain.
type model struct {
	content []byte
	unknown []bool // what was trimmed reads as anything
	forgets bool   // what is written reads as zeros
}

func newModel(size int64) *model {
	return &model{content: make([]byte, size), unknown: make([]bool, size)}
}

func (m *model) size() int64 { return int64(len(m.content)) }

func (m *model) resize(size int64) {
	grow := max(0, size-m.size())
	m.content = append(m.content, make([]byte, grow)...)[:size]
	m.unknown = append(m.unknown, make([]bool, grow)...)[:size]
}

func (m *model) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	m.resize(max(m.size(), off+int64(len(p))))
	if !m.forgets {
		copy(m.content[off:], p)
	}
	clear(m.unknown[off : off+int64(len(p))])
}

func (m *model) trim(off, n int64) {
	if n = min(n, m.size()-off); n > 0 {
		copy(m.unknown[off:], slices.Repeat([]bool{true}, int(n)))
	}
}

// equal reports whether got may be what is read at off.
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
