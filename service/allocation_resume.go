package service

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
)

// A resumption is the taking up of what an earlier session, or an earlier opening
// of the file, has reserved.
type resumption struct {
	l         *ledger
	h         *Handle
	unchanged bool          // the file is as we closed it
	change    change        // to be recorded before anything is freed
	keep      []*allocation // to be live
	reap      []*allocation // to be given back
	claims    []*allocation // to be live, of anchored blocks
	lost      []*allocation // gone
}

// resume takes up the allocations of the file that h has just begun to write to,
// before anybody else can reserve or free anything in it. What cannot be proven
// to be as it was is gone; where its blocks are still reserved, they have leaked.
// An error says that the image must be opened anew; then all is as before.
func (s *Service) resume(ctx context.Context, h *Handle) error {
	l := s.ledger
	l.mu.Lock()
	before := l.account(fileOf(h.image)).i
	l.mu.Unlock()
	if before != nil && before != h.image {
		if err := s.detach(before); err != nil {
			return err
		}
	}
	r := l.resumption(h)
	err := r.run(ctx)
	if err != nil {
		r.cancel()
	}
	return err
}

// resumption sorts what is recorded for the file.
func (l *ledger) resumption(h *Handle) *resumption {
	r := &resumption{l: l, h: h}
	l.mu.Lock()
	defer l.mu.Unlock()
	acc := l.account(fileOf(h.image))
	acc.i = h.image
	r.strays(acc)
	if acc.clean != nil {
		r.unchanged = sameState(*acc.clean, h.chain.bases[0].identity)
		r.change.dirty = append(r.change.dirty, acc.key)
		acc.clean = nil
	}
	now, boot := time.Now(), l.bootOf(h.image)
	for _, a := range acc.allocations {
		// What was filled and not synced is there if the machine has not
		// stopped since.
		certain := r.unchanged || boot != "" && a.Boot == boot
		over := a.Doomed || !certain || !a.Expires.After(now)
		switch {
		case !a.idle(): // through the image that is out of service: nobody knows when that ends
			r.lost = append(r.lost, a)
		case a.Guest != nil && over:
			r.lost = append(r.lost, a)
		case a.Guest != nil:
			r.claims = append(r.claims, a)
		case over:
			r.reap = append(r.reap, a)
		default:
			r.keep = append(r.keep, a)
		}
	}
	return r
}

// strays are recorded under the name of the image for another file: for this
// one, if only the file system's number has changed, as a reboot may do; else
// the image has been replaced. l.mu must be held.
func (r *resumption) strays(acc *account) {
	for _, a := range r.l.byID {
		if a.Image != r.h.name || a.account == acc || a.i != nil || a.account.i != nil {
			continue
		}
		from := a.account
		if from.key.device || acc.key.device || from.key.ino != acc.key.ino || from.key.graph != acc.key.graph {
			r.lost = append(r.lost, a)
			continue
		}
		if acc.clean == nil {
			acc.clean = from.clean
		}
		r.change.dirty = append(r.change.dirty, from.key)
		r.l.strike(a)
		a.File = storeKey(acc.key)
		r.l.enter(a)
		a.late = true
	}
}

// sameState reports whether a file is as it was. The number of the file system
// may change with a reboot; a block device does not tell.
func sameState(was, is file.Identity) bool {
	was.Dev = is.Dev
	return !is.Device && was == is
}

func (r *resumption) run(ctx context.Context) error {
	slices.SortFunc(r.keep, older)
	if err := r.adopt(ctx, &r.keep); err != nil {
		return err
	}
	if err := r.adopt(ctx, &r.reap); err != nil {
		return err
	}
	if err := r.reclaim(ctx); err != nil {
		return err
	}
	r.change.remove(slices.Concat(r.lost, r.reap))
	if err := r.l.record(func(c *change) { *c = r.change }); err != nil {
		return err
	}
	r.finish()
	for _, a := range r.reap {
		r.h.s.report(a.Image, a.free(context.WithoutCancel(ctx), nil)) // they have leaked at worst
	}
	return nil
}

// adopt reserves the blocks of all again. Those that cannot be leave the list.
func (r *resumption) adopt(ctx context.Context, all *[]*allocation) error {
	var adopted []*allocation
	err := r.adoptSome(ctx, *all, &adopted)
	*all = adopted
	return err
}

