package block

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// fetchWindow is how much a wide cursor asks a layer for at a time, bytes: a
// bound on a list where every block is an extent of its own. Drivers volunteer
// beyond it what costs them nothing.
const fetchWindow = 1 << 20

// A cursor resolves the chain at one offset after another. It keeps, for each
// layer, the last list that was fetched, so that a layer is asked once for what
// it volunteers, and going upwards through alternating layers stays linear.
// It belongs to one goroutine.
type cursor struct {
	d     *Device
	lists []storage.ExtentList // a layer each
	at    []int                // in each list, where the last look-up ended
	wide  bool                 // take what is volunteered; false: the range alone
}

func newCursor(d *Device) *cursor {
	return &cursor{d: d, lists: make([]storage.ExtentList, len(d.layers)), at: make([]int, len(d.layers))}
}

// cursor takes one from the pool; put gives it back.
func (d *Device) cursor(wide bool) *cursor {
	c := d.cursors.Get().(*cursor)
	c.wide = wide
	return c
}

func (c *cursor) put() {
	for i := range c.lists {
		c.lists[i].Reset()
	}
	c.d.cursors.Put(c)
}

// resolve returns what supplies the bytes from off, as far as one mapping goes
// and to end at most. What no layer supplies is Zero, at the depth of the lowest
// layer that reaches there; if that layer has storage reserved for it, the
// mapping says so and where, as QEMU's does.
func (c *cursor) resolve(ctx context.Context, off, end int64) (storage.Mapping, error) {
	var m storage.Mapping
	for depth := range c.d.layers {
		size := c.d.layers[depth].size
		if off >= size { // a backing shorter than its overlay
			break
		}
		var err error
		if m, err = c.layerAt(ctx, depth, off, min(end, size)); err != nil || m.Status.Has(storage.Local) {
			return m, err
		}
		end = m.End()
	}
	m.Status = m.Status&^storage.Local | storage.Zero
	return m, nil
}

// layerAt returns what one layer says from off, cut at end. A read does not ask
// a layer for holes whose bytes it can read as well.
func (c *cursor) layerAt(ctx context.Context, depth int, off, end int64) (storage.Mapping, error) {
	if direct := c.d.layers[depth].direct; direct != nil && !c.wide {
		if node, at, ok := direct.Direct(off, end-off); ok {
			const data = storage.Local | storage.Alloc | storage.OffsetValid
			return storage.Mapping{Offset: off, Length: end - off, Node: node, NodeOffset: at, Depth: int16(depth), Status: data}, nil
		}
	}
	i, err := c.locate(ctx, depth, off, end)
	if err != nil {
		return storage.Mapping{}, err
	}
	m := *c.lists[depth].At(i)
	m.Clip(off, end)
	m.Depth = int16(depth)
	return m, nil
}

// locate is the index of the mapping at off in a layer's list, which is fetched
// anew, for as much of [off, end) as one fetch takes, if it has none.
func (c *cursor) locate(ctx context.Context, depth int, off, end int64) (int, error) {
	i := c.find(depth, off)
	if i < 0 {
		if err := c.fetch(ctx, depth, off, end-off); err != nil {
			return 0, err
		}
		i = c.find(depth, off)
	}
	c.at[depth] = i
	return i, nil
}

// fetch fills a layer's list from off; on success it has a mapping there.
func (c *cursor) fetch(ctx context.Context, depth int, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list := &c.lists[depth]
	if c.wide {
		list.Reset()
		n = min(n, fetchWindow)
	} else {
		list.ResetWindow(off, off+n)
	}
	c.at[depth] = 0
	err := c.d.layers[depth].Fetch(ctx, off, n, list)
	if err == nil && list.Find(off) < 0 {
		err = storage.CheckFetch(list, off, n, c.d.layers[depth].size)
	}
	if err != nil {
		list.Reset()
	}
	return err
}

// find is the index of the mapping at off in a layer's list, or -1. Going
// upwards it is the one after the last.
func (c *cursor) find(depth int, off int64) int {
	list := &c.lists[depth]
	if list.Len() == 0 || off < list.Start() || off >= list.End() {
		return -1
	}
	for i := c.at[depth]; i < list.Len() && i < c.at[depth]+2; i++ {
		if m := list.At(i); m.Offset <= off && off < m.End() {
			return i
		}
	}
	return list.Find(off)
}
