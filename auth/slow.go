package auth

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// freeFailures are what an address has before it is slowed.
	freeFailures = 10
	firstDelay   = 100 * time.Millisecond // doubles with every failure
	maxDelay     = 5 * time.Second
	// forgetAfter is how long after its last failure an address starts anew.
	forgetAfter = 5 * time.Minute
	// maxAddresses bounds the table; some 150 bytes each.
	maxAddresses = 10_000
)

// A brake slows down addresses from which much comes that is wrong. It knows a
// bounded number of them; beyond it those go that failed least. Safe for concurrent
// use.
type brake struct {
	known atomic.Int32 // len(table): where nobody failed, there is no lock to take

	mu    sync.Mutex // protects table
	table map[netip.Addr]*failing
}

// failing is an address that something wrong came from.
type failing struct {
	count int
	last  time.Time
	until time.Time // nothing is looked at before it
}

// bucket is the address that failures are counted for. An IPv6 host has a network
// of 64 bits to choose from. What has no address, such as who comes by a unix
// socket, has one for all.
func bucket(from netip.Addr) netip.Addr {
	from = from.Unmap().WithZone("")
	if !from.Is6() {
		return from
	}
	p, err := from.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// place is the bucket in a log.
func place(from netip.Addr) string {
	if b := bucket(from); b.IsValid() {
		return b.String()
	}
	return "local"
}

// wait is how long the address must wait before anything is looked at.
func (b *brake) wait(from netip.Addr, now time.Time) time.Duration {
	if b.known.Load() == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.table[bucket(from)]
	if f == nil {
		return 0
	}
	return max(0, f.until.Sub(now))
}

// fail counts what was wrong, and reports whether the address is slowed from now
// on and was not before. What comes while it is slowed makes nothing worse: its
// neighbours behind the same address would pay for it.
func (b *brake) fail(from netip.Addr, now time.Time) (slowed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table == nil {
		b.table = make(map[netip.Addr]*failing)
	}
	at := bucket(from)
	f := b.table[at]
	if f == nil {
		if len(b.table) >= maxAddresses {
			b.shrink()
		}
		f = &failing{}
		b.table[at] = f
		b.known.Store(int32(len(b.table)))
	}
	if now.Before(f.until) {
		return false
	}
	if now.Sub(f.last) > forgetAfter {
		f.count = 0
	}
	f.count++
	f.last = now
	over := f.count - freeFailures
	if over < 0 {
		return false
	}
	delay := maxDelay
	if over < 10 { // no shift overflows
		delay = min(maxDelay, firstDelay<<over)
	}
	f.until = now.Add(delay)
	return over == 0
}

// shrink makes room for one: of a few, it forgets the one that failed least. A map
// begins anywhere. b.mu is held.
func (b *brake) shrink() {
	var least netip.Addr
	few, count := 0, 0
	for at, f := range b.table {
		if few == 0 || f.count < count {
			least, count = at, f.count
		}
		if few++; few == 16 {
			break
		}
	}
	delete(b.table, least)
}

// sweep forgets those that have not failed for long.
func (b *brake) sweep(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at, f := range b.table {
		if now.Sub(f.last) > forgetAfter {
			delete(b.table, at)
		}
	}
	b.known.Store(int32(len(b.table)))
}

// visitors are the last few addresses from which a token was accepted. It goes on
// being accepted from there while others behind the same address guess. Safe for
// concurrent use; what is noted at the same time may be lost.
type visitors struct {
	next atomic.Uint32
	at   [16]atomic.Uint64 // hashes of addresses, 0 for none
}

func visitor(seed maphash.Seed, from netip.Addr) uint64 {
	return max(1, maphash.Comparable(seed, bucket(from)))
}

func (v *visitors) has(hash uint64) bool {
	for i := range v.at {
		if v.at[i].Load() == hash {
			return true
		}
	}
	return false
}

func (v *visitors) note(hash uint64) {
	v.at[(v.next.Add(1)-1)%uint32(len(v.at))].Store(hash)
}
