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

	"github.com/extentd/extentd/state"
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

func newStore(t *testing.T, dir string) *store {
	t.Helper()
	db := state.New(dir)
	t.Cleanup(func() { _ = db.Close() })
	return &store{state: db}
}

// reopened is the store after the end of the process that had it.
func reopened(t *testing.T, s *store, dir string) *store {
	t.Helper()
	if err := s.state.Close(); err != nil {
		t.Fatal(err)
	}
	return newStore(t, dir)
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "state")
	s := newStore(t, dir)
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
	rival := newStore(t, dir)
	if _, err := rival.load(); !errors.Is(err, storage.ErrBusy) || strings.Contains(err.Error(), dir) {
		t.Errorf("a second user: %v", err)
	}
	s.close()
	if err := s.apply(&steps[0]); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	again := reopened(t, s, dir)
	got, err := again.load()
	if err != nil {
		t.Fatal(err)
	}
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
	s := newStore(t, dir)
	if err := s.apply(&change{put: []record{testRecord("a-1")}}); err != nil {
		t.Fatal(err)
	}
	bad := testRecord(strings.Repeat("x", bbolt.MaxKeySize+1))
	if err := s.apply(&change{put: []record{testRecord("a-2"), bad}}); err == nil || !s.failed() {
		t.Fatalf("a key that is too long: %v", err)
	}
	again := reopened(t, s, dir)
	if got, err := again.load(); err != nil || len(got.records) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if err := again.state.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again.apply(&change{drop: []string{"a-1"}}); !errors.Is(err, storage.ErrClosed) || !again.failed() {
		t.Errorf("the state is closed: %v", err)
	}
	blocked := newStore(t, filepath.Join(dir, "state.db", "below"))
	if err := blocked.apply(&change{drop: []string{"x"}}); err == nil || strings.Contains(err.Error(), dir) || blocked.failed() {
		t.Errorf("a directory in a file: %v, %v", err, blocked.failed())
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
			s := newStore(t, dir)
			r := testRecord("a-1")
			spoil(&r)
			if err := s.apply(&change{put: []record{r}}); err != nil {
				t.Fatal(err)
			}
			if _, err := New(Options{Dir: dir, State: s.state}); err == nil || !strings.Contains(err.Error(), "makes no sense") {
				t.Error(err)
			}
		})
	}
	for _, bucket := range []string{bucketAllocations, bucketClean} {
		t.Run(bucket, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			err := s.state.Update(func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucket([]byte(bucket))
				if err != nil {
					return err
				}
				return b.Put([]byte("x"), []byte("{"))
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.load(); err == nil || !strings.Contains(err.Error(), bucket) {
				t.Error(err)
			}
		})
	}
}

// Who may not write does not even look at the state.
func TestStoreReadOnly(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	if err := s.apply(&change{put: []record{testRecord("a-1")}}); err != nil {
		t.Fatal(err)
	}
	svc, err := New(Options{Dir: dir, State: newStore(t, dir).state, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = New(Options{Dir: dir, State: newStore(t, dir).state})
	if text := fmt.Sprint(err); !errors.Is(err, storage.ErrBusy) || strings.Contains(text, dir) {
		t.Errorf("the state of somebody else: %v", err)
	}
}
