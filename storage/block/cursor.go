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
//
// What it finds may be used for I/O until release: from the first look at a
// layer on, it holds a pin there. What it found before it pinned a layer is good
// as long as nothing was writable at that time; else the layer is asked anew.
type cursor struct {
	d       *Device
	lists   []storage.ExtentList // a layer each
	at      []int                // in each list, where the last look-up ended
	holds   []hold               // on each layer
	held    int                  // one more than the deepest layer with a hold
	section uint64               // counts the releases
	wide    bool                 // take what is volunteered; false: the range alone
	loose   bool                 // take no pins, keep the lists: for a map, which leads to no I/O
	size    int64                // of the top layer, where it is not yet the device's; else 0
	units   uint64               // how often packed units had gone when the top layer was pinned
}

// A hold is a cursor's on a layer.
type hold struct {
	taken bool
	pin   storage.Pin // with a pinner
}

func newCursor(d *Device) *cursor {
	n := len(d.layers)
	return &cursor{d: d, lists: make([]storage.ExtentList, n), at: make([]int, n), holds: make([]hold, n)}
}

// cursor takes one from the pool; put gives it back.
func (d *Device) cursor(wide bool) *cursor {
	c := d.cursors.Get().(*cursor)
	c.wide, c.loose, c.size = wide, false, 0
	return c
}

func (c *cursor) put() {
	c.release()
	for i := range c.lists {
		c.lists[i].Reset()
	}
	c.d.cursors.Put(c)
}

// hold makes sure that what is found in a layer may be used until release. Who
// uses something found before, must look at writable after it.
func (c *cursor) hold(depth int) {
	h := &c.holds[depth]
	if h.taken || c.loose {
		return
	}
	h.taken = true
	c.held = max(c.held, depth+1)
	if depth == 0 {
		c.units = c.d.units.gone.Load()
	}
	if p := c.d.layers[depth].pinner; p != nil {
		h.pin = p.Pin()
	}
	if c.d.moves() {
		c.lists[depth].Reset()
	}
}

// release returns the pins: what was found is not to be used from here on.
func (c *cursor) release() {
	for depth := range c.holds[:c.held] {
		h := &c.holds[depth]
		if !h.taken {
			continue
		}
		h.taken = false
		if p := c.d.layers[depth].pinner; p != nil {
			p.Unpin(h.pin)
		}
	}
	c.held = 0
	c.section++
}

// sizeOf is the size of a layer as the cursor sees it.
func (c *cursor) sizeOf(depth int) int64 {
	if depth > 0 {
		return c.d.layers[depth].size
	}
	if c.size > 0 {
		return c.size
	}
	return c.d.Size()
}

// resolve returns what supplies the bytes from off, as far as one mapping goes
// and to end at most. What no layer supplies is Zero, at the depth of the lowest
// layer that reaches there; if that layer has storage reserved for it, the
// mapping says so and where, as QEMU's does.
func (c *cursor) resolve(ctx context.Context, off, end int64) (storage.Mapping, error) {
	var m storage.Mapping
	for depth := range c.d.layers {
		size := c.sizeOf(depth)
		if off >= size { // a backing shorter than its overlay
			if depth == 0 { // or an image that has shrunk
				return m, storage.CheckRange(off, end-off, size)
			}
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
			return storage.Mapping{Offset: off, Length: end - off, Node: node, NodeOffset: at, Depth: int16(depth), Status: plain}, nil
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
	c.hold(depth)
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
		err = storage.CheckFetch(list, off, n, c.sizeOf(depth))
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
