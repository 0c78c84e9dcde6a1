package swab

import (
	"encoding/binary"
	"math/bits"
)

// The functions below put the bytes of src into dst, with the bytes of each group
// in reverse order. Both have the same length, a multiple of the group, and may be
// the same.

func swap16(dst, src []byte) {
	const even = 0x00ff00ff00ff00ff
	dst = dst[:len(src)]
	for len(src) >= 8 && len(dst) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		binary.LittleEndian.PutUint64(dst, v&even<<8|v>>8&even)
		dst, src = dst[8:], src[8:]
	}
	for len(src) >= 2 && len(dst) >= 2 {
		dst[0], dst[1] = src[1], src[0]
		dst, src = dst[2:], src[2:]
	}
}

func swap32(dst, src []byte) {
	dst = dst[:len(src)]
	for len(src) >= 8 && len(dst) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		binary.LittleEndian.PutUint64(dst, bits.RotateLeft64(bits.ReverseBytes64(v), 32))
		dst, src = dst[8:], src[8:]
	}
	if len(src) >= 4 {
		binary.LittleEndian.PutUint32(dst, binary.BigEndian.Uint32(src))
	}
}

func swap64(dst, src []byte) {
	dst = dst[:len(src)]
	for len(src) >= 8 && len(dst) >= 8 {
		binary.LittleEndian.PutUint64(dst, binary.BigEndian.Uint64(src))
		dst, src = dst[8:], src[8:]
	}
}
