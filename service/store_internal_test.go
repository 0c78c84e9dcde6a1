package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

func testRecord(id string) record {
	guest := int64(1 << 20)
	return record{
		ID: id, Image: "a.qcow2", File: storedKey{Dev: 3, Ino: 4}, Boot: "b",
		Created: time.Unix(1, 2).UTC(), Expires: time.Unix(3, 4).UTC(), Length: 300,
		Extents: []extent{{0, 100, 65536}, {100, 200, 0}}, Guest: &guest, Spent: spans{{0, 10}, {20, 10}},
	}
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "state")
	s := store{dir: dir}
	if _, err := s.load(); err != nil {
		t.Fatal(err)
	}
	if err := s.apply(&change{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("nothing to keep, and yet the directory is there: %v", err)
	}
	one, two := testRecord("a-1"), testRecord("a-2")
	key, other := fileKey{dev: 3, ino: 4}, fileKey{dev: 5, device: true}
	id := file.Identity{Dev: 3, Ino: 4, Size: 5, Mtime: 6, Ctime: 7}
	steps := []change{
		{put: []record{one, two}, clean: map[fileKey]file.Identity{key: id, other: id}},
		{drop: []string{one.ID, "a-unknown"}, dirty: []fileKey{other}},
	}
	for _, c := range steps {
		if err := s.apply(&c); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
	rival := store{dir: dir}
	if _, err := rival.load(); !errors.Is(err, storage.ErrBusy) || strings.Contains(err.Error(), dir) {
		t.Errorf("a second user: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := s.apply(&steps[0]); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	again := store{dir: dir}
	got, err := again.load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.close() })
	want := stored{records: []record{two}, clean: map[fileKey]file.Identity{key: id}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(stored{}, fileKey{}), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if again.failed() || !s.failed() {
		t.Error("who has failed?")
	}
}

// A change that cannot be made leaves nothing of itself, and says so.
func TestStoreFails(t *testing.T) {
	dir := t.TempDir()
	s := store{dir: dir}
	t.Cleanup(func() { _ = s.close() })
	if err := s.apply(&change{put: []record{testRecord("a-1")}}); err != nil {
		t.Fatal(err)
	}
	bad := testRecord(strings.Repeat("x", bbolt.MaxKeySize+1))
	if err := s.apply(&change{put: []record{testRecord("a-2"), bad}}); err == nil || !s.failed() {
		t.Fatalf("a key that is too long: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	again := store{dir: dir}
	t.Cleanup(func() { _ = again.close() })
	if got, err := again.load(); err != nil || len(got.records) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	blocked := store{dir: filepath.Join(dir, storeFile, "below")}
	if err := blocked.apply(&change{drop: []string{"x"}}); err == nil || strings.Contains(err.Error(), dir) {
		t.Errorf("a directory in a file: %v", err)
	}
}

func TestStoreRefuses(t *testing.T) {
	guest := int64(-1)
	for name, spoil := range map[string]func(r *record){
		"no image":       func(r *record) { r.Image = "../x" },
		"no length":      func(r *record) { r.Length = 0 },
		"gap":            func(r *record) { r.Extents[1].Offset++ },
		"too short":      func(r *record) { r.Length++ },
		"too long":       func(r *record) { r.Extents[1].Length = 1 << 62 },
		"overflow":       func(r *record) { r.Extents[1].NodeOffset = 1<<63 - 5 },
		"negative":       func(r *record) { r.Extents[0].NodeOffset = -1 },
		"claim":          func(r *record) { r.Guest = &guest },
		"mapped outside": func(r *record) { r.Spent[1].Length = 1000 },
		"mapped twice":   func(r *record) { r.Spent[1].Offset = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := store{dir: dir}
			r := testRecord("a-1")
			spoil(&r)
			if err := s.apply(&change{put: []record{r}}); err != nil {
				t.Fatal(err)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			if _, err := New(Options{Dir: dir, StateDir: dir}); err == nil || !strings.Contains(err.Error(), "makes no sense") {
				t.Error(err)
			}
		})
	}
	for name, spoil := range map[string]func(tx *bbolt.Tx) error{
		"version": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(bucketAbout)).Put([]byte("version"), []byte("2"))
		},
		"record": func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucketAllocations)).Put([]byte("x"), []byte("{")) },
		"clean":  func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucketClean)).Put([]byte("x"), []byte("{")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := store{dir: t.TempDir()}
			db, err := s.open()
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(spoil); err != nil {
				t.Fatal(err)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			again := store{dir: s.dir}
			t.Cleanup(func() { _ = again.close() })
			if _, err := again.load(); err == nil {
				t.Error("no error")
			}
		})
	}
}

// Who may not write does not even look at the state.
func TestStoreReadOnly(t *testing.T) {
	dir := t.TempDir()
	s := store{dir: dir}
	if err := s.apply(&change{put: []record{testRecord("a-1")}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	svc, err := New(Options{Dir: dir, StateDir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: dir, StateDir: dir}); !errors.Is(err, storage.ErrBusy) {
		t.Errorf("the state of somebody else: %v", err)
	}
	if text := fmt.Sprint(err); strings.Contains(text, dir) {
		t.Error(text)
	}
}
