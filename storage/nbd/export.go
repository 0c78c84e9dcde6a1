package nbd

import (
	"fmt"
	"math/bits"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	mostMinimum   = 64 << 10
	leastPrefer   = 512
	mostPrefer    = 2 << 20
	usualPrefer   = 4 << 10
	usualData     = 32 << 20 // what every server should take
	mostData      = 64 << 20
	mostUncounted = 4 << 30 // without data, less the minimum: lengths have 32 bits
)

// An export is what does not change about one as long as it is open.
type export struct {
	told  wire.ExportInfo
	size  int64 // what can be asked for
	flags wire.Transmission
	// Block sizes, bytes. The minimum is a power of two, and so is preferred;
	// data is a multiple of the minimum.
	minimum, preferred, data int64
}

// newExport checks what a server says of an export, and makes limits of it.
func newExport(told *wire.ExportInfo) (export, error) {
	if told.Size > uint64(storage.MaxSize) {
		return export{}, fmt.Errorf("%w: an export of %d bytes, the most are %d", storage.ErrUnsupported, told.Size, storage.MaxSize)
	}
	e := export{told: *told, size: int64(told.Size), minimum: 1, preferred: usualPrefer, data: usualData}
	if told.Flags&wire.HasFlags != 0 {
		e.flags = told.Flags
	}
	if told.Minimum != 0 || told.Preferred != 0 || told.Maximum != 0 {
		e.minimum = int64(told.Minimum)
		if bits.OnesCount32(told.Minimum) != 1 || e.minimum > mostMinimum {
			return export{}, protocolError("a minimum block size of %d", told.Minimum)
		}
		least := max(leastPrefer, e.minimum)
		e.data = min(int64(told.Maximum), mostData) &^ (e.minimum - 1)
		if e.data < least {
			return export{}, fmt.Errorf("%w: a server that takes %d bytes at most, with a minimum of %d", storage.ErrUnsupported, told.Maximum, told.Minimum)
		}
		e.preferred = max(least, down(min(int64(told.Preferred), mostPrefer, e.data)))
	}
	e.size &^= e.minimum - 1 // what is left over cannot be asked for
	return e, nil
}

// down is the largest power of two that is at most n, or 0.
func down(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return 1 << (bits.Len64(uint64(n)) - 1)
}

// same reports an error if a server says something else than before.
func (e *export) same(now *export) error {
	if e.told == now.told {
		return nil
	}
	return fmt.Errorf("%w: an export of %d bytes with flags %#x and block sizes %d, %d, %d had %d, %#x and %d, %d, %d",
		storage.ErrChanged, now.told.Size, uint16(now.told.Flags), now.told.Minimum, now.told.Preferred, now.told.Maximum,
		e.told.Size, uint16(e.told.Flags), e.told.Minimum, e.told.Preferred, e.told.Maximum)
}

func (e *export) can(f wire.Transmission) bool { return e.flags&f != 0 }
