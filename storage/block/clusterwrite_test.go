package block_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

func (c *clusterMapper) Alloc(_ context.Context, n int64, _ storage.AllocOptions) (storage.Blocks, error) {
	if err := c.try("alloc"); err != nil {
		return storage.Blocks{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reclaim()
	n = (n + c.cluster - 1) &^ (c.cluster - 1)
	b := storage.Blocks{Node: c.node, Offset: c.end, Length: n, Zeroed: true}
	if len(c.free) > 0 && c.random.IntN(4) > 0 {
		b = storage.Blocks{Node: c.node, Offset: c.free[0], Length: c.cluster}
		c.free = c.free[1:]
	} else {
		if c.short && n > c.cluster && c.random.IntN(2) == 0 {
			b.Length = c.cluster * (1 + c.random.Int64N(n/c.cluster))
		}
		c.end += b.Length
	}
	for at := b.Offset; at < b.Offset+b.Length; at += c.cluster {
		if c.refs[at] > 0 || c.reserved[at] {
			panic(fmt.Sprintf("cluster %d was free and in use", at))
		}
		c.reserved[at] = true
	}
	return b, nil
}

// reclaim makes free what was freed before every pin that is still out.
func (c *clusterMapper) reclaim() {
	c.freed = slices.DeleteFunc(c.freed, func(f freedCluster) bool {
		for p := range c.pins {
			if p <= f.epoch {
				return false
			}
		}
		c.file.Put(bytes.Repeat([]byte{litter}, int(c.cluster)), f.at)
		c.free = append(c.free, f.at)
		return true
	})
}

func (c *clusterMapper) Free(ctx context.Context, b storage.Blocks) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for at := b.Offset; at < b.Offset+b.Length; at += c.cluster {
		if !c.reserved[at] {
			return fmt.Errorf("%w: cluster %d is not reserved", storage.ErrConflict, at)
		}
	}
	for at := b.Offset; at < b.Offset+b.Length; at += c.cluster {
		delete(c.reserved, at)
		c.file.Put(bytes.Repeat([]byte{litter}, int(c.cluster)), at)
		c.free = append(c.free, at)
	}
	return nil
}

func (c *clusterMapper) Update(ctx context.Context, off, n int64, to storage.Target) error {
	if c.noZero && to.Kind != storage.ToData {
		return fmt.Errorf("%w: zero clusters", storage.ErrUnsupported)
	}
	unit := c.cluster
	if to.Kind == storage.ToData {
		unit = c.sub
	}
	if off%unit != 0 || n%unit != 0 && off+n != c.Size() || n <= 0 {
		return fmt.Errorf("%w: update of %d at %d", storage.ErrContract, n, off)
	}
	for end := off + n; off < end; {
		next := min(off-off%c.cluster+c.cluster, end)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.try("update"); err != nil {
			return err
		}
		if err := c.updateOne(off, next, to); err != nil {
			return err
		}
		to.NodeOffset += next - off
		off = next
	}
	return nil
}

func (c *clusterMapper) updateOne(off, end int64, to storage.Target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[off/c.cluster]
	e.state = slices.Clone(e.state)
	from, until := off%c.cluster/c.sub, (end-off/c.cluster*c.cluster+c.sub-1)/c.sub
	old := e.at
	switch to.Kind {
	case storage.ToAnchored:
		if e.packed || c.refs[e.at] > 1 {
			e.at = 0
		}
		fillState(e.state, 'z')
	case storage.ToZero, storage.ToUnmapped:
		e.at = 0
		fillState(e.state, 'z')
	case storage.ToData:
		at := to.NodeOffset - off%c.cluster
		if to.Node != c.node || at%c.cluster != 0 || !c.reserved[at] && (at != e.at || e.packed || c.refs[at] != 1) {
			return fmt.Errorf("%w: cluster %d cannot be mapped at %d", storage.ErrConflict, at, off)
		}
		whole := from == 0 && (until == int64(len(e.state)) || end == c.size)
		if at != e.at && !whole && e.at != 0 {
			return fmt.Errorf("%w: a part of a cluster that has another one at %d", storage.ErrContract, off)
		}
		if whole && at != e.at {
			fillState(e.state, '-')
		}
		e.at = at
		fillState(e.state[from:until], 'd')
	}
	if e.at != old || e.packed {
		c.replace(old, &e)
	}
	if to.Kind == storage.ToData && c.pack && from == 0 && until == int64(len(e.state)) && c.random.IntN(4) == 0 {
		c.packIn(&e)
	}
	c.entries[off/c.cluster] = e
	c.epoch++
	return nil
}

func fillState(state []byte, b byte) {
	for i := range state {
		state[i] = b
	}
}

// replace moves a reference from the old cluster to the entry's.
func (c *clusterMapper) replace(old int64, e *entry) {
	if old != 0 {
		if c.refs[old]--; c.refs[old] == 0 {
			c.freed = append(c.freed, freedCluster{old, c.epoch})
		}
	}
	if e.at != 0 {
		delete(c.reserved, e.at)
		c.refs[e.at]++
	}
	e.packed = false
}

// packIn moves the data of an entry to a packed cluster: one that was free
// before, if there is any.
func (c *clusterMapper) packIn(e *entry) {
	data := make([]byte, c.cluster)
	_, _ = c.file.Clone().ReadAt(context.Background(), data, e.at) // without a fault; past the end there are zeros
	for i := range data {
		data[i] = ^data[i]
	}
	at := c.end
	c.reclaim()
	if len(c.free) > 0 {
		at, c.free = c.free[0], c.free[1:]
	} else {
		c.end += c.cluster
	}
	c.file.Put(data, at)
	old := e.at
	e.at = at
	c.replace(old, e)
	e.packed = true
}

func (c *clusterMapper) Resize(_ context.Context, size int64, opt storage.ResizeOptions) error {
	if err := c.try("resize"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if size < c.size && !opt.Shrink {
		return storage.ErrInvalid
	}
	was := int64(len(c.entries))
	c.size = size
	for keep := (size + c.cluster - 1) / c.cluster; int64(len(c.entries)) > keep; {
		last := &c.entries[len(c.entries)-1]
		if last.at != 0 {
			c.replace(last.at, &entry{})
		}
		c.entries = c.entries[:len(c.entries)-1]
	}
	c.grow()
	for k := was; k < int64(len(c.entries)) && k*c.cluster < opt.Backing; k++ {
		fillState(c.entries[k].state, 'z')
	}
	c.epoch++
	return nil
}

// share makes every cluster one that a snapshot refers to as well.
func (c *clusterMapper) share() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		if at := c.entries[i].at; at != 0 {
			c.refs[at]++
		}
	}
	c.epoch++
}

// leaks is how many clusters are reserved.
func (c *clusterMapper) leaks() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.reserved)
}

// pinned is how many pins are out.
func (c *clusterMapper) pinned() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pins)
}
