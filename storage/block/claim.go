package block

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// maxClaimed bounds how many pieces the blocks of a claim may lie in.
const maxClaimed = 1 << 16

// A Claim is the sole right to a range whose blocks are reserved and not shown:
// its owner fills them, and publishes them in parts. Until it is released all
// other writing there, and shrinking below its end, fails with
// storage.ErrConflict. Safe for concurrent use.
type Claim struct {
	Offset, Length int64 // of the guest, bytes

	d         *Device
	blocks    []ClaimedBlocks
	mu        sync.Mutex // protects all below; never held while the map changes
	published []reach    // in no order, without overlaps; those under way too
	done      []reach    // those of them that show, sorted; neighbours are one
}

// ClaimedBlocks are where a part of a claim lies.
type ClaimedBlocks struct {
	Offset int64 // of the guest, bytes
	storage.Blocks
}

// A reach is [lo, hi) of the guest.
type reach struct{ lo, hi int64 }

func (r reach) overlaps(lo, hi int64) bool { return r.lo < hi && lo < r.hi }

// claims are the live ones, which every write asks: a slice that is replaced,
// not changed.
type claims struct {
	live atomic.Pointer[[]*Claim] // nil for none
	mu   sync.Mutex               // held while it is replaced
}

// check reports whether a claim covers a part of [off, off+n).
func (c *claims) check(off, n int64) error {
	live := c.live.Load()
	if live == nil {
		return nil
	}
	for _, claim := range *live {
		if claim.holds(off, off+n) {
			return fmt.Errorf("block: %w: %d bytes at %d are claimed", storage.ErrConflict, claim.Length, claim.Offset)
		}
	}
	return nil
}

// holds reports whether the claim covers a part of [lo, hi) that it has not
// published.
func (c *Claim) holds(lo, hi int64) bool {
	lo, hi = max(lo, c.Offset), min(hi, c.Offset+c.Length)
	if lo >= hi {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.ContainsFunc(c.done, func(d reach) bool { return d.lo <= lo && hi <= d.hi })
}

func (c *claims) change(f func([]*Claim) []*Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var live []*Claim
	if now := c.live.Load(); now != nil {
		live = slices.Clone(*now)
	}
	if live = f(live); len(live) == 0 {
		c.live.Store(nil)
		return
	}
	c.live.Store(&live)
}

// Claim takes [off, off+n), whole blocks, all of which must be anchored: zeros
// with blocks of their own. Otherwise, and where it overlaps another claim, it
// fails with storage.ErrConflict.
func (d *Device) Claim(ctx context.Context, off, n int64) (*Claim, error) {
	if err := d.CheckWrite(ctx, off, n); err != nil {
		return nil, err
	}
	if err := d.checkReserving(); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("block: %w: a claim of nothing", storage.ErrOutOfRange)
	}
	if err := d.checkBlocks(off, n); err != nil {
		return nil, err
	}
	lo, hi := d.blocksOf(off, off+n)
	lock, err := d.locks.Exclude(ctx, lo, hi)
	if err != nil {
		return nil, err
	}
	defer d.locks.Release(lock)
	if err := d.checkNow(off, n); err != nil {
		return nil, err
	}
	c := &Claim{Offset: off, Length: n, d: d}
	if err := c.find(ctx); err != nil {
		return nil, err
	}
	d.claims.change(func(live []*Claim) []*Claim { return append(live, c) })
	return c, nil
}

