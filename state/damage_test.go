package state_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

// kept is a directory with a database that is not small.
func kept(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	d := open(t, dir)
	for _, key := range []string{"a", "b", "c"} {
		if err := d.Update(put(key, strings.Repeat(key, 20<<10))); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, d)
	return filepath.Join(dir, "state.db")
}

// refused fails unless the database is refused, again and again, without a word
// of where it is.
func refused(t *testing.T, path string, want error) {
	t.Helper()
	d := open(t, filepath.Dir(path))
	for range 2 {
		err := d.View(func(*bbolt.Tx) error { return nil })
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), filepath.Dir(path)) || !strings.Contains(err.Error(), "state.db") {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if err := d.Update(put("a", "1")); err == nil {
		t.Error("it is changed all the same")
	}
}

func TestOtherVersions(t *testing.T) {
	for name, spoil := range map[string]func(tx *bbolt.Tx) error{
		"later":      func(tx *bbolt.Tx) error { return tx.Bucket([]byte("about")).Put([]byte("version"), []byte("2")) },
		"none":       func(tx *bbolt.Tx) error { return tx.Bucket([]byte("about")).Delete([]byte("version")) },
		"of another": func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("about")) },
	} {
		t.Run(name, func(t *testing.T) {
			path := kept(t)
			d := open(t, filepath.Dir(path))
			if err := d.Update(spoil); err != nil {
				t.Fatal(err)
			}
			closed(t, d)
			refused(t, path, storage.ErrUnsupported)
		})
	}
}

func TestNoDatabase(t *testing.T) {
	path := kept(t)
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, path, nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	refused(t, path, nil)
	blocked := state.New(filepath.Join(kept(t), "below"))
	if err := blocked.Update(put("a", "1")); err == nil || strings.Contains(err.Error(), "/") {
		t.Errorf("a directory in a file: %v", err)
	}
}

// A file that has been cut short is an error, wherever that is, not the end of the
// process.
func TestCutShort(t *testing.T) {
	whole, err := os.ReadFile(kept(t))
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(whole); n += 4096 - 1 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.db"), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		d := state.New(dir)
		err := d.View(func(tx *bbolt.Tx) error {
			if tx.Size() > int64(n) {
				t.Errorf("cut to %d bytes, and taken for %d", n, tx.Size())
			}
			return nil
		})
		if err != nil && strings.Contains(err.Error(), dir) {
			t.Error(err)
		}
		_ = d.Close()
	}
}

// Nor does a bad page of it end the process when it is opened.
func TestBadPages(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	path := kept(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		dir := t.TempDir()
		spoilt := append([]byte(nil), whole...)
		page := random.IntN(len(whole) / 4096)
		for range 1 + random.IntN(40) {
			spoilt[page*4096+random.IntN(64)] = byte(random.Uint32())
		}
		if err := os.WriteFile(filepath.Join(dir, "state.db"), spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		d := state.New(dir)
		if err := d.View(func(*bbolt.Tx) error { return nil }); err != nil && strings.Contains(err.Error(), dir) {
			t.Error(err)
		}
		_ = d.Close()
	}
}
