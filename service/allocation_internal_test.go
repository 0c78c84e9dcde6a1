package service

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// loseStore makes every change of the store fail from here on.
func loseStore(t *testing.T, s *Service) {
	t.Helper()
	if err := s.ledger.store.state.Close(); err != nil {
		t.Fatal(err)
	}
}

func openQCOW2(t *testing.T, dir string) *Service {
	t.Helper()
	db := state.New(filepath.Join(dir, "state"))
	t.Cleanup(func() { _ = db.Close() })
	s, err := New(Options{Dir: dir, State: db, Formats: map[string]Driver{"qcow2": QCOW2Driver()}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func runTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v (apt-get install qemu-utils): %v\n%s", args, err, out)
	}
}

// TestStoreFaults: from each step on nothing can be recorded. What cannot be
// recorded is not done, and whatever the store has then does no harm.
func TestStoreFaults(t *testing.T) {
	const unit = 64 << 10
	for step := range 5 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			dir := t.TempDir()
			runTool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
			s := openQCOW2(t, dir)
			ctx := t.Context()
			kept, err := s.Allocate(ctx, "a.qcow2", AllocationRequest{Length: unit})
			if err != nil {
				t.Fatal(err)
			}
			lost := false
			try := func(n int, what func() error) {
				if n == step {
					loseStore(t, s)
					lost = true
				}
				if err := what(); (err != nil) != lost {
					t.Errorf("step %d: %v", n, err)
				}
			}
			id, want := "", make([]byte, 2*unit)
			try(0, func() error {
				a, err := s.Allocate(ctx, "a.qcow2", AllocationRequest{Length: 2 * unit})
				if err == nil {
					id = a.ID
				}
				return err
			})
			if id != "" {
				w, err := s.OpenAllocation(ctx, "a.qcow2", id)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.WriteAt(ctx, bytes.Repeat([]byte{7}, 2*unit), 0); err != nil {
					t.Error(err)
				}
				w.Release()
				for n := range 2 {
					at := int64(n) * unit
					try(1+n, func() error {
						_, err := s.Update(ctx, "a.qcow2", []Update{{Offset: at, Length: unit, Kind: KindData, Allocation: id, AllocationOffset: at}}, nil)
						if err == nil {
							copy(want[at:], bytes.Repeat([]byte{7}, unit))
						}
						return err
					})
				}
				try(3, func() error { return s.GiveBack(ctx, "a.qcow2", id) })
				if lost {
					if _, err := s.Allocation(ctx, "a.qcow2", id); err != nil {
						t.Errorf("what could not be given back is not there: %v", err)
					}
				}
			}
			s.expireAt(time.Now().Add(2 * time.Hour)) // cannot be recorded either, or gives all back
			if _, err := s.Allocation(ctx, "a.qcow2", kept.ID); (err == nil) != lost {
				t.Errorf("expired: %v", err)
			}
			_ = s.Close() // the store says that it is closed
			loseStore(t, s)
			runTool(t, dir, "sh", "-c", "qemu-img check -q a.qcow2 || [ $? = 3 ]")
			s = openQCOW2(t, dir)
			defer s.Close()
			checkGoesOn(t, s, want)
		})
	}
}

// checkGoesOn compares the beginning of the image, writes all over the rest, and
// compares again.
func checkGoesOn(t *testing.T, s *Service, want []byte) {
	t.Helper()
	ctx := t.Context()
	list, err := s.Allocations(ctx, "a.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.AcquireWritable(ctx, "a.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if err := h.device.WriteAt(ctx, bytes.Repeat([]byte{9}, 2<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if err := s.GiveBack(ctx, "a.qcow2", a.ID); err != nil {
			t.Error(err)
		}
	}
	if err := h.device.WriteAt(ctx, bytes.Repeat([]byte{8}, 1<<20), 3<<20); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := h.device.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("wrong content, or %v", err)
	}
}

// An allocation that is being filled or mapped is left alone, and expires later.
func TestBusyDoesNotExpire(t *testing.T) {
	dir := t.TempDir()
	runTool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
	s := openQCOW2(t, dir)
	defer s.Close()
	a, err := s.Allocate(t.Context(), "a.qcow2", AllocationRequest{Length: 1})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.OpenAllocation(t.Context(), "a.qcow2", a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.begin(span{0, 512}); err != nil {
		t.Fatal(err)
	}
	s.expireAt(time.Now().Add(24 * time.Hour))
	_, err = s.Update(t.Context(), "a.qcow2", []Update{{Length: 65536, Kind: KindData, Allocation: a.ID}}, nil)
	if !errors.Is(err, storage.ErrConflict) {
		t.Errorf("mapping what is being filled: %v", err)
	}
	w.end(span{0, 512})
	w.Release()
	if _, err := s.Allocation(t.Context(), "a.qcow2", a.ID); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	s.expireAt(time.Now().Add(24 * time.Hour))
	if _, err := s.Allocation(t.Context(), "a.qcow2", a.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
}

// The image may move to another boot of the machine, and to another number of
// its file system, if it was closed cleanly: not if it was not.
func TestReboot(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir := t.TempDir()
		runTool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
		s := openQCOW2(t, dir)
		a, err := s.Allocate(t.Context(), "a.qcow2", AllocationRequest{Length: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		loseStore(t, s) // lets go of it
		st := store{state: state.New(filepath.Join(dir, "state"))}
		kept, err := st.load()
		if err != nil || len(kept.records) != 1 || len(kept.clean) != 1 {
			t.Fatalf("%+v, %v", kept, err)
		}
		r := kept.records[0]
		key := r.File.key()
		id := kept.clean[key]
		c := change{dirty: []fileKey{key}}
		r.Boot, r.File.Dev = "another", r.File.Dev+1
		c.put = []record{r}
		if clean {
			id.Dev++
			c.clean = map[fileKey]file.Identity{r.File.key(): id}
		}
		if err := st.apply(&c); err != nil {
			t.Fatal(err)
		}
		if err := st.state.Close(); err != nil {
			t.Fatal(err)
		}
		s = openQCOW2(t, dir)
		if _, err := s.Allocation(t.Context(), "a.qcow2", a.ID); (err == nil) != clean || !clean && !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("clean: %v: %v", clean, err)
		}
		// From here on the file is not as it was closed, whatever its times say.
		if now, err := s.ledger.store.load(); err != nil || len(now.clean) != 0 {
			t.Errorf("%+v, %v", now, err)
		}
		if clean {
			if err := s.GiveBack(t.Context(), "a.qcow2", a.ID); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		runTool(t, dir, "qemu-img", "check", "-q", "a.qcow2") // what was not resumed was given back
	}
}
