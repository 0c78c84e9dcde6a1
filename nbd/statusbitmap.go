package nbd

import (
	"errors"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// maxGranules bounds how much of a bitmap one request looks at: 32 MiB.
const maxGranules = 1 << 28

// errEnough ends a walk of which nobody wants more.
var errEnough = errors.New("enough")

// statusOfBitmap lists what a bitmap marks.
func (s *session) statusOfBitmap(r *request, h *service.Handle, b *bitmapContext, to *list) error {
	n := int64(r.Length)
	if n>>28 > b.granularity {
		n = b.granularity * maxGranules
	}
	m := marks{unit: int64(s.export.minimum), at: int64(r.Offset), to: to}
	err := h.Dirty(r.ctx, b.name, m.at, n, func(off, n int64, dirty bool) error {
		if m.add(off, n, dirty); to.done {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return nil
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, storage.ErrConflict), errors.Is(err, storage.ErrUnsupported):
		return refuse(wire.EINVAL, "the bitmap %q that was agreed on cannot be read anymore", b.name)
	case err == nil:
		m.put(int64(r.Offset)+n, false)
	}
	return err
}

// marks keep the boundaries of descriptors at multiples of the minimum: a block of
// which any part is dirty is dirty.
type marks struct {
	unit int64
	at   int64 // what is before it has been listed
	to   *list
}

func (m *marks) add(off, n int64, dirty bool) {
	m.put(off&^(m.unit-1), false)
	if dirty {
		m.put((off+n+m.unit-1)&^(m.unit-1), true)
	}
}

// put lists what is left up to end.
func (m *marks) put(end int64, dirty bool) {
	if end <= m.at {
		return
	}
	d := wire.Descriptor{Length: uint64(end - m.at)}
	if dirty {
		d.Flags = wire.StateDirty
	}
	m.to.add(d)
	m.at = end
}