// adoptSome halves what is refused until it has found what it is refused for: a
// proof reads all metadata, and so is asked for as few times as possible.
func (r *resumption) adoptSome(ctx context.Context, some []*allocation, adopted *[]*allocation) error {
	if len(some) == 0 {
		return nil
	}
	err := r.adoptAll(ctx, some)
	switch {
	case err == nil:
		*adopted = append(*adopted, some...)
		return nil
	case !errors.Is(err, storage.ErrConflict):
		return err
	case len(some) == 1:
		r.lost = append(r.lost, some[0])
		return nil
	}
	half := len(some) / 2
	if err := r.adoptSome(ctx, some[:half], adopted); err != nil {
		return err
	}
	return r.adoptSome(ctx, some[half:], adopted)
}

func (r *resumption) adoptAll(ctx context.Context, some []*allocation) error {
	adopter, can := r.h.chain.layers[0].Mapper.(storage.Adopter)
	if !can {
		return storage.ErrConflict
	}
	node := r.h.chain.layers[0].node
	var blocks []storage.Blocks
	for _, a := range some {
		a.d, a.node = r.h.device, node
		blocks = append(blocks, a.blocks(node)...)
	}
	if len(blocks) == 0 { // all is mapped
		return nil
	}
	return adopter.Adopt(ctx, blocks, !r.unchanged)
}

// reclaim claims again what was, if the blocks are still the same.
func (r *resumption) reclaim(ctx context.Context) error {
	var claimed []*allocation
	for _, a := range r.claims {
		same, err := a.reclaim(ctx, r.h.device, r.h.chain.layers[0].node)
		if err != nil {
			return err
		}
		if same {
			claimed = append(claimed, a)
		} else {
			a.unclaim()
			r.lost = append(r.lost, a)
		}
	}
	r.claims = claimed
	return nil
}

// reclaim reports whether the image has the blocks of a claim where it had them.
func (a *allocation) reclaim(ctx context.Context, d *block.Device, node *storage.Node) (same bool, err error) {
	a.d, a.node = d, node
	for _, part := range a.Spent.rest(a.Length) {
		off := *a.Guest + part.Offset
		n := min(part.Length, d.Size()-off)
		if n <= 0 {
			return false, nil
		}
		c, err := d.Claim(ctx, off, n)
		if refused(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		a.claims = append(a.claims, c)
		var runs []storage.Blocks
		for _, b := range c.Blocks() {
			runs = append(runs, b.Blocks)
		}
		got := extentsOf(runs)
		for i := range got {
			got[i].Offset += part.Offset
		}
		if !slices.Equal(got, a.pieces(part)) {
			return false, nil
		}
	}
	return true, nil
}

func (a *allocation) unclaim() {
	for _, c := range a.claims {
		c.Release()
	}
	a.claims = nil
}

// refused reports whether an error says that the state does not allow what was
// asked for, and that nothing was done: not that something failed.
func refused(err error) bool {
	for _, is := range []error{
		storage.ErrConflict, storage.ErrUnsupported, storage.ErrOutOfRange,
		storage.ErrMisaligned, storage.ErrInvalid, storage.ErrReadOnly,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// finish makes live what was taken up, and forgets the rest.
func (r *resumption) finish() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for _, a := range slices.Concat(r.lost, r.reap) {
		r.l.strike(a)
	}
	for _, a := range slices.Concat(r.keep, r.claims) {
		a.i = r.h.image
		a.Boot, a.late = r.l.bootOf(a.i), true
		r.h.s.holdImage(a.i)
	}
}

// cancel makes all dormant again.
func (r *resumption) cancel() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for _, a := range r.claims {
		a.unclaim()
	}
	acc := r.l.account(fileOf(r.h.image))
	acc.i = nil
	r.l.tidy(acc)
}

// closing is called when an image that was written to has been closed, but not
// its files. What the file is like then tells the next opening whether somebody
// else has changed it.
func (l *ledger) closing(i *image, clean bool) error {
	l.mu.Lock()
	acc := l.accounts[fileOf(i)]
	if acc == nil || acc.i != nil && acc.i != i {
		l.mu.Unlock()
		return nil
	}
	acc.i = nil
	l.tidy(acc)
	kept := len(acc.allocations) > 0
	l.mu.Unlock()
	b := i.chain.bases[0]
	if !kept || !clean || l.store.failed() || b.file == nil || b.graph != nil && !b.graph.through() {
		return nil
	}
	id, err := settled(i.s.always, b.file.file)
	if err != nil {
		return err
	}
	l.mu.Lock()
	acc.clean = &id
	l.mu.Unlock()
	return l.record(func(c *change) { c.clean = map[fileKey]file.Identity{acc.key: id} })
}
