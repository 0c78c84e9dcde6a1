package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

// Bounds of what is kept.
const (
	keyTime   = 24 * time.Hour
	maxAnswer = 1 << 20 // of a body, bytes
	// maxKeys and maxKept are for all, keys and bytes. One caller may have half:
	// nobody must keep the others from it.
	maxKeys = 100_000
	maxKept = 256 << 20
	// maxSwept is how many that are over are forgotten for each that comes.
	maxSwept = 16
)

// The buckets of the answers in the state.
const (
	bucketKeys  = "idempotency"       // keptEntry by the digest of caller and key
	bucketUntil = "idempotency-until" // nothing, by when it is over and the same digest
	bucketUsage = "idempotency-usage" // usage by the digest of a caller, and of all

	usageOfAll = "all"
)

// answers are those to requests that have an Idempotency-Key. What keeps a request
// from being done twice is the order: an entry is durable before the handler
// runs, and its answer before the client gets it. An entry without an answer is of
// a request that is under way, or that was when the process ended.
type answers struct {
	db  *state.DB
	now func() time.Time

	mu      sync.Mutex               // protects all below
	flights map[digest]chan struct{} // requests under way; closed at their end
}

func newAnswers(db *state.DB) *answers {
	return &answers{db: db, now: time.Now, flights: map[digest]chan struct{}{}}
}

// An entry is what is known of a request when it comes.
type entry struct {
	id      digest // of the caller and the key
	owner   digest // of the caller, or of whoever minted its ticket
	request digest
}

// A keptEntry is an entry as the state has it.
type keptEntry struct {
	Until   time.Time   `json:"until"`
	Owner   []byte      `json:"owner"`
	Request []byte      `json:"request"`
	Answer  *keptAnswer `json:"answer,omitempty"` // nil: not known
}

type keptAnswer struct {
	Status int               `json:"status"`
	Header map[string]string `json:"header"`
	Body   []byte            `json:"body,omitempty"`
	Large  bool              `json:"large,omitempty"` // its body is not kept
}

// usage is how much is kept.
type usage struct {
	Keys  int64 `json:"keys"`
	Bytes int64 `json:"bytes"`
}

// begin returns the answer that the request got before. If there is none, it
// makes it durable that the request is under way.
func (s *answers) begin(e *entry) (*answer, error) {
	now := s.now()
	var found *keptEntry
	find := func(tx *bbolt.Tx) (err error) {
		found, err = findEntry(tx, e.id)
		if found != nil && !now.Before(found.Until) {
			found = nil
		}
		return err
	}
	if err := s.db.View(find); err != nil {
		return nil, err
	}
	if found == nil {
		err := s.db.Update(func(tx *bbolt.Tx) error {
			if err := find(tx); err != nil || found != nil {
				return err
			}
			return s.enter(tx, e, now)
		})
		if err != nil || found == nil {
			return nil, err
		}
	}
	return found.answerTo(e)
}

// enter makes an entry, if there is room.
func (s *answers) enter(tx *bbolt.Tx, e *entry, now time.Time) error {
	b, err := openBuckets(tx)
	if err != nil {
		return err
	}
	if err := b.sweep(now); err != nil {
		return err
	}
	if err := b.drop(e.id); err != nil { // one that is over, and is not its turn yet
		return err
	}
	all, own, err := b.used(e.owner[:])
	if err != nil {
		return err
	}
	if all.Keys >= maxKeys || all.Bytes >= maxKept || own.Keys >= maxKeys/2 || own.Bytes >= maxKept/2 {
		return fmt.Errorf("%w: as many answers are kept as can be, for %v each: go on without an Idempotency-Key", storage.ErrNoSpace, keyTime)
	}
	return b.put(e, &keptEntry{Until: now.Add(keyTime), Owner: e.owner[:], Request: e.request[:]})
}

// finish makes the answer durable.
func (s *answers) finish(e *entry, a *answer) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := openBuckets(tx)
		if err != nil {
			return err
		}
		if err := b.drop(e.id); err != nil {
			return err
		}
		return b.put(e, &keptEntry{Until: s.now().Add(keyTime), Owner: e.owner[:], Request: e.request[:], Answer: a.kept()})
	})
}

// forget makes the key free.
func (s *answers) forget(e *entry) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := openBuckets(tx)
		if err != nil {
			return err
		}
		return b.drop(e.id)
	})
}

func findEntry(tx *bbolt.Tx, id digest) (*keptEntry, error) {
	b := tx.Bucket([]byte(bucketKeys))
	if b == nil {
		return nil, nil
	}
	text := b.Get(id[:])
	if text == nil {
		return nil, nil
	}
	k := new(keptEntry)
	if err := json.Unmarshal(text, k); err != nil {
		return nil, fmt.Errorf("state: %s: %w", bucketKeys, err)
	}
	return k, nil
}

// answerTo is what an entry that was found says to a request.
func (k *keptEntry) answerTo(e *entry) (*answer, error) {
	switch {
	case !bytes.Equal(k.Request, e.request[:]):
		return nil, errKeyReused
	case k.Answer == nil:
		return nil, errKeyUnknown
	case k.Answer.Large:
		return nil, errKeyLarge
	}
	a := &answer{status: k.Answer.Status, header: http.Header{}, body: k.Answer.Body, again: true}
	for name, value := range k.Answer.Header {
		a.header.Set(name, value)
	}
	return a, nil
}
