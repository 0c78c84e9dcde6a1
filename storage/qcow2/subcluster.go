package qcow2

import "math/bits"

// Bitmaps of an extended L2 entry whose subclusters are all the same.
const (
	allSubclusters = 1<<subclusters - 1
	allAllocated   = allSubclusters
	allZero        = allSubclusters << subclusters

	subclusters = 1 << subclusterBits
)

// addExtended appends what extended L2 entries say.
func (i *Image) addExtended(s *slice, base guestOffset, span span, r *request) error {
	for k := span.from; k < span.to; {
		e, bitmap := s.entries[2*k], s.entries[2*k+1]
		guest := base + guestOffset(k)<<i.clusterBits
		if i.problem(e, bitmap, guest) != "" {
			if k >= span.must {
				return nil
			}
			return i.check(s, k, base)
		}
		kind, run := i.kindOf(e), 1
		var err error
		switch whole := guest >= r.low; {
		case kind == kindCompressed:
			err = i.add(r, kind, e, guest, 0, i.clusterSize())
		case whole && (bitmap == 0 || bitmap == allAllocated || bitmap == allZero):
			run = i.run(s.entries[2*k:2*span.to], 2, kind)
			err = i.add(r, i.subkind(kind, bitmap, 0), e, guest, 0, int64(run)<<i.clusterBits)
		default:
			err = i.addSubclusters(kind, e, bitmap, guest, r)
		}
		if err != nil {
			return err
		}
		k += run
	}
	return nil
}

// addSubclusters appends the subclusters of a cluster one run after the other,
// as far as they are wanted.
func (i *Image) addSubclusters(kind clusterKind, e, bitmap uint64, guest guestOffset, r *request) error {
	from := int(max(0, r.low-guest) >> i.subclusterBits)
	end := min(r.size, r.high) - guest
	for from < subclusters && guestOffset(from)<<i.subclusterBits < end {
		n := sameSubclusters(bitmap, from)
		skip, length := int64(from)<<i.subclusterBits, int64(n)<<i.subclusterBits
		if err := i.add(r, i.subkind(kind, bitmap, from), e, guest, skip, length); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// subkind is the kind of subcluster n of a cluster that is not compressed.
func (i *Image) subkind(cluster clusterKind, bitmap uint64, n int) clusterKind {
	allocated := cluster == kindData
	switch zero := bitmap>>subclusters>>n&1 != 0; {
	case zero && allocated:
		return kindZeroAlloc
	case zero:
		return kindZeroPlain
	case bitmap>>n&1 != 0:
		return kindData
	case allocated:
		return kindReserved
	}
	return kindUnallocated
}

// sameSubclusters is how many subclusters from the given one have the same two
// bits in the bitmap.
func sameSubclusters(bitmap uint64, from int) int {
	differ := func(half uint32) uint32 {
		half >>= from
		if half&1 != 0 {
			return ^half
		}
		return half
	}
	changes := differ(uint32(bitmap)) | differ(uint32(bitmap>>subclusters))
	return min(bits.TrailingZeros32(changes), subclusters-from)
}
