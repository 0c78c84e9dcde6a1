package qcow2

import (
	"github.com/extentd/extentd/storage"
)

// Bits of an L2 entry. The others are reserved, and QEMU ignores them.
const (
	l2OffsetMask = 0x00fffffffffffe00
	l2Copied     = 1 << 63
	l2Compressed = 1 << 62
	l2Zero       = 1 << 0 // not with extended L2 entries

	hostEnd = 1 << 56 // what an entry can point to ends here
)

// A clusterKind is what a cluster or subcluster is.
type clusterKind uint8

const (
	kindUnallocated clusterKind = iota // defers to the backing
	kindReserved                       // a subcluster that does, in an allocated cluster
	kindZeroPlain
	kindZeroAlloc
	kindData
	kindCompressed
	clusterKinds
)

// A saying is what Fetch says of a kind of cluster.
type saying struct {
	status  storage.Status
	flags   storage.Flags
	located bool // at a host offset
}

// sayings is what Fetch says of clusters of this image: of an encrypted one,
// as QEMU, no offsets.
func (i *Image) sayings() [clusterKinds]saying {
	says := [clusterKinds]saying{
		kindReserved:   {storage.Alloc | storage.OffsetValid, 0, true},
		kindZeroPlain:  {storage.Local | storage.Zero, 0, false},
		kindZeroAlloc:  {storage.Local | storage.Zero | storage.Alloc | storage.OffsetValid, 0, true},
		kindData:       {storage.Local | storage.Alloc | storage.OffsetValid, storage.ZeroTail, true},
		kindCompressed: {storage.Local | storage.Alloc, storage.Compressed, true},
	}
	if i.info.Encryption != "" {
		says[kindReserved] = saying{}
		says[kindZeroAlloc] = saying{storage.Local | storage.Zero | storage.Alloc, 0, false}
		says[kindData] = saying{storage.Local | storage.Alloc, storage.Encrypted, false}
	}
	return says
}

// kindOf is the kind of the cluster that e describes; with extended L2 entries
// it is data or unallocated, and the bitmap says more.
func (i *Image) kindOf(e uint64) clusterKind {
	switch {
	case e&l2Compressed != 0:
		return kindCompressed
	case e&l2Zero != 0 && !i.extended:
		if e&l2OffsetMask != 0 {
			return kindZeroAlloc
		}
		return kindZeroPlain
	case e&l2OffsetMask != 0:
		return kindData
	case e&l2Copied != 0 && i.info.HasDataFile: // offset 0 of the data file
		return kindData
	}
	return kindUnallocated
}

// check reports what entry k of s, whose guest range begins at base, has wrong.
func (i *Image) check(s *slice, k int, base guestOffset) error {
	var bitmap uint64
	e := s.entries[k]
	if i.extended {
		e, bitmap = s.entries[2*k], s.entries[2*k+1]
	}
	problem := i.problem(e, bitmap, base+guestOffset(k)<<i.clusterBits)
	if problem == "" {
		return nil
	}
	table := s.at - i.sliceInTable(base)
	index := int64(base&(1<<i.tableSpanBits-1))>>i.clusterBits + int64(k)
	if i.extended {
		return corrupt("l2 table at %#x: entry %d is %#x, bitmap %#x: %s", int64(table), index, e, bitmap, problem)
	}
	return corrupt("l2 table at %#x: entry %d is %#x: %s", int64(table), index, e, problem)
}

// problem is what is wrong with the entry for the cluster at the guest offset,
// "" for nothing.
func (i *Image) problem(e, bitmap uint64, guest guestOffset) string {
	kind, off := i.kindOf(e), int64(e&l2OffsetMask)
	switch kind {
	case kindCompressed:
		return i.compressedProblem(e)
	case kindZeroPlain, kindZeroAlloc:
		if i.info.Version < 3 {
			return "a zero cluster in a version 2 image"
		}
	case kindUnallocated:
		if uint32(bitmap) != 0 {
			return "allocated subclusters of an unallocated cluster"
		}
	case kindData:
		if uint32(bitmap)&uint32(bitmap>>32) != 0 {
			return "subclusters both allocated and zero"
		}
	}
	if kind != kindData && kind != kindZeroAlloc {
		return ""
	}
	if off&(i.clusterSize()-1) != 0 {
		return "the offset must be a multiple of the cluster size"
	}
	if i.info.HasDataFile && off != int64(guest) {
		return "the offset in the external data file must be that of the guest"
	}
	return ""
}

// addStandard appends what standard L2 entries say.
func (i *Image) addStandard(s *slice, base guestOffset, span span, r *request) error {
	for k := span.from; k < span.to; {
		e := s.entries[k]
		guest := base + guestOffset(k)<<i.clusterBits
		if i.problem(e, 0, guest) != "" {
			if k >= span.must {
				return nil
			}
			return i.check(s, k, base)
		}
		kind := i.kindOf(e)
		run := 1
		if kind != kindCompressed {
			run = i.run(s.entries[k:span.to], 1, kind)
		}
		if err := i.add(r, kind, e, guest, 0, int64(run)<<i.clusterBits); err != nil {
			return err
		}
		k += run
	}
	return nil
}

// run is how many entries, of so many words each, go on as the first of them
// does: at the host offset that follows, or for clusters without one just the
// same.
func (i *Image) run(entries []uint64, words int, kind clusterKind) int {
	n := len(entries)
	e, step := entries[0], uint64(0)
	if kind == kindData || kind == kindZeroAlloc {
		step = uint64(i.clusterSize())
		// Past the last offset the sum would carry into reserved bits.
		n = int(min(uint64(n), uint64(words)*((hostEnd-e&l2OffsetMask)>>i.clusterBits)))
	}
	at := words
	for ; at < n; at += words {
		e += step
		if entries[at] != e || words == 2 && entries[at+1] != entries[1] {
			break
		}
	}
	return at / words
}

// add appends a mapping of length bytes from skip bytes into the cluster that e
// describes, which is at the guest offset; for compressed ones, all of it.
func (i *Image) add(r *request, kind clusterKind, e uint64, guest guestOffset, skip, length int64) error {
	says := &i.says[kind]
	m := storage.Mapping{
		Offset: int64(guest) + skip,
		Length: min(length, int64(r.size-guest)-skip),
		Status: says.status,
		Flags:  says.flags,
	}
	switch {
	case kind == kindCompressed:
		m.Node = i.node
		m.NodeOffset, m.PackedLength = i.packed(e)
	case says.located:
		m.Node, m.NodeOffset = i.data, int64(e&l2OffsetMask)+skip
		if e&l2Copied != 0 {
			m.Flags |= storage.Writable
		}
	}
	return r.into.Add(m)
}
