package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/extentd/extentd/storage"
)

// Put makes content for a test: p at off. It makes the file longer where it
// must be, and no hook is called.
func (m *MemFile) Put(p []byte, off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(p, off)
}

// Punch makes a hole for a test, of the pages that lie wholly inside
// [off, off+n), and zeros the rest of it. What lies past the end is ignored, and
// no hook is called.
func (m *MemFile) Punch(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fill(off, n, 0, false)
}

// SetSize makes the file shorter for a test, or longer by a hole. No hook is
// called.
func (m *MemFile) SetSize(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setSize(size)
}

// Bytes are a copy of the content now.
func (m *MemFile) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p := make([]byte, m.size)
	for off, page := range m.pages {
		copy(p[off:], page.bytes[:])
	}
	return p
}

// Clone is a file with the same content, that shares no later change, and has
// neither limits nor a hook. It takes memory only for what changes.
func (m *MemFile) Clone() *MemFile {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMemFileWith(MemOptions{Size: m.size, Litter: m.litter})
	for off, page := range m.pages {
		if !page.shared {
			page.shared = true
		}
		c.pages[off] = page
	}
	return c
}

// WriteFile makes a file of the host with the content, and with its holes.
func (m *MemFile) WriteFile(path string) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the second time, unless something failed before
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	for off, page := range m.pages {
		if _, err := f.WriteAt(page.bytes[:min(PageSize, m.size-off)], off); err != nil {
			return err
		}
	}
	return f.Close()
}

// WriteAt writes p at off.
func (m *MemFile) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	op, err := m.begin(ctx, OpWrite, off, int64(len(p)))
	short := op.Length < int64(len(p)) // a fault: so much is written
	if err != nil && !short {
		return 0, err
	}
	if e := checkWrite(off, int64(len(p))); e != nil {
		return 0, e
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.usable(); e != nil {
		return 0, e
	}
	if short {
		p = p[:op.Length]
	}
	m.put(p, off)
	m.note(change{kind: OpWrite, off: off, n: int64(len(p)), data: p})
	return len(p), err
}

// Zero makes [off, off+n) read as zeros: with keep, pages that are there stay,
// and without, they become holes.
func (m *MemFile) Zero(ctx context.Context, off, n int64, keep bool) error {
	return m.change(ctx, change{kind: OpZero, off: off, n: n, keep: keep})
}

// Trim makes a hole, or what the option Litter says.
func (m *MemFile) Trim(ctx context.Context, off, n int64) error {
	return m.change(ctx, change{kind: OpTrim, off: off, n: n})
}

// Truncate sets the size. The hook sees it as the operation's offset.
func (m *MemFile) Truncate(ctx context.Context, size int64) error {
	return m.change(ctx, change{kind: OpTruncate, off: size})
}

// Flush does nothing but call the hook: memory is as durable as it will be.
func (m *MemFile) Flush(ctx context.Context) error {
	return m.change(ctx, change{kind: OpFlush})
}

// A change is one that was made to a file.
type change struct {
	kind   OpKind
	off, n int64
	data   []byte // of a write
	keep   bool   // of a zero
}

// change calls the hook, and makes the change.
func (m *MemFile) change(ctx context.Context, c change) error {
	if _, err := m.begin(ctx, c.kind, c.off, c.n); err != nil {
		return err
	}
	if err := checkWrite(c.off, c.n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return err
	}
	m.apply(c)
	m.note(c)
	return nil
}

// apply makes a change that is possible. m.mu must be held.
func (m *MemFile) apply(c change) {
	switch c.kind {
	case OpWrite:
		m.put(c.data, c.off)
	case OpZero:
		m.fill(c.off, c.n, 0, c.keep)
		if c.n > 0 {
			m.size = max(m.size, c.off+c.n)
		}
	case OpTrim:
		m.fill(c.off, c.n, m.litter, m.litter != 0)
	case OpTruncate:
		m.setSize(c.off)
	default: // a flush changes nothing
	}
}

// note tells the journal, if there is one. m.mu must be held.
func (m *MemFile) note(c change) {
	if m.record != nil {
		m.record(c)
	}
}

// put is WriteAt with m.mu held.
func (m *MemFile) put(p []byte, off int64) {
	if len(p) > 0 {
		m.size = max(m.size, off+int64(len(p)))
	}
	for len(p) > 0 {
		within := off % PageSize
		n := copy(m.own(off - within).bytes[within:], p)
		p, off = p[n:], off+int64(n)
	}
}

// own is the page at an offset, made or copied where this file must have one of
// its own to change. m.mu must be held.
func (m *MemFile) own(at int64) *page {
	p := m.pages[at]
	switch {
	case p == nil:
		p = new(page)
	case p.shared:
		p = &page{bytes: p.bytes}
	default:
		return p
	}
	m.pages[at] = p
	return p
}

// fill makes the pages in [off, off+n) that are there consist of b, as far as
// the file goes. Without keep, those that lie wholly inside become holes. m.mu
// must be held.
func (m *MemFile) fill(off, n int64, b byte, keep bool) {
	end := off + min(n, m.size-off)
	if (end-off)/PageSize > int64(len(m.pages)) {
		for at := range m.pages {
			m.fillPage(at, max(at, off), min(at+PageSize, end), b, keep)
		}
		return
	}
	for off < end {
		at := off - off%PageSize
		m.fillPage(at, off, min(at+PageSize, end), b, keep)
		off = at + PageSize
	}
}

// fillPage is fill for [off, end) of the page at an offset.
func (m *MemFile) fillPage(at, off, end int64, b byte, keep bool) {
	switch whole := off == at && (end == at+PageSize || end == m.size); {
	case m.pages[at] == nil || off >= end:
	case whole && !keep:
		delete(m.pages, at)
	case b == 0:
		clear(m.own(at).bytes[off-at : end-at])
	default:
		copy(m.own(at).bytes[off-at:end-at], bytes.Repeat([]byte{b}, PageSize))
	}
}

// setSize is Truncate with m.mu held.
func (m *MemFile) setSize(size int64) {
	m.fill(size, storage.MaxSize, 0, false)
	m.size = size
}

// checkWrite refuses what no file can hold.
func checkWrite(off, n int64) error {
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}
