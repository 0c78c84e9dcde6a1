package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolt "go.etcd.io/bbolt/errors"

	"github.com/extentd/extentd/storage"
)

// version says what the buckets look like.
const version = "1"

// lockWait is how long an open waits for another process to let go.
const lockWait = 2 * time.Second

var errDamaged = errors.New("the database is damaged")

const (
	bucketAbout = "about"
	keyVersion  = "version"
)

// openDatabase opens the database in dir, or makes it.
func openDatabase(dir string) (*bbolt.DB, error) {
	above, err := makeDir(dir)
	if err != nil {
		return nil, err
	}
	db, err := openFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	for at := dir; err == nil; at = filepath.Dir(at) { // that the file is there must be durable, too
		if err = syncDir(at); at == above {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// openFile opens the file, which is mapped into memory: one that is damaged, or
// cut short, is an error and not the end of the process.
func openFile(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, errDamaged
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, NoStatistics: true})
	if errors.Is(err, bolt.ErrTimeout) {
		return nil, fmt.Errorf("%w: another extentd uses this state directory", storage.ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	if err := settle(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// settle makes sure that the database is of this version. A new one becomes so.
func settle(db *bbolt.DB) error {
	isNew := false
	err := db.View(func(tx *bbolt.Tx) error {
		info, err := os.Stat(db.Path())
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return fmt.Errorf("%w: %d bytes are missing", errDamaged, tx.Size()-info.Size())
		}
		about := tx.Bucket([]byte(bucketAbout))
		if about == nil {
			first, _ := tx.Cursor().First()
			isNew = first == nil
		}
		var v []byte
		if about != nil {
			v = about.Get([]byte(keyVersion))
		}
		if !isNew && string(v) != version {
			return fmt.Errorf("%w: version is %q, must be %q", storage.ErrUnsupported, v, version)
		}
		return nil
	})
	if err != nil || !isNew {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		about, err := tx.CreateBucket([]byte(bucketAbout))
		if err != nil {
			return err
		}
		return about.Put([]byte(keyVersion), []byte(version))
	})
}

// makeDir makes a directory, and returns the one above that was there already.
func makeDir(dir string) (above string, err error) {
	above = filepath.Dir(dir)
	for {
		if _, err := os.Stat(above); err == nil || above == filepath.Dir(above) {
			break
		}
		above = filepath.Dir(above)
	}
	return above, os.MkdirAll(dir, 0o700)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
