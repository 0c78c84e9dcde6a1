package block

import "context"

// Memory bounds what buffers take, bytes. *load.Memory is one. It is safe for
// concurrent use, and may be shared by devices.
type Memory interface {
	// Take waits for n bytes, or all there are where that is less.
	Take(ctx context.Context, n int64) error
	// Give puts back what Take took.
	Give(n int64)
	// Spare takes n bytes if there is plenty. It does not wait.
	Spare(n int64) bool
	// Put puts n bytes back.
	Put(n int64)
}

// StreamLeast is what a stream holds at least, bytes.
const StreamLeast = firstRead

// unpacking bounds what reads hold while they unpack units. It is nil where
// there is no bound.
type unpacking struct{ memory Memory }

// unpackingParts is how many units' sizes unpacking one may take: the unit, and
// its packed bytes, which may be twice as many.
const unpackingParts = 3

func (u unpacking) begin(ctx context.Context, unit int64) error {
	if u.memory == nil {
		return nil
	}
	return u.memory.Take(ctx, unpackingParts*unit)
}

func (u unpacking) end(unit int64) {
	if u.memory != nil {
		u.memory.Give(unpackingParts * unit)
	}
}

// holding is what a stream has taken of a memory, nil for one without a bound,
// beyond StreamLeast.
type holding struct {
	memory Memory
	taken  int64 // bytes
}

// spare takes n bytes if there is plenty.
func (h *holding) spare(n int64) bool {
	if h.memory == nil {
		return true
	}
	if !h.memory.Spare(n) {
		return false
	}
	h.taken += n
	return true
}

func (h *holding) put() {
	if h.taken > 0 {
		h.memory.Put(h.taken)
		h.taken = 0
	}
}
