package cache

// An index knows which block of the node is in which slot of the file. The
// filter's mu must be held for all of it.
type index struct {
	at     map[int64]int // the slot of a block, that is being filled or full
	slots  []slot        // as many as have been used
	most   int64         // how many there may be
	free   []int         // slots that hold nothing
	hand   int           // of the clock: where the next victim is looked for
	broken int           // slots that are

	evictions int64
	cached    int64 // bytes in full slots
}

// A slot is room for a block in the file. It is in one of these states: free;
// being filled, with a fill; full, with a length; or broken, and then it is never
// used again. One that was dropped is in the index no more, and becomes free when
// who fills or reads it is done.
type slot struct {
	block   int64
	length  int64 // of the block's bytes: less than a block where the node ends
	fill    *fill
	readers int  // who read it from the file now: it is pinned
	used    bool // since the hand came by
	dropped bool
	broken  bool
}

// A fill is a run of blocks on its way from the node into slots.
type fill struct {
	first int64 // block
	slots []int // of this block and those that follow it
	done  chan struct{}
}

func newIndex(most int64) index { return index{at: map[int64]int{}, most: most} }

// claim takes slots for the missing blocks [first, end), until it meets one that
// is not missing, or no slot can be had. It returns nil if there is none for
// the first.
func (x *index) claim(first, end int64) *fill {
	var run *fill
	for b := first; b < end && !x.has(b); b++ {
		at, ok := x.take()
		if !ok {
			break
		}
		if run == nil {
			run = &fill{first: first, done: make(chan struct{})}
		}
		x.slots[at] = slot{block: b, fill: run}
		x.at[b] = at
		run.slots = append(run.slots, at)
	}
	return run
}

func (x *index) has(block int64) bool {
	_, has := x.at[block]
	return has
}

// missing is how many of the blocks [first, end) from the first on are not there.
func (x *index) missing(first, end int64) int64 {
	b := first
	for b < end && !x.has(b) {
		b++
	}
	return b - first
}

// take returns an empty slot: a free one, a new one, or that of a block that was
// not used since the clock's hand came by.
func (x *index) take() (at int, ok bool) {
	if last := len(x.free) - 1; last >= 0 {
		at, x.free = x.free[last], x.free[:last]
		return at, true
	}
	if int64(len(x.slots)) < x.most {
		x.slots = append(x.slots, slot{})
		return len(x.slots) - 1, true
	}
	if x.broken == len(x.slots) {
		return 0, false
	}
	for range 2 * len(x.slots) {
		at = x.hand
		x.hand = (x.hand + 1) % len(x.slots)
		switch s := &x.slots[at]; {
		case s.broken || s.dropped || s.fill != nil || s.readers > 0:
		case s.used:
			s.used = false
		default:
			delete(x.at, s.block)
			x.cached -= s.length
			x.evictions++
			return at, true
		}
	}
	return 0, false
}

// publish ends a fill of a slot: it is full then, with the length, unless that is
// 0 or what it was filled with is stale by now.
func (x *index) publish(at int, length int64) {
	s := &x.slots[at]
	s.fill = nil
	switch {
	case s.dropped:
		x.release(at)
	case length == 0:
		x.drop(at)
	default:
		s.length = length
		x.cached += length
	}
}

// drop takes a slot out of the index: nobody finds it from now on.
func (x *index) drop(at int) {
	s := &x.slots[at]
	if s.dropped {
		return
	}
	s.dropped = true
	delete(x.at, s.block)
	x.cached -= s.length
	s.length = 0
	x.release(at)
}

// release makes a dropped slot free if nobody uses it any more.
func (x *index) release(at int) {
	s := &x.slots[at]
	if !s.dropped || s.fill != nil || s.readers > 0 || s.broken {
		return
	}
	*s = slot{dropped: true} // the hand passes it
	x.free = append(x.free, at)
}

// unpin ends a read of a slot.
func (x *index) unpin(at int) {
	x.slots[at].readers--
	x.release(at)
}

// retire drops a slot of which the file has failed, for ever.
func (x *index) retire(at int) {
	if s := &x.slots[at]; !s.broken {
		s.broken = true
		x.broken++
	}
	x.drop(at)
}

// forget drops the blocks [lo, hi), also those that are being filled.
func (x *index) forget(lo, hi int64) {
	if hi-lo > int64(len(x.at)) {
		for b, at := range x.at {
			if b >= lo && b < hi {
				x.drop(at)
			}
		}
		return
	}
	for b := lo; b < hi; b++ {
		if at, ok := x.at[b]; ok {
			x.drop(at)
		}
	}
}