// find collects the blocks of the claim. The last one is whole, also where the
// size cuts the range.
func (c *Claim) find(ctx context.Context) error {
	cur := c.d.cursor(true)
	defer cur.put()
	end := c.Offset + c.Length
	for off := c.Offset; off < end; {
		i, err := cur.locate(ctx, 0, off, end)
		if err != nil {
			return err
		}
		m := *cur.lists[0].At(i)
		m.Clip(off, end)
		if !m.Status.Has(storage.Local|storage.Zero) || !fillable(&m) {
			return fmt.Errorf("block: %w: %d bytes at %d are not anchored", storage.ErrConflict, m.Length, m.Offset)
		}
		off = m.End()
		if last := len(c.blocks) - 1; last >= 0 && c.blocks[last].Node == m.Node && c.blocks[last].Blocks.Offset+c.blocks[last].Length == m.NodeOffset {
			c.blocks[last].Length += m.Length
			continue
		}
		if len(c.blocks) == maxClaimed {
			return fmt.Errorf("block: %w: blocks in more than %d pieces", storage.ErrUnsupported, maxClaimed)
		}
		c.blocks = append(c.blocks, ClaimedBlocks{m.Offset, storage.Blocks{Node: m.Node, Offset: m.NodeOffset, Length: m.Length}})
	}
	last := &c.blocks[len(c.blocks)-1]
	last.Length = up(last.Length, c.d.granule.Alloc)
	return nil
}

// Blocks are where the claim's range lies, in order, to be filled with
// [Device.FillBlocks]. The caller must not change them.
func (c *Claim) Blocks() []ClaimedBlocks { return c.blocks }

// Publish shows what has been filled of [off, off+n), whole blocks inside the
// claim. What has been published, or is being, fails with storage.ErrConflict.
func (c *Claim) Publish(ctx context.Context, off, n int64) error {
	if err := storage.CheckRange(off-c.Offset, n, c.Length); err != nil {
		return fmt.Errorf("block: the claim: %w", err)
	}
	if n == 0 {
		return nil
	}
	if err := c.d.checkBlocks(off, n); err != nil {
		return err
	}
	part := reach{off, off + n}
	if err := c.take(part); err != nil {
		return err
	}
	err := c.publish(ctx, part)
	if err != nil {
		c.drop(part)
		return err
	}
	c.finish(part)
	return nil
}

// take marks a part as published.
func (c *Claim) take(part reach) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.published {
		if p.overlaps(part.lo, part.hi) {
			return fmt.Errorf("block: %w: %d bytes at %d have been mapped", storage.ErrConflict, p.hi-p.lo, p.lo)
		}
	}
	c.published = append(c.published, part)
	return nil
}

func (c *Claim) drop(part reach) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.published = slices.DeleteFunc(c.published, func(p reach) bool { return p == part })
}

// finish lets others write to a part that shows.
func (c *Claim) finish(part reach) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.done, func(d reach) bool { return d.lo > part.lo })
	if at < 0 {
		at = len(c.done)
	}
	c.done = slices.Insert(c.done, at, part)
	merged := c.done[:1]
	for _, d := range c.done[1:] {
		if last := &merged[len(merged)-1]; last.hi == d.lo {
			last.hi = d.hi
		} else {
			merged = append(merged, d)
		}
	}
	c.done = merged
}

func (c *Claim) publish(ctx context.Context, part reach) error {
	lo, hi := c.d.blocksOf(part.lo, part.hi)
	lock, err := c.d.locks.Exclude(ctx, lo, hi)
	if err != nil {
		return err
	}
	defer c.d.locks.Release(lock)
	if live := c.d.claims.live.Load(); live == nil || !slices.Contains(*live, c) {
		return fmt.Errorf("block: %w: the claim has been released", storage.ErrConflict)
	}
	w := c.d.writer()
	defer w.put()
	for i := range c.blocks {
		b := &c.blocks[i]
		from, until := max(part.lo, b.Offset), min(part.hi, b.Offset+b.Length)
		if from >= until {
			continue
		}
		to := storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Blocks.Offset + from - b.Offset}
		if err := w.remap(ctx, from, until-from, to, false); err != nil {
			return err
		}
	}
	return nil
}

// Release ends the claim: what has not been published stays anchored. It waits
// for nobody, and may be called again.
func (c *Claim) Release() {
	c.d.claims.change(func(live []*Claim) []*Claim {
		return slices.DeleteFunc(live, func(o *Claim) bool { return o == c })
	})
}
