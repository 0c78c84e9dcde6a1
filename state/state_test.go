package state_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func TestNothingKept(t *testing.T) {
	for name, d := range map[string]*state.DB{"nil": nil, "no directory": state.New("")} {
		fail := func(*bbolt.Tx) error { return errors.New("it was called") }
		if d.Kept() || d.View(fail) != nil || d.Update(fail) != nil || d.Close() != nil {
			t.Errorf("%s: something is kept", name)
		}
	}
}

// Nothing is made before the first change. What is made is for its user alone,
// and there after a restart.
func TestKept(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "new", "state")
	d := open(t, dir)
	if err := d.View(func(*bbolt.Tx) error { return errors.New("it was called") }); err != nil || !d.Kept() {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
		t.Fatalf("%v was made, %v", entries, err)
	}
	if err := d.Update(put("a", "1")); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]fs.FileMode{filepath.Dir(dir): 0o700, dir: 0o700, filepath.Join(dir, "state.db"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if get(t, d, "a") != "1" {
		t.Error("what was put is not there")
	}
	closed(t, d)
	again := open(t, dir)
	if get(t, again, "a") != "1" {
		t.Error("it is gone after a restart")
	}
	if err := again.Update(put("a", "2")); err != nil || get(t, again, "a") != "2" {
		t.Error("it was not changed", err)
	}
}

// A change that fails, or panics, leaves nothing, and its error is as it was.
func TestChangeFails(t *testing.T) {
	d := open(t, t.TempDir())
	if err := d.Update(put("a", "1")); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("cause")
	err := d.Update(func(tx *bbolt.Tx) error { return errors.Join(put("a", "2")(tx), cause) })
	if !errors.Is(err, cause) || err.Error() != "cause" || get(t, d, "a") != "1" {
		t.Errorf("%v, %q", err, get(t, d, "a"))
	}
	if err := d.View(func(*bbolt.Tx) error { return cause }); err != cause { //nolint:errorlint // it is the very same
		t.Error(err)
	}
	func() {
		defer func() {
			if p := recover(); p != "so it is" {
				t.Errorf("panic: %v", p)
			}
		}()
		_ = d.Update(func(tx *bbolt.Tx) error {
			_ = put("a", "3")(tx)
			panic("so it is")
		})
	}()
	if err := d.Update(put("b", "1")); err != nil || get(t, d, "a") != "1" {
		t.Errorf("after the panic: %v, %q", err, get(t, d, "a"))
	}
}

func TestClosed(t *testing.T) {
	d := open(t, t.TempDir())
	if err := d.Update(put("a", "1")); err != nil {
		t.Fatal(err)
	}
	closed(t, d)
	closed(t, d)
	nothing := func(*bbolt.Tx) error { return nil }
	if err := d.Update(nothing); !errors.Is(err, storage.ErrClosed) {
		t.Error(err)
	}
	if err := d.View(nothing); !errors.Is(err, storage.ErrClosed) {
		t.Error(err)
	}
}

// One user at a time. The next one has it when the first lets go.
func TestBusy(t *testing.T) {
	dir := t.TempDir()
	d, rival := open(t, dir), open(t, dir)
	if err := d.Update(put("a", "1")); err != nil {
		t.Fatal(err)
	}
	if err := rival.Update(put("a", "2")); !errors.Is(err, storage.ErrBusy) || strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	closed(t, d)
	if err := rival.Update(put("a", "2")); err != nil || get(t, rival, "a") != "2" {
		t.Error(err)
	}
}

// Those who change, read and close at the same time see whole changes, or that it
// is closed.
func TestConcurrent(t *testing.T) {
	d := open(t, t.TempDir())
	var users sync.WaitGroup
	for n := range 4 {
		users.Go(func() {
			for i := range 50 {
				err := d.Update(func(tx *bbolt.Tx) error {
					return errors.Join(put("one", strconv.Itoa(100*n+i))(tx), put("two", strconv.Itoa(100*n+i))(tx))
				})
				if err == nil {
					err = d.View(func(tx *bbolt.Tx) error {
						b := tx.Bucket([]byte("test"))
						if one, two := string(b.Get([]byte("one"))), string(b.Get([]byte("two"))); one != two {
							t.Errorf("half of a change: %s and %s", one, two)
						}
						return nil
					})
				}
				if err != nil && !errors.Is(err, storage.ErrClosed) {
					t.Error(err)
				}
				if n == 0 && i == 40 {
					closed(t, d)
				}
			}
		})
	}
	users.Wait()
}
