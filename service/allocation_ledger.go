package service

import (
	"fmt"
	"sync"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// A ledger has all allocations, by the file that they are in. What it promises
// across restarts rests on the order of its records: one is durable before the
// allocation is anybody's; that a part may be mapped is durable before the map
// changes; and that blocks are no longer an allocation's is durable before they
// are freed. So the blocks of a record are reserved, or in doubt, and never
// those of two.
type ledger struct {
	store store
	ttl   time.Duration
	boot  string

	// recording is held from when it is decided what the store is to have until
	// it has it: an older record must not replace a newer one, or one that has
	// been dropped. It is taken before mu.
	recording sync.Mutex

	mu       sync.Mutex // protects all below, and what belongs to it; not held during any I/O
	accounts map[fileKey]*account
	byID     map[string]*allocation
	names    map[string]int // how many an image has, by its name
}

// An account is what belongs to one file. Guarded by ledger.mu.
type account struct {
	key         fileKey
	i           *image         // has the file open for writing; nil: none has
	clean       *file.Identity // as it was last closed cleanly; nil: it was not, or has been written to since
	allocations map[string]*allocation
	coming      int // allocations that are being made
}

// newLedger reads what the store has, if there is one.
func newLedger(opt *Options) (*ledger, error) {
	db, ttl := opt.State, opt.AllocationTTL
	if opt.ReadOnly { // nothing is allocated, and what is recorded stays for others
		db = nil
	}
	if ttl <= 0 {
		ttl = defaultAllocationTTL
	}
	l := &ledger{
		store:    store{state: db},
		ttl:      ttl,
		boot:     bootID(),
		accounts: map[fileKey]*account{},
		byID:     map[string]*allocation{},
		names:    map[string]int{},
	}
	kept, err := l.store.load()
	if err != nil {
		return nil, err
	}
	for n := range kept.records {
		l.enter(&allocation{record: kept.records[n]})
	}
	var orphans change
	for key, id := range kept.clean {
		if acc := l.accounts[key]; acc != nil {
			acc.clean = &id
		} else {
			orphans.dirty = append(orphans.dirty, key)
		}
	}
	if err := l.store.apply(&orphans); err != nil {
		return nil, err
	}
	return l, nil
}

// fileOf is the file of an image, whatever its name leads to now.
func fileOf(i *image) fileKey { return i.chain.bases[0].account() }

// bootOf says until when what was written to the image, and not synced, is
// certain to be there: until the machine stops, or for as long as a graph is open
// that keeps it to itself.
func (l *ledger) bootOf(i *image) string {
	b := i.chain.bases[0]
	if g := b.shared.graph; g != nil && (b.file == nil || !g.through()) {
		return "graph-" + g.epoch
	}
	return l.boot
}

// account is that of a file, made if need be. l.mu must be held.
func (l *ledger) account(key fileKey) *account {
	acc := l.accounts[key]
	if acc == nil {
		acc = &account{key: key, allocations: map[string]*allocation{}}
		l.accounts[key] = acc
	}
	return acc
}

// enter puts an allocation where it is found. l.mu must be held.
func (l *ledger) enter(a *allocation) {
	a.account = l.account(a.File.key())
	a.account.allocations[a.ID] = a
	l.byID[a.ID] = a
	l.names[a.Image]++
}

// strike takes an allocation from where it is found. l.mu must be held.
func (l *ledger) strike(a *allocation) {
	delete(a.account.allocations, a.ID)
	delete(l.byID, a.ID)
	if l.names[a.Image]--; l.names[a.Image] == 0 {
		delete(l.names, a.Image)
	}
	l.tidy(a.account)
}

// tidy forgets an account that has nothing. l.mu must be held.
func (l *ledger) tidy(acc *account) {
	if acc.i == nil && len(acc.allocations) == 0 && acc.coming == 0 {
		delete(l.accounts, acc.key)
	}
}

// has reports whether there may be allocations of the image.
func (l *ledger) has(image string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.names[image] > 0
}

// find is a live allocation of the image that h has open. l.mu must be held.
func (l *ledger) find(h *Handle, id string) (*allocation, error) {
	a := l.byID[id]
	if a == nil || a.Image != h.name || a.i != h.image {
		return nil, fmt.Errorf("allocation %q of image %q: %w", id, h.name, storage.ErrNotFound)
	}
	return a, nil
}

// renew makes an allocation live on. l.mu must be held.
func (l *ledger) renew(a *allocation) {
	a.Expires = l.expiry()
	a.late = true
}

func (l *ledger) expiry() time.Time { return time.Now().Add(l.ttl).UTC().Round(0) }

// drop makes it durable that allocations, which have been struck, are no more.
// Before that their blocks must not be freed. On an error they are back.
func (l *ledger) drop(struck ...*allocation) error {
	err := l.record(func(c *change) { c.remove(struck) })
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, a := range struck {
			l.enter(a)
		}
	}
	return err
}

// record makes durable what decide, which is called with l.mu held, puts into the
// change.
func (l *ledger) record(decide func(c *change)) error {
	l.recording.Lock()
	defer l.recording.Unlock()
	var c change
	l.mu.Lock()
	decide(&c)
	l.mu.Unlock()
	return l.store.apply(&c)
}

// update puts the records of those that have not been struck.
func (l *ledger) update(c *change, all ...*allocation) {
	for _, a := range all {
		if l.byID[a.ID] == a {
			a.late = false
			c.put = append(c.put, a.current())
		}
	}
}

func (c *change) remove(all []*allocation) {
	for _, a := range all {
		c.drop = append(c.drop, a.ID)
	}
}
