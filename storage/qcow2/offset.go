package qcow2

import "math"

// A guestOffset is a place in the virtual disk, bytes. Those of an open image
// are at most 2^61, so that adding a cluster, or what an L2 table
// maps, does not overflow.
type guestOffset int64

// A hostOffset is a place in the image's file, bytes. Those from table entries
// are below 2^56, those from the header at most maxTableEnd.
type hostOffset int64

// maxTableEnd is where the tables that the header points to must end: the
// largest offset at which QEMU reads.
const maxTableEnd = math.MaxInt64 &^ (1<<30 - 1)

// ceilDiv is a/b, rounded up, for a >= 0 and b > 0.
func ceilDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 {
		q++
	}
	return q
}
