package service

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

// TestRecordsFollow uploads by several clients while everything that is renewed
// is recorded all the time: what is given back never comes back, neither in the
// store nor after a restart, and what was left goes on.
func TestRecordsFollow(t *testing.T) {
	const unit = 64 << 10
	dir := t.TempDir()
	runTool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "16M")
	s := openQCOW2(t, dir)
	ctx := t.Context()
	done := make(chan struct{})
	var recorder, clients sync.WaitGroup
	recorder.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				s.expireAt(time.Now())
			}
		}
	})
	var mu sync.Mutex // protects left
	left := map[string]spans{}
	for client := range 4 {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(client)))
			for range 12 {
				a, err := s.Allocate(ctx, "a.qcow2", AllocationRequest{Length: 8 * unit})
				if err != nil {
					t.Error(err)
					return
				}
				w, err := s.OpenAllocation(ctx, "a.qcow2", a.ID)
				if err != nil {
					t.Error(err)
					return
				}
				err = w.WriteAt(ctx, bytes.Repeat([]byte{byte(client + 1)}, 8*unit), 0)
				w.Release()
				var mapped spans
				for _, part := range random.Perm(8)[:random.IntN(9)] {
					at := int64(part) * unit
					_, updated := s.Update(ctx, "a.qcow2", []Update{
						{Offset: int64(client)*64*unit + at, Length: unit, Kind: KindData, Allocation: a.ID, AllocationOffset: at},
					}, nil)
					err = errors.Join(err, updated)
					mapped.add(span{at, unit})
				}
				if random.IntN(4) == 0 {
					mu.Lock()
					left[a.ID] = mapped
					mu.Unlock()
				} else {
					err = errors.Join(err, s.GiveBack(ctx, "a.qcow2", a.ID))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	close(done)
	recorder.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	loseStore(t, s) // lets go of it
	st := store{state: state.New(filepath.Join(dir, "state"))}
	kept, err := st.load()
	if err != nil {
		t.Fatal(err)
	}
	if err := st.state.Close(); err != nil {
		t.Fatal(err)
	}
	if len(kept.records) != len(left) {
		t.Errorf("%d records are kept, of %d allocations", len(kept.records), len(left))
	}
	for _, r := range kept.records {
		want, ok := left[r.ID]
		if !ok || len(want) != len(r.Spent) {
			t.Errorf("%s has spent %v, want %v", r.ID, r.Spent, want)
		}
	}
	s = openQCOW2(t, dir)
	for id := range left {
		if err := s.GiveBack(ctx, "a.qcow2", id); err != nil {
			t.Error(err)
		}
	}
	if list, err := s.Allocations(ctx, "a.qcow2"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if len(kept.clean) != 1 {
		t.Errorf("closed cleanly: %v", kept.clean)
	}
	if now, err := s.ledger.store.load(); err != nil || len(now.clean)+len(now.records) != 0 {
		t.Errorf("%+v, %v", now, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	runTool(t, dir, "qemu-img", "check", "-q", "a.qcow2")
}

// A change of the store that fails leaves the ledger as it was.
func TestDropFails(t *testing.T) {
	dir := t.TempDir()
	runTool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
	s := openQCOW2(t, dir)
	a, err := s.Allocate(t.Context(), "a.qcow2", AllocationRequest{Length: 1})
	if err != nil {
		t.Fatal(err)
	}
	loseStore(t, s)
	for range 2 {
		if err := s.GiveBack(t.Context(), "a.qcow2", a.ID); err == nil || errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	}
	s.expireAt(time.Now().Add(2 * time.Hour))
	if n := s.ledger.names["a.qcow2"]; n != 1 {
		t.Errorf("%d allocations", n)
	}
	_ = s.Close() // the store is closed
}
