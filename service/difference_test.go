package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// A changer tells what has changed since a snapshot.
type changer interface {
	Changes(ctx context.Context, since string, off, n int64, visit func(off, n int64, changed bool) error) error
}

// changedOf asks for a range, and checks the form of the answer.
func changedOf(t *testing.T, of changer, since string, off, n int64) []bool {
	t.Helper()
	var out []bool
	at, first, was := off, true, false
	err := of.Changes(t.Context(), since, off, n, func(o, n int64, changed bool) error {
		if o != at || n < 1 || !first && was == changed {
			t.Errorf("%d bytes at %d %v after %d %v", n, o, changed, at, was)
		}
		at, first, was = o+n, false, changed
		for ; n > 0; n -= 512 {
			out = append(out, changed)
		}
		return nil
	})
	if err != nil || at != off+n {
		t.Errorf("since %s up to %d of %d: %v", since, at, off+n, err)
	}
	return out
}

// TestChanges compares random histories: what differs is changed, and in clusters
// that nobody has touched nothing is.
func TestChanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, options := range []string{"cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=64k", "cluster_size=512", "compat=0.10,cluster_size=4k"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "vm.qcow2", "4M")
			svc := start(t, service.Options{Dir: dir})
			states := [][]byte{}
			for n := range 4 {
				for range 1 + rnd.IntN(8) {
					changeAnyhow(t, rnd, svc)
				}
				takeSnapshot(t, svc, "vm.qcow2", fmt.Sprint(n))
				states = append(states, readImage(t, svc, "vm.qcow2"))
			}
			changeAnyhow(t, rnd, svc)
			h := acquire(t, svc, "vm.qcow2")
			defer h.Release()
			last := read(t, h)
			for since := range states {
				compareChanges(t, h, last, states[since], fmt.Sprint(since))
				for now := range states {
					s := acquireSnapshot(t, svc, "vm.qcow2", fmt.Sprint(now))
					compareChanges(t, s, states[now], states[since], fmt.Sprint(since))
					s.Release()
				}
			}
		})
	}
}

// changeAnyhow writes, zeros, trims, resizes or reverts.
func changeAnyhow(t *testing.T, rnd *rand.Rand, svc *service.Service) {
	t.Helper()
	h := acquireWritable(t, svc, "vm.qcow2")
	defer h.Release()
	d := h.Device()
	off := rnd.Int64N(d.Size()/512) * 512
	n := min(d.Size()-off, (1+rnd.Int64N(300))*512)
	var err error
	switch rnd.IntN(10) {
	case 0:
		err = d.Zero(t.Context(), off, n, rnd.IntN(2) == 0)
	case 1:
		if err = d.Trim(t.Context(), off, n); errors.Is(err, storage.ErrUnsupported) {
			err = nil
		}
	case 2:
		if err = svc.Resize(t.Context(), "vm.qcow2", (1+rnd.Int64N(12_000))*512, true, nil); errors.Is(err, storage.ErrUnsupported) {
			err = nil // of version 2, not with snapshots
		}
	case 3:
		all, _ := svc.Snapshots(t.Context(), "vm.qcow2")
		if len(all) > 0 {
			err = svc.RevertSnapshot(t.Context(), "vm.qcow2", "id:"+all[rnd.IntN(len(all))].ID, nil)
		}
	default:
		err = d.WriteAt(t.Context(), bytes.Repeat([]byte{byte(1 + rnd.IntN(255))}, int(n)), off)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func compareChanges(t *testing.T, of changer, now, then []byte, since string) {
	t.Helper()
	padded := make([]byte, max(len(now), len(then)))
	copy(padded, then)
	changed := changedOf(t, of, since, 0, int64(len(now)))
	same := 0
	for k := range changed {
		differs := !bytes.Equal(now[k*512:(k+1)*512], padded[k*512:(k+1)*512])
		if differs && !changed[k] {
			t.Fatalf("since %s: a difference at %d is missed", since, k*512)
		}
		if !changed[k] {
			same++
		}
	}
	if bytes.Equal(now, then) && same == 0 {
		t.Errorf("since %s: all of what is the same is called changed", since)
	}
}

// TestChangesAre of a part, of what no snapshot is, and of what is deleted meanwhile.
func TestChangesOdd(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "vm.qcow2")
	write(t, dir+"/disk.raw", make([]byte, 4096))
	svc := start(t, service.Options{Dir: dir})
	takeSnapshot(t, svc, "vm.qcow2", "one")
	w := acquireWritable(t, svc, "vm.qcow2")
	defer w.Release()
	put(t, w, pattern(1, 65536), 1<<20)
	if got := changedOf(t, w, "one", 1<<20-512, 1024); len(got) != 2 || got[0] || !got[1] {
		t.Error(got)
	}
	never := func(int64, int64, bool) error { t.Error("visited"); return nil }
	raw := acquire(t, svc, "disk.raw")
	defer raw.Release()
	for what, test := range map[string]struct{ got, want error }{
		"raw":     {raw.Changes(t.Context(), "one", 0, 512, never), storage.ErrUnsupported},
		"unknown": {w.Changes(t.Context(), "none", 0, 512, never), storage.ErrNotFound},
		"beyond":  {w.Changes(t.Context(), "one", 4<<20, 512, never), storage.ErrOutOfRange},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%s: %v, want %v", what, test.got, test.want)
		}
	}
	d, err := w.Since(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	if err := svc.DeleteSnapshot(t.Context(), "vm.qcow2", "one", nil); err != nil {
		t.Fatal(err)
	}
	takeSnapshot(t, svc, "vm.qcow2", "one")
	if err := d.Changes(t.Context(), 0, 4<<20, never); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("since what is gone: %v", err)
	}
}
