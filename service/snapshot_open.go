package service

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/extentd/extentd/storage/block"
)

const (
	// keptSnapshots is how many snapshots of an image stay open for who asks next.
	keptSnapshots = 8
	// leastSnapshot and mostSnapshot bound what caches of one get, bytes: its tables,
	// and likewise its decompressed clusters.
	leastSnapshot = 64 << 10
	mostSnapshot  = 4 << 20
)

// openSnapshots are the snapshots of an image that are open.
type openSnapshots struct {
	turn chan struct{} // of one: who has it opens, makes or deletes a snapshot

	mu   sync.Mutex      // protects all below, and the refs of all that are open
	kept []*openSnapshot // the last used first
}

// An openSnapshot is one as it was when it was opened.
type openSnapshot struct {
	i             *image
	ref           string // that it was opened by
	info          Snapshot
	mapper        SnapshotMapper
	device        *block.Device
	mapping, data string // generations
	caches        int64  // what it has of the budget, bytes

	refs int // guarded by openSnapshots.mu: its handles, and one while it is kept
}

func (o *openSnapshots) take(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *openSnapshots) give() { <-o.turn }

// find is the snapshot of the reference, with one more, if it is open.
func (o *openSnapshots) find(ref string) *openSnapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := slices.IndexFunc(o.kept, func(s *openSnapshot) bool { return s.ref == ref })
	if at < 0 {
		return nil
	}
	s := o.kept[at]
	copy(o.kept[1:at+1], o.kept[:at])
	o.kept[0] = s
	s.refs++
	return s
}

// keep adds one that was opened, and lets that go which was not used for longest.
func (o *openSnapshots) keep(s *openSnapshot) error {
	o.mu.Lock()
	s.refs++
	o.kept = slices.Insert(o.kept, 0, s)
	var last *openSnapshot
	if n := len(o.kept); n > keptSnapshots {
		last = o.kept[n-1]
		o.kept = slices.Delete(o.kept, n-1, n)
	}
	o.mu.Unlock()
	if last == nil {
		return nil
	}
	return o.put(last)
}

// put gives a reference back. The last one closes the snapshot.
func (o *openSnapshots) put(s *openSnapshot) error {
	o.mu.Lock()
	s.refs--
	last := s.refs == 0
	o.mu.Unlock()
	if !last {
		return nil
	}
	s.i.s.caches.put(s.caches)
	return s.mapper.Close()
}

// drop lets those go that have an id. It must be called with the turn.
func (o *openSnapshots) drop(id string) {
	for _, s := range o.cut(func(s *openSnapshot) bool { return s.info.ID == id }) {
		s.i.s.report(s.i.name, o.put(s))
	}
}

func (o *openSnapshots) cut(these func(*openSnapshot) bool) []*openSnapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*openSnapshot
	o.kept = slices.DeleteFunc(o.kept, func(s *openSnapshot) bool {
		if !these(s) {
			return false
		}
		out = append(out, s)
		return true
	})
	return out
}

// close lets all go: nobody has the image.
func (o *openSnapshots) close() error {
	var errs []error
	for _, s := range o.cut(func(*openSnapshot) bool { return true }) {
		errs = append(errs, o.put(s))
	}
	return errors.Join(errs...)
}

// openSnapshot opens the snapshot that ref leads to, or finds it open. Errors say
// what it was about.
func (h *Handle) openSnapshot(ctx context.Context, ref string) (*openSnapshot, error) {
	if s := h.snapshots.find(ref); s != nil {
		return s, nil
	}
	keeper, err := h.snapshotKeeper()
	if err != nil {
		return nil, named(h.name, err)
	}
	if err := h.snapshots.take(ctx); err != nil {
		return nil, err
	}
	defer h.snapshots.give()
	if s := h.snapshots.find(ref); s != nil {
		return s, nil
	}
	all, err := keeper.List(ctx)
	if err != nil {
		return nil, named(h.name, err)
	}
	found, err := findSnapshot(all, ref)
	if err != nil {
		return nil, ofSnapshot(h.name, ref, err)
	}
	s, err := h.loadSnapshot(ctx, keeper, found)
	if err != nil {
		return nil, ofSnapshot(h.name, ref, err)
	}
	s.ref = ref
	h.s.report(h.name, h.snapshots.keep(s))
	return s, nil
}

// loadSnapshot opens a snapshot, with a reference to it.
func (i *image) loadSnapshot(ctx context.Context, keeper SnapshotKeeper, info *Snapshot) (_ *openSnapshot, err error) {
	tables := i.s.caches.take(leastSnapshot, mostSnapshot)
	unpacked := i.s.caches.take(leastSnapshot, mostSnapshot)
	s := &openSnapshot{i: i, info: *info, caches: tables + unpacked, refs: 1}
	defer func() {
		if err != nil {
			i.s.caches.put(s.caches)
		}
	}()
	if s.mapper, err = keeper.Open(ctx, info.ID, tables); err != nil {
		return nil, err
	}
	if s.device, err = i.chain.compose(s.mapper, block.Options{UnpackedCache: unpacked, Moving: true}); err != nil {
		return nil, errors.Join(err, s.mapper.Close())
	}
	s.mapping, s.data = i.snapshotGenerations(s.mapper)
	return s, nil
}
