package service

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// Bounds on allocations.
const (
	// maxAllocations is how many one image has at a time.
	maxAllocations = 1000
	// maxAllocation is the longest, bytes.
	maxAllocation = 64 << 30
	// maxExtents is how many runs one is gathered from.
	maxExtents = 4096
)

// defaultAllocationTTL is how long an allocation lives after its last use.
const defaultAllocationTTL = time.Hour

// A Range is a range of an image, bytes.
type Range struct {
	Offset, Length int64
}

// An AllocationRequest says what to reserve: Length, or what Anchored has
// already.
type AllocationRequest struct {
	// Length is how much, bytes: 1 to 64 GiB, rounded up to whole clusters.
	Length int64
	// Contiguous: all of it in one run. Otherwise it is gathered from up to
	// 4,096 of them.
	Contiguous bool
	// Anchored claims the blocks that this range of the image has and does not
	// show: whole clusters, of which the end of the image may cut the last.
	Anchored *Range
}

// An Allocation is blocks that are reserved, to be filled and then mapped. It is
// as of the time of the call that returned it.
type Allocation struct {
	// ID is a text of [a-z0-9-] that cannot be guessed.
	ID string
	// Length in bytes, whole clusters.
	Length     int64
	Contiguous bool
	// Expires is when the rest of it is given back, if nobody fills or maps
	// any of it before.
	Expires time.Time
	// Extents are where it is, in order and without gaps.
	Extents []AllocationExtent
	// Mapped are the parts that are mapped already, in order. After a crash
	// it may be more than what the map shows: whatever may have been mapped is
	// not to be mapped again.
	Mapped []AllocationRange
}

// An AllocationExtent is where a part of an allocation is, bytes.
type AllocationExtent struct {
	AllocationOffset, Length int64
	Node                     string
	NodeOffset               int64
}

// An AllocationRange is a part of an allocation, bytes.
type AllocationRange struct {
	AllocationOffset, Length int64
}

// An allocation is live while its image is open for writing and its blocks are
// reserved there; otherwise it is dormant, a mere record. Who uses it beyond
// ledger.mu says so in filling, writers or mapping: while one of those is set,
// it neither ends nor expires. Everything but the record's constant fields is
// guarded by ledger.mu.
type allocation struct {
	record
	account *account
	i       *image         // with a reference; nil: dormant
	d       *block.Device  // of the image, while live
	node    *storage.Node  // where the blocks are, while live
	claims  []*block.Claim // of a claim, while live

	mapping spans  // parts that are being mapped
	filling []span // parts that are being written
	writers int
	late    bool // the store has an older record
	sought  bool // dormant and expired: its image was opened for it once
}

func newID() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	return "a-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random[:]))
}

// current is the record with what is being mapped, which may be done when the
// next one is read after a crash. ledger.mu must be held.
func (a *allocation) current() record {
	r := a.record
	r.Spent = a.Spent.union(a.mapping)
	return r
}

// describe is the allocation as others see it. ledger.mu must be held.
func (a *allocation) describe() *Allocation {
	out := &Allocation{ID: a.ID, Length: a.Length, Contiguous: a.Contiguous, Expires: a.Expires}
	for _, e := range a.Extents {
		out.Extents = append(out.Extents, AllocationExtent{
			AllocationOffset: e.Offset, Length: e.Length, Node: a.node.Name(), NodeOffset: e.NodeOffset,
		})
	}
	for _, m := range a.Spent {
		out.Mapped = append(out.Mapped, AllocationRange{AllocationOffset: m.Offset, Length: m.Length})
	}
	return out
}

// idle reports whether nobody uses it. ledger.mu must be held.
func (a *allocation) idle() bool {
	return a.writers == 0 && len(a.filling) == 0 && len(a.mapping) == 0
}

// blocks are where the parts are that nothing has mapped. ledger.mu must be held,
// or nobody else have the allocation.
func (a *allocation) blocks(node *storage.Node) []storage.Blocks {
	var out []storage.Blocks
	for _, part := range a.Spent.union(a.mapping).rest(a.Length) {
		for _, e := range a.pieces(part) {
			out = append(out, storage.Blocks{Node: node, Offset: e.NodeOffset, Length: e.Length})
		}
	}
	return out
}

// check refuses what cannot be granted on any image.
func (r *AllocationRequest) check() error {
	if r.Anchored != nil {
		switch {
		case r.Length != 0 || r.Contiguous:
			return &storage.InvalidError{Field: "anchored", Detail: "must stand alone: the range says the length"}
		case r.Anchored.Offset < 0:
			return &storage.InvalidError{Field: "anchored.offset", Detail: fmt.Sprintf("is %d, must be at least 0", r.Anchored.Offset)}
		}
		return checkLength("anchored.length", r.Anchored.Length)
	}
	return checkLength("length", r.Length)
}

func checkLength(field string, n int64) error {
	if n < 1 || n > maxAllocation {
		return &storage.InvalidError{Field: field, Detail: fmt.Sprintf("is %d, must be from 1 to %d", n, int64(maxAllocation))}
	}
	return nil
}

// aligned refuses a range that is not made of whole units, unless it ends at
// the size.
func aligned(off, n, unit, size int64) error {
	end := off + n
	if off&(unit-1) != 0 || end&(unit-1) != 0 && end != size {
		return &storage.MisalignedError{Minimum: unit, Offset: off, Length: n}
	}
	return nil
}

// roundUp is n as whole units, a power of two. n is at most storage.MaxSize.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// extentsOf are the runs of blocks as an allocation has them; runs that go on
// from each other become one.
func extentsOf(runs []storage.Blocks) []extent {
	var out []extent
	at := int64(0)
	for _, b := range runs {
		if k := len(out) - 1; k >= 0 && out[k].NodeOffset+out[k].Length == b.Offset {
			out[k].Length += b.Length
		} else {
			out = append(out, extent{Offset: at, Length: b.Length, NodeOffset: b.Offset})
		}
		at += b.Length
	}
	return slices.Clip(out)
}
