package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"go.etcd.io/bbolt"
	bolt "go.etcd.io/bbolt/errors"

	"github.com/extentd/extentd/storage"
)

// file is the name of the database in its directory.
const file = "state.db"

// A DB is the database of one directory. A nil DB keeps nothing. It is safe for
// concurrent use.
type DB struct {
	dir string // "": nothing is kept

	mu     sync.Mutex // protects all below; held while the database is opened
	db     *bbolt.DB  // nil until there is something to keep, or to be read
	closed bool
	damage error // for good: what it left open nobody can close
}

// New returns the database in dir, which is opened at the first use, and made at
// the first change. With "" nothing is kept.
func New(dir string) *DB { return &DB{dir: dir} }

// Kept reports whether what is put there survives. Otherwise View and Update call
// nothing and return nil: who puts something there remembers it, too.
func (d *DB) Kept() bool { return d != nil && d.dir != "" }

// View calls fn to read, beside others who read, and returns its error. What fn
// reads is as one change left it, and is not to be used after fn returns. If
// nothing has been kept yet, fn is not called. A bucket that nobody has made is
// nil.
//
// An error wraps storage.ErrBusy where another process has the database,
// storage.ErrUnsupported where it is of another version, and storage.ErrClosed
// after Close. None names the directory.
func (d *DB) View(fn func(tx *bbolt.Tx) error) error {
	if !d.Kept() {
		return nil
	}
	db, err := d.open(false)
	if db == nil {
		return err
	}
	return d.call(db.View, fn)
}

// Update calls fn to make a change, one at a time. What fn has done is durable
// when Update returns nil. If fn fails, or panics, it leaves nothing. On another
// error the change may be there after a restart, or not.
//
// Errors are those of View, and storage.ErrNoSpace.
func (d *DB) Update(fn func(tx *bbolt.Tx) error) error {
	if !d.Kept() {
		return nil
	}
	db, err := d.open(true)
	if err != nil {
		return err
	}
	return d.call(db.Update, fn)
}

// Close waits for those who read and change, and lets go of the database. It may
// be called more than once.
func (d *DB) Close() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	d.closed = true
	db := d.db
	d.db = nil
	d.mu.Unlock()
	if db == nil {
		return nil
	}
	return d.failure(db.Close())
}

// open is the database, opened at the first call; nil if there is none and it is
// not to be made.
func (d *DB) open(create bool) (*bbolt.DB, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, fmt.Errorf("state: %w", storage.ErrClosed)
	case d.damage != nil:
		return nil, d.failure(d.damage)
	case d.db != nil:
		return d.db, nil
	}
	if !create {
		if _, err := os.Stat(filepath.Join(d.dir, file)); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	db, err := openDatabase(d.dir)
	if errors.Is(err, errDamaged) {
		d.damage = err
	}
	if err != nil {
		return nil, d.failure(err)
	}
	d.db = db
	return db, nil
}

// call calls fn in a transaction. Its error passes as it is.
func (d *DB) call(run func(func(*bbolt.Tx) error) error, fn func(*bbolt.Tx) error) error {
	var own error
	err := run(func(tx *bbolt.Tx) error {
		own = fn(tx)
		return own
	})
	if own != nil {
		return own
	}
	return d.failure(err)
}

// failure is an error of the database for those who must not see a path of the
// host.
func (d *DB) failure(err error) error {
	var path *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolt.ErrDatabaseNotOpen):
		err = storage.ErrClosed
	case errors.As(err, &path):
		err = path.Err
	case strings.Contains(err.Error(), d.dir): // as text, in what the library says of the operating system's errors
		err = errors.New("the database could not be read or written")
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("state: %s: %w: %w", file, storage.ErrNoSpace, err)
	}
	return fmt.Errorf("state: %s: %w", file, err)
}
