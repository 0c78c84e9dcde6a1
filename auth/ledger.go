package auth

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

const (
	maxTickets       = 100_000 // that live at a time
	maxTicketsMinter = 1_000   // of one minter
	sweepBatch       = 1_000   // that are removed in one change
)

// The buckets of tickets in the state: one, which has the key and another one, of
// records by id.
const (
	bucketTickets = "tickets"
	bucketLive    = "live"
	keyName       = "key"
)

// A record is a ticket that lives. All but revoked stays as it was written.
type record struct {
	note
	source  source
	subject string
	// revoked: nobody can use it, even if it could not be removed.
	revoked atomic.Bool
}

// isOf reports whether the caller minted it, or whoever came before by the same name.
func (r *record) isOf(c *Caller) bool {
	return r.source.kind == c.Kind && r.source.name == c.Name && r.subject == c.Subject
}

// A minter has a number of tickets.
type minter struct {
	kind          Kind
	name, subject string
}

func (r *record) minter() minter { return minter{r.source.kind, r.source.name, r.subject} }

// A ledger knows the tickets that live. What is in the state is in memory, too, so
// that a ticket is found without reading there. Safe for concurrent use.
type ledger struct {
	db  *state.DB
	key atomic.Pointer[ticketKey] // nil until there is one

	mu      sync.RWMutex // protects all below; not held during any I/O
	live    map[string]*record
	minters map[minter]map[string]*record // the same
	ended   []string                      // ids that the state may still have
}

// load reads the state.
func (l *ledger) load(db *state.DB, now time.Time) error {
	l.db = db
	l.live, l.minters = map[string]*record{}, map[minter]map[string]*record{}
	err := db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketTickets))
		if b == nil {
			return nil
		}
		if err := l.loadKey(b.Get([]byte(keyName))); err != nil {
			return err
		}
		live := b.Bucket([]byte(bucketLive))
		if live == nil {
			return nil
		}
		return live.ForEach(func(id, text []byte) error {
			rec, err := decodeRecord(string(id), text)
			if err != nil {
				return err
			}
			if !now.Before(rec.ends()) {
				l.ended = append(l.ended, rec.id)
				return nil
			}
			l.put(rec)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("auth: tickets: %w", err)
	}
	return nil
}

func (l *ledger) loadKey(text []byte) error {
	if len(text) != len(ticketKey{}) {
		return fmt.Errorf("%w: the key has %d bytes", storage.ErrUnsupported, len(text))
	}
	key := ticketKey(text)
	l.key.Store(&key)
	return nil
}

// find is the ticket that lives, nil if there is none.
func (l *ledger) find(id string) *record {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.live[id]
}

// add makes a ticket durable, and returns the key to sign it with, which it makes
// for the first.
func (l *ledger) add(rec *record, now time.Time) (*ticketKey, error) {
	if err := l.reserve(rec, now); err != nil {
		return nil, err
	}
	key := l.key.Load()
	err := l.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucketTickets))
		if err != nil {
			return err
		}
		if key, err = ensureKey(b); err != nil {
			return err
		}
		live, err := b.CreateBucketIfNotExists([]byte(bucketLive))
		if err != nil {
			return err
		}
		text, err := rec.encode()
		if err != nil {
			return err
		}
		return live.Put([]byte(rec.id), text)
	})
	if err != nil {
		rec.revoked.Store(true)
		l.mu.Lock()
		l.drop(rec)
		l.ended = append(l.ended, rec.id) // it may be there nevertheless
		l.mu.Unlock()
		return nil, fmt.Errorf("auth: tickets: %w", err)
	}
	l.key.Store(key)
	return key, nil
}

// ensureKey is the key that the bucket has; it gets one if it has none.
func ensureKey(b *bbolt.Bucket) (*ticketKey, error) {
	var key ticketKey
	if text := b.Get([]byte(keyName)); text != nil {
		if copy(key[:], text) != len(key) || len(text) != len(key) {
			return nil, fmt.Errorf("%w: the key has %d bytes", storage.ErrUnsupported, len(text))
		}
		return &key, nil
	}
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	return &key, b.Put([]byte(keyName), key[:])
}

