package block_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A clusterMapper is a writable layer in memory that does what a format may: it
// has subclusters, shares clusters, packs what is mapped now and then, reuses
// freed clusters as soon as no pin forbids it, and fills them with litter then.
type clusterMapper struct {
	clusterOptions
	node *storage.Node
	file *storagetest.MemFile

	mu       sync.Mutex
	random   *rand.Rand
	size     int64
	entries  []entry
	refs     map[int64]int  // what is mapped, by offset in the node
	reserved map[int64]bool // by offset in the node
	free     []int64
	freed    []freedCluster
	end      int64 // of the node
	epoch    storage.Pin
	pins     map[storage.Pin]int
}

type clusterOptions struct {
	size, cluster, sub int64
	pack               bool // pack one in four whole clusters that are mapped
	short              bool // reserve less than asked for, now and then
	noZero             bool // as qcow2 version 2 with a backing
	seed               uint64
	limits             storage.Limits        // of the node
	fail               func(op string) error // nil: nothing fails
}

// An entry is a cluster of the guest.
type entry struct {
	at     int64 // in the node; 0: no storage
	packed bool
	state  []byte // of each subcluster: 'd'ata, 'z'ero, '-' for deferred
}

type freedCluster struct {
	at    int64
	epoch storage.Pin
}

const litter = 0xee

func newClusterMapper(opt clusterOptions) *clusterMapper {
	c := &clusterMapper{
		clusterOptions: opt, size: opt.size, end: opt.cluster, random: rand.New(rand.NewPCG(opt.seed, 1)),
		refs: map[int64]int{}, reserved: map[int64]bool{}, pins: map[storage.Pin]int{},
	}
	mem := storagetest.MemOptions{Limits: c.limits}
	if c.fail != nil { // a hook costs an allocation
		mem.Hook = func(_ context.Context, op *storagetest.Op) error {
			return c.try(map[storagetest.OpKind]string{storagetest.OpWrite: "write", storagetest.OpRead: "read"}[op.Kind])
		}
	}
	c.file = storagetest.NewMemFileWith(mem)
	c.node = storage.NewNode("clusters", c.file, storage.NodeOptions{Check: true})
	c.grow()
	return c
}

func (c *clusterMapper) grow() {
	for int64(len(c.entries)) < (c.size+c.cluster-1)/c.cluster {
		e := entry{state: make([]byte, c.cluster/c.sub)}
		for i := range e.state {
			e.state[i] = '-'
		}
		c.entries = append(c.entries, e)
	}
}

func (c *clusterMapper) try(op string) error {
	if c.fail == nil {
		return nil
	}
	return c.fail(op)
}

func (c *clusterMapper) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

func (c *clusterMapper) Close() error      { return nil }
func (c *clusterMapper) PackedUnit() int64 { return c.cluster }
func (c *clusterMapper) Units() storage.Units {
	return storage.Units{Alloc: c.cluster, Data: c.sub}
}

func (c *clusterMapper) Unpack(dst, src []byte) error {
	return (*tableMapper)(nil).Unpack(dst, src)
}

func (c *clusterMapper) Pin() storage.Pin {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins[c.epoch]++
	return c.epoch
}

func (c *clusterMapper) Unpin(p storage.Pin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pins[p]--; c.pins[p] == 0 {
		delete(c.pins, p)
	} else if c.pins[p] < 0 {
		panic("a pin was returned twice")
	}
}

func (c *clusterMapper) Fetch(_ context.Context, off, n int64, into *storage.ExtentList) error {
	if err := c.try("fetch"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := storage.CheckRange(off, n, c.size); err != nil || n == 0 {
		return fmt.Errorf("%w: fetch of %d at %d", storage.ErrOutOfRange, n, off)
	}
	first := max(off/c.cluster-2, 0)
	last := min((off+n-1)/c.cluster+2, int64(len(c.entries))-1)
	for k := first; k <= last; k++ {
		if err := c.say(k, into); err != nil {
			return err
		}
	}
	return nil
}

func (c *clusterMapper) say(k int64, into *storage.ExtentList) error {
	e, guest := &c.entries[k], k*c.cluster
	if e.packed {
		return into.Add(storage.Mapping{
			Offset: guest, Length: min(c.cluster, c.size-guest), Node: c.node, NodeOffset: e.at,
			PackedLength: int32(c.cluster), Status: storage.Local | storage.Alloc, Flags: storage.Compressed,
		})
	}
	for i, state := range e.state {
		at := int64(i) * c.sub
		if guest+at >= c.size {
			break
		}
		m := storage.Mapping{Offset: guest + at, Length: min(c.sub, c.size-guest-at)}
		switch state {
		case 'd':
			m.Status = storage.Local
		case 'z':
			m.Status = storage.Local | storage.Zero
		}
		if e.at > 0 {
			m.Status |= storage.Alloc | storage.OffsetValid
			m.Node, m.NodeOffset, m.Flags = c.node, e.at+at, storage.ZeroTail
			if c.refs[e.at] == 1 {
				m.Flags |= storage.Writable
			}
		}
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return nil
}

func (c *clusterMapper) CheckWrite(_ context.Context, node *storage.Node, off, n int64) error {
	if err := c.try("check"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := off &^ (c.cluster - 1); at < off+n; at += c.cluster {
		if node != c.node || !c.reserved[at] && c.refs[at] != 1 {
			return fmt.Errorf("%w: a write to %d, which has %d references", storage.ErrCorrupt, at, c.refs[at])
		}
	}
	return nil
}

func (c *clusterMapper) Flush(context.Context) error { return c.try("flush") }
