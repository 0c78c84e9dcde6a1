package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// storeFile is the file of the store in its directory.
const storeFile = "allocations.db"

// storeVersion says what the records look like.
const storeVersion = "1"

// storeWait is how long an open waits for another process to let go.
const storeWait = 2 * time.Second

// The buckets of the store.
const (
	bucketAbout       = "about"       // the version
	bucketAllocations = "allocations" // record by ID
	bucketClean       = "clean"       // cleanRecord by file
)

// A store keeps the records of allocations across restarts. What apply has
// returned from without an error is durable. Without a directory it keeps
// nothing. One process at a time has it. Safe for concurrent use.
type store struct {
	dir string // "": nothing is kept

	mu     sync.Mutex // protects all below; held while the database is opened
	db     *bbolt.DB  // nil until there is something to keep
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
// [storage.ErrBusy] where another process has the store.
func (s *store) load() (stored, error) {
	out := stored{clean: map[fileKey]file.Identity{}}
	if s.dir == "" {
		return out, nil
	}
	if _, err := os.Stat(filepath.Join(s.dir, storeFile)); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	db, err := s.open()
	if err != nil {
		return out, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket([]byte(bucketAbout)).Get([]byte("version")); string(v) != storeVersion {
			return fmt.Errorf("%w: version %q", storage.ErrUnsupported, v)
		}
		err := tx.Bucket([]byte(bucketAllocations)).ForEach(func(_, v []byte) error {
			var r record
			if err := json.Unmarshal(v, &r); err != nil {
				return err
			}
			if err := r.check(); err != nil {
				return err
			}
			out.records = append(out.records, r)
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketClean)).ForEach(func(_, v []byte) error {
			var c cleanRecord
			if err := json.Unmarshal(v, &c); err != nil {
				return err
			}
			out.clean[c.File.key()] = c.Identity
			return nil
		})
	})
	if err != nil {
		return out, fmt.Errorf("service: state: %s: %w", storeFile, err)
	}
	return out, nil
}

// apply makes a change durable, all of it or nothing.
func (s *store) apply(c *change) error {
	if s.dir == "" || len(c.put)+len(c.drop)+len(c.clean)+len(c.dirty) == 0 {
		return nil
	}
	db, err := s.open()
	if err != nil {
		return err
	}
	if err := db.Update(c.write); err != nil {
		s.mu.Lock()
		s.doubt = true
		s.mu.Unlock()
		return fmt.Errorf("service: state: %s: %w", storeFile, bareError(err))
	}
	return nil
}

// failed reports whether what the store has may be older, or newer, than what it
// was given.
func (s *store) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt || s.closed
}

func (c *change) write(tx *bbolt.Tx) error {
	allocations, clean := tx.Bucket([]byte(bucketAllocations)), tx.Bucket([]byte(bucketClean))
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

// open is the database, which it opens, or creates, at the first call.
func (s *store) open() (*bbolt.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, fmt.Errorf("service: state: %w", storage.ErrClosed)
	case s.db != nil:
		return s.db, nil
	}
	db, err := openDatabase(s.dir)
	if err != nil {
		return nil, fmt.Errorf("service: state: %s: %w", storeFile, bareError(err))
	}
	s.db = db
	return db, nil
}

func openDatabase(dir string) (*bbolt.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(filepath.Join(dir, storeFile), 0o600, &bbolt.Options{Timeout: storeWait, NoStatistics: true})
	if errors.Is(err, bbolt.ErrTimeout) { //nolint:staticcheck // its new home is another package of the same module
		return nil, fmt.Errorf("%w: another extentd uses this state directory", storage.ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketAbout, bucketAllocations, bucketClean} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		about := tx.Bucket([]byte(bucketAbout))
		if v := about.Get([]byte("version")); v != nil {
			return nil
		}
		return about.Put([]byte("version"), []byte(storeVersion))
	})
	if err == nil {
		err = errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))) // that the file is there must be durable too
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// bareError is err without the path of the host that the operating system's
// errors name.
func bareError(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// close lets go of the file. What is applied after it fails with
// [storage.ErrClosed].
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.db == nil {
		return nil
	}
	db := s.db
	s.db = nil
	return db.Close()
}
