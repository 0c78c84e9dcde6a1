package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// The buckets of the store.
const (
	bucketAllocations = "allocations" // record by ID
	bucketClean       = "clean"       // cleanRecord by file
)

// A store keeps the records of allocations across restarts. What apply has
// returned from without an error is durable. Without a kept state it keeps
// nothing. Safe for concurrent use.
type store struct {
	state *state.DB // stays open

	mu     sync.Mutex // protects all below
	closed bool
	doubt  bool // a change failed, and may yet be there
}

// A change is what is made durable together.
type change struct {
	put  []record
	drop []string // IDs
	// clean is what a file was like when it was last closed cleanly.
	clean map[fileKey]file.Identity
	// dirty are files that no longer are as they were then.
	dirty []fileKey
}

// A cleanRecord is a file as it was closed cleanly.
type cleanRecord struct {
	File     storedKey     `json:"file"`
	Identity file.Identity `json:"identity"`
}

// stored is all that a store keeps.
type stored struct {
	records []record
	clean   map[fileKey]file.Identity
}

// load reads everything. It creates nothing. An error wraps
// [storage.ErrBusy] where another process has the state.
func (s *store) load() (stored, error) {
	out := stored{clean: map[fileKey]file.Identity{}}
	if err := s.state.View(out.read); err != nil {
		return out, fmt.Errorf("service: %w", err)
	}
	return out, nil
}

func (s *stored) read(tx *bbolt.Tx) error {
	err := each(tx, bucketAllocations, func(r *record) error {
		s.records = append(s.records, *r)
		return r.check()
	})
	if err != nil {
		return err
	}
	return each(tx, bucketClean, func(c *cleanRecord) error {
		s.clean[c.File.key()] = c.Identity
		return nil
	})
}

// each calls do for every record of a bucket, which need not be there.
func each[T any](tx *bbolt.Tx, bucket string, do func(*T) error) error {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		var r T
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("state: %s: record %q: %w", bucket, k, err)
		}
		if err := do(&r); err != nil {
			return fmt.Errorf("state: %s: %w", bucket, err)
		}
		return nil
	})
}

// apply makes a change durable, all of it or nothing.
func (s *store) apply(c *change) error {
	if !s.state.Kept() || len(c.put)+len(c.drop)+len(c.clean)+len(c.dirty) == 0 {
		return nil
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("service: state: %w", storage.ErrClosed)
	}
	begun := false
	err := s.state.Update(func(tx *bbolt.Tx) error {
		begun = true
		return c.write(tx)
	})
	if err == nil {
		return nil
	}
	if begun || errors.Is(err, storage.ErrClosed) { // a state that could not be opened is as it was
		s.mu.Lock()
		s.doubt = true
		s.mu.Unlock()
	}
	return fmt.Errorf("service: %w", err)
}

// failed reports whether what the store has may be older, or newer, than what it
// was given.
func (s *store) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt || s.closed
}

func (c *change) write(tx *bbolt.Tx) error {
	allocations, err := tx.CreateBucketIfNotExists([]byte(bucketAllocations))
	if err != nil {
		return err
	}
	clean, err := tx.CreateBucketIfNotExists([]byte(bucketClean))
	if err != nil {
		return err
	}
	for i := range c.put {
		if err := put(allocations, c.put[i].ID, &c.put[i]); err != nil {
			return err
		}
	}
	for _, id := range c.drop {
		if err := allocations.Delete([]byte(id)); err != nil {
			return err
		}
	}
	for key, id := range c.clean {
		if err := put(clean, storeKey(key).String(), &cleanRecord{File: storeKey(key), Identity: id}); err != nil {
			return err
		}
	}
	for _, key := range c.dirty {
		if err := clean.Delete([]byte(storeKey(key).String())); err != nil {
			return err
		}
	}
	return nil
}

func put(b *bbolt.Bucket, key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), text)
}

// close ends the use of the state. What is applied after it fails with
// [storage.ErrClosed].
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}
