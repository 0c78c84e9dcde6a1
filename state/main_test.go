package state_test

import (
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open is the database in dir until the end of the test.
func open(t *testing.T, dir string) *state.DB {
	t.Helper()
	d := state.New(dir)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func closed(t *testing.T, d *state.DB) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// put is a change.
func put(key, value string) func(tx *bbolt.Tx) error {
	return func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("test"))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), []byte(value))
	}
}

// get is what is there, "" for nothing.
func get(t *testing.T, d *state.DB, key string) (value string) {
	t.Helper()
	err := d.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte("test")); b != nil {
			value = string(b.Get([]byte(key)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}
