package storagetest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/extentd/extentd/storage"
)

// PageSize is the granularity of a MemFile's holes, bytes.
const PageSize = 4096

// MemOptions configure a MemFile. The zero value is an empty file without
// faults.
type MemOptions struct {
	// Size in bytes. Default: 0. All of it is a hole.
	Size int64
	// Limits are what the file answers, 0 for "pick a default". They are not
	// enforced: that is the node's task.
	Limits storage.Limits
	// Litter is what a trimmed byte reads as, where it was data before: what
	// relies on zeros there is wrong. Default: 0, and whole pages are holes.
	Litter byte
	// Hook is called before every operation. Default: none.
	Hook Hook
}

// A MemFile is a file in memory, with holes. It takes as much memory as has
// been written to it. Safe for concurrent use.
type MemFile struct {
	limits storage.Limits
	litter byte
	hook   Hook

	mu     sync.RWMutex // protects all below
	size   int64
	pages  map[int64]*page // by offset; what is not here is a hole
	closed bool

	record func(change) // called with mu held, for a Journal
}

// A page may be shared between files, and is not changed any more then.
type page struct {
	bytes  [PageSize]byte
	shared bool // set before another file has it, and never taken back
}

var (
	_ storage.File   = (*MemFile)(nil)
	_ storage.Writer = (*MemFile)(nil)
)

// NewMemFile returns a file with the content. The pages that lie wholly inside
// a hole take no memory, and the rest of a hole is zeroed.
func NewMemFile(content []byte, holes ...Range) *MemFile {
	m := NewMemFileWith(MemOptions{})
	m.Put(content, 0)
	for _, h := range holes {
		m.Punch(h.Offset, h.Length)
	}
	return m
}

// NewMemFileWith returns a file that is one hole.
func NewMemFileWith(opt MemOptions) *MemFile {
	return &MemFile{limits: opt.Limits, litter: opt.Litter, hook: opt.Hook, size: opt.Size, pages: map[int64]*page{}}
}

// Size is the size in bytes now.
func (m *MemFile) Size(ctx context.Context) (int64, error) {
	if _, err := m.begin(ctx, OpSize, 0, 0); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size, m.usable()
}

// ReadAt reads len(p) bytes from off.
func (m *MemFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	op, err := m.begin(ctx, OpRead, off, int64(len(p)))
	m.mu.RLock()
	defer m.mu.RUnlock()
	switch short := op.Length < int64(len(p)); {
	case short: // a fault: a short read, with an error or none
		n, _ := m.read(p[:op.Length], off)
		return n, err
	case err != nil:
		return 0, err
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	}
	return m.read(p, off)
}

// read is ReadAt with m.mu held.
func (m *MemFile) read(p []byte, off int64) (n int, err error) {
	if err := m.usable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= m.size {
		return 0, io.EOF
	}
	if left := m.size - off; int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	for n < len(p) {
		within := (off + int64(n)) % PageSize
		to := p[n:min(len(p), n+int(PageSize-within))]
		if page := m.pages[off+int64(n)-within]; page != nil {
			copy(to, page.bytes[within:])
		} else {
			clear(to)
		}
		n += len(to)
	}
	return n, err
}

// Extents appends data and holes, all of the range and then as far as the last
// one goes.
func (m *MemFile) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if _, err := m.begin(ctx, OpExtents, off, n); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	err := checkRange(off, n, m.size)
	for end := off + n; err == nil && off < end; {
		m := m.extent(off)
		off, err = m.End(), into.Add(m)
	}
	return err
}

// extent is the longest extent from off. m.mu must be held.
func (m *MemFile) extent(off int64) storage.Mapping {
	page := off - off%PageSize
	isData := m.pages[page] != nil
	for page += PageSize; page < m.size && (m.pages[page] != nil) == isData; {
		page += PageSize
	}
	e := storage.Mapping{Offset: off, Length: min(page, m.size) - off, NodeOffset: off, Status: storage.Zero | storage.OffsetValid}
	if isData {
		e.Status = storage.Alloc | storage.OffsetValid
	}
	return e
}

// Limit answers what the options say.
func (m *MemFile) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	if _, err := m.begin(ctx, OpLimit, 0, 0); err != nil {
		return 0, err
	}
	l := &m.limits
	return [...]int64{l.Minimum, l.Preferred, l.MaxData, l.MaxTrim, l.MaxZero, l.MaxCache}[which], nil
}

// Close makes every later call fail.
func (m *MemFile) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return storage.ErrClosed
	}
	m.closed, m.pages = true, nil
	return nil
}

// usable is an error once the file is closed. m.mu must be held.
func (m *MemFile) usable() error {
	if m.closed {
		return storage.ErrClosed
	}
	return nil
}

// begin is what every operation does before it takes the lock.
func (m *MemFile) begin(ctx context.Context, kind OpKind, off, n int64) (Op, error) {
	if err := ctx.Err(); err != nil || m.hook == nil {
		return Op{Kind: kind, Offset: off, Length: n}, err // not below: that Op is allocated
	}
	op := Op{Kind: kind, Offset: off, Length: n}
	err := m.hook(ctx, &op)
	return op, err
}

// checkRange is storage.CheckRange for what must not be empty.
func checkRange(off, n, size int64) error {
	if n == 0 {
		return fmt.Errorf("%w: an empty range at %d", storage.ErrOutOfRange, off)
	}
	return storage.CheckRange(off, n, size)
}
