package load

import (
	"context"
	"time"
)

const (
	// Least is what a long transfer gets when there is no plenty, bytes.
	Least = 64 << 10
	// forSmall is the part of the memory that long transfers leave to what is
	// small, which goes on while they wait.
	forSmall = 8
	// forSpare is the part that goes to what is faster for it. The rest is for
	// many: clients that are slow hold what they have.
	forSpare = 4
	// patience is how long a request waits for what there is not now.
	patience = 5 * time.Second
)

// Memory is what buffers may take together. What is taken is put back. A nil one
// is without a bound.
type Memory struct {
	share    share
	total    int64
	counts   *Counts
	patience time.Duration
}

// NewMemory returns a bound of total bytes, which is above 0, and counts those
// for whom there was none.
func NewMemory(total int64, counts *Counts) *Memory {
	m := &Memory{total: total, counts: counts, patience: patience}
	m.share.free.Store(total)
	return m
}

// Total is how many bytes there are, 0 without a bound.
func (m *Memory) Total() int64 {
	if m == nil {
		return 0
	}
	return m.total
}

// Used is how many of them are taken.
func (m *Memory) Used() int64 {
	if m == nil {
		return 0
	}
	return m.total - m.share.free.Load()
}

// Small takes n bytes for a request that needs little. When there are none it
// waits for some seconds, and then fails with a *LaterError, or with the
// context's error.
func (m *Memory) Small(ctx context.Context, n int64) error {
	if m == nil || m.share.try(n, 0) {
		return nil
	}
	return m.wait(ctx, n, 0)
}

// Long takes n bytes, Least or about that, for a transfer that may take long. It
// leaves some for small ones, and waits and fails as Small does.
func (m *Memory) Long(ctx context.Context, n int64) error {
	if m == nil || m.share.try(n, m.total/forSmall) {
		return nil
	}
	return m.wait(ctx, n, m.total/forSmall)
}

// Bulk takes n bytes, or the part for what is faster where that is less, for what
// is needed at once. It takes them only of that part, and waits and fails as Small
// does. It returns how many it took.
func (m *Memory) Bulk(ctx context.Context, n int64) (int64, error) {
	if m == nil {
		return n, nil
	}
	most := m.total / forSpare
	n = min(n, most)
	if m.share.try(n, m.total-most) {
		return n, nil
	}
	return n, m.wait(ctx, n, m.total-most)
}

func (m *Memory) wait(ctx context.Context, n, leave int64) error {
	if n <= m.total-leave && m.share.take(ctx, n, leave, m.patience) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.counts.Busy.Add(1)
	return busy
}

// Take takes n bytes, or all where that is less, for what does not wait for
// clients. It waits as long as the context lives.
func (m *Memory) Take(ctx context.Context, n int64) error {
	if m == nil {
		return nil
	}
	n = min(n, m.total)
	if m.share.waiting.Load() == 0 && m.share.try(n, 0) || m.share.take(ctx, n, 0, forever) {
		return nil
	}
	return ctx.Err()
}

// Give puts back what Take took.
func (m *Memory) Give(n int64) {
	if m != nil {
		m.share.put(min(n, m.total))
	}
}

// Spare takes n bytes that would only make something faster, if there is plenty.
// It does not wait.
func (m *Memory) Spare(n int64) bool {
	return m == nil || m.share.try(n, m.total-m.total/forSpare)
}

// Put puts n bytes back.
func (m *Memory) Put(n int64) {
	if m != nil {
		m.share.put(n)
	}
}