// reserve gives the ticket a place, if there is one.
func (l *ledger) reserve(rec *record, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own := l.minters[rec.minter()]; len(own) >= maxTicketsMinter {
		for _, old := range own {
			if !now.Before(old.ends()) {
				l.drop(old)
				l.ended = append(l.ended, old.id)
			}
		}
		if len(own) >= maxTicketsMinter {
			return fmt.Errorf("%w: there are %d tickets of this caller, which is the most: revoke some, or wait until they end",
				storage.ErrRefused, maxTicketsMinter)
		}
	}
	if len(l.live) >= maxTickets {
		return fmt.Errorf("%w: there are %d tickets, which is the most", storage.ErrRefused, maxTickets)
	}
	l.put(rec)
	return nil
}

// put and drop keep both maps. l.mu is held.
func (l *ledger) put(rec *record) {
	l.live[rec.id] = rec
	own := l.minters[rec.minter()]
	if own == nil {
		own = map[string]*record{}
		l.minters[rec.minter()] = own
	}
	own[rec.id] = rec
}

func (l *ledger) drop(rec *record) {
	delete(l.live, rec.id)
	own := l.minters[rec.minter()]
	if delete(own, rec.id); len(own) == 0 {
		delete(l.minters, rec.minter())
	}
}

// remove ends a ticket for good. It ends for now whatever becomes of the state, and
// is still found then, to be removed again.
func (l *ledger) remove(rec *record) error {
	rec.revoked.Store(true)
	if err := l.erase([]string{rec.id}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(rec)
	return nil
}

// erase removes records from the state.
func (l *ledger) erase(ids []string) error {
	err := l.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketTickets))
		if b == nil || b.Bucket([]byte(bucketLive)) == nil {
			return nil
		}
		for _, id := range ids {
			if err := b.Bucket([]byte(bucketLive)).Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("auth: tickets: %w", err)
	}
	return nil
}

// sweep removes what has ended.
func (l *ledger) sweep(now time.Time) error {
	l.mu.Lock()
	for _, rec := range l.live {
		if !now.Before(rec.ends()) {
			l.drop(rec)
			l.ended = append(l.ended, rec.id)
		}
	}
	ended := l.ended
	l.ended = nil
	l.mu.Unlock()
	for len(ended) > 0 {
		some := ended[:min(len(ended), sweepBatch)]
		if err := l.erase(some); err != nil {
			l.mu.Lock()
			l.ended = append(l.ended, ended...)
			l.mu.Unlock()
			return err
		}
		ended = ended[len(some):]
	}
	return nil
}

// A storedRecord is a record in the state.
type storedRecord struct {
	Image   string `json:"image"`
	Verbs   Verbs  `json:"verbs"`
	Expires int64  `json:"expires"` // ms since 1970
	Kind    Kind   `json:"kind"`
	Name    string `json:"name,omitempty"`
	Proof   []byte `json:"proof,omitempty"`
	Subject string `json:"subject,omitempty"`
}

func (r *record) encode() ([]byte, error) {
	s := storedRecord{
		Image: r.image, Verbs: r.verbs, Expires: r.expires,
		Kind: r.source.kind, Name: r.source.name, Proof: r.source.proof[:], Subject: r.subject,
	}
	return json.Marshal(&s)
}

func decodeRecord(id string, text []byte) (*record, error) {
	var s storedRecord
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("ticket %q: %w", id, err)
	}
	rec := &record{
		note:    note{id: id, image: s.Image, verbs: s.Verbs, expires: s.Expires},
		source:  source{kind: s.Kind, name: s.Name},
		subject: s.Subject,
	}
	if !rec.valid() || copy(rec.source.proof[:], s.Proof) != len(s.Proof) || len(s.Proof) != len(proof{}) {
		return nil, fmt.Errorf("ticket %q makes no sense", id)
	}
	return rec, nil
}
