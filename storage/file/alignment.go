package file

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// An alignment is what direct I/O takes multiples of, bytes; powers of two.
type alignment struct {
	memory int64 // of addresses in memory
	offset int64 // of offsets and lengths
}

func (a alignment) up(n int64) int64 { return (n + a.offset - 1) &^ (a.offset - 1) }

// whole reports whether so much is some whole blocks.
func (a alignment) whole(n int) bool { return n > 0 && int64(n)&(a.offset-1) == 0 }

// Bounds of what is accepted as an alignment, and what is taken where nothing
// tells: no device wants more.
const (
	maxAlignment     = 64 << 10
	defaultAlignment = 4096
)

// directAlignment is what direct I/O to an open file takes multiples of: as the
// kernel says (from 6.1 on), or else the device; or else something that every
// device takes.
func directAlignment(fd int, device bool) (alignment, error) {
	a := alignment{memory: defaultAlignment, offset: defaultAlignment}
	var st unix.Statx_t
	switch err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); {
	case err == nil && st.Mask&unix.STATX_DIOALIGN != 0:
		a = alignment{memory: int64(st.Dio_mem_align), offset: int64(st.Dio_offset_align)}
	case device:
		a.offset = sectorSize(fd)
	}
	return a, a.valid()
}

func (a alignment) valid() error {
	for _, v := range []int64{a.memory, a.offset} {
		if v == 0 {
			return fmt.Errorf("%w: direct I/O to this file", storage.ErrUnsupported)
		}
		if v < 0 || v > maxAlignment || v&(v-1) != 0 {
			return fmt.Errorf("%w: direct I/O in multiples of %d bytes", storage.ErrUnsupported, v)
		}
	}
	return nil
}
