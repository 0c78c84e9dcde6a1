package qcow2

import (
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// pins count who may still use blocks that mappings of the past name. There are
// two counters, one for even epochs and one for odd: the epoch goes on only
// when the counter that it would take up is empty. So what was unmapped in
// epoch e is used by nobody any more from epoch e+2 on.
type pins struct {
	epoch  atomic.Uint64
	counts [2]pinCount
}

// A pinCount has a cache line of its own.
type pinCount struct {
	n atomic.Int64
	_ [56]byte
}

// Pin keeps the blocks that mappings name from now on from being used for
// something else, until it is returned with Unpin.
func (i *Image) Pin() storage.Pin {
	p := &i.pins
	for {
		e := p.epoch.Load()
		n := &p.counts[e&1].n
		n.Add(1)
		if p.epoch.Load() == e {
			return storage.Pin(e)
		}
		n.Add(-1) // counted in an epoch that was over
	}
}

// Unpin returns a pin.
func (i *Image) Unpin(p storage.Pin) { i.pins.counts[p&1].n.Add(-1) }

// advance moves the epoch on as far as the pins allow: at most by two, which is
// enough for everything that was unmapped before. One caller at a time.
func (p *pins) advance() {
	for range 2 {
		next := p.epoch.Load() + 1
		if p.counts[next&1].n.Load() != 0 {
			return
		}
		p.epoch.Store(next)
	}
}

// passed reports whether everyone who had a pin in the epoch has returned it.
func (p *pins) passed(epoch uint64) bool { return p.epoch.Load() >= epoch+2 }
