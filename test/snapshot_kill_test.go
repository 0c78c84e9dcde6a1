package test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestKillUnderSnapshots kills the server while snapshots are taken, deleted and
// reverted to: those whose taking was answered are there, and read as they did; those
// whose deletion was are not; and the image is sound.
func TestKillUnderSnapshots(t *testing.T) {
	for name, options := range map[string][]string{"plain": nil, "4k": {"cluster_size=4k"}, "extended": {"extended_l2=on", "cluster_size=16k"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 4 * mib
			m := newMaker(t, t.TempDir(), "snapshot-kill")
			file := m.create(".qcow2", size, options...)
			k := &snapshotKiller{file: file, held: map[string][]byte{}, random: source("snapshot kill " + name)}
			for round := range 4 {
				s := serve(t, m.dir)
				k.round(t, s, round)
				again := serve(t, m.dir)
				k.verify(t, again)
				must(t, again.put(file, 0, []byte{1}, true)) // who writes repairs
				if v, err := again.check(file, "leaks"); err != nil || v.Corruptions != 0 {
					t.Fatalf("check after a kill: %+v, %v", v, err)
				}
				again.stop()
				m.checkClean(t, file)
			}
		})
	}
}

// A snapshotKiller knows what must be there after a kill.
type snapshotKiller struct {
	file   string
	held   map[string][]byte // what a snapshot holds that was taken
	maybe  string            // one that may be there or not
	random interface {
		Int64N(n int64) int64
		IntN(n int) int
	}
}

// round makes and deletes snapshots until it is killed.
func (k *snapshotKiller) round(t *testing.T, s *server, round int) {
	const size = 4 * mib
	enough, pause := 4+k.random.Int64N(20), time.Duration(k.random.IntN(20))*time.Millisecond
	var done atomic.Int64
	var work sync.WaitGroup
	work.Go(func() { // others write into the second half, which nobody looks at
		for n := byte(1); s.put(k.file, size/2+int64(n%8)*100*kib, bytes.Repeat([]byte{n}, 100_000), false) == nil; {
			n++
		}
	})
	work.Go(func() {
		for n := 0; k.step(s, fmt.Sprintf("%d-%d", round, n)) == nil; n++ {
			done.Add(1)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); done.Load() < enough; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d steps in 30 s", done.Load())
		}
	}
	time.Sleep(pause)
	s.kill()
	work.Wait()
}

// step is one thing at random, and what follows from it when it is answered.
func (k *snapshotKiller) step(s *server, name string) error {
	const half = 2 * mib
	p := make([]byte, 1+k.random.Int64N(300*kib))
	for i := range p {
		p[i] = byte(k.random.IntN(256))
	}
	if err := s.put(k.file, k.random.Int64N(half-int64(len(p))), p, false); err != nil {
		return err
	}
	names := k.names()
	switch n := k.random.IntN(10); {
	case n < 2 && len(names) > 0:
		return s.revert(k.file, names[k.random.IntN(len(names))])
	case n < 5 && len(names) > 2:
		gone := names[k.random.IntN(len(names))]
		delete(k.held, gone)
		k.maybe = gone
		if err := s.deleteSnapshot(k.file, gone); err != nil {
			return err
		}
	default:
		want, err := s.read(k.file, 0, half)
		if err != nil {
			return err
		}
		k.maybe = name
		if _, err := s.takeSnapshot(k.file, name); err != nil {
			return err
		}
		k.held[name] = want
	}
	k.maybe = ""
	return nil
}

func (k *snapshotKiller) names() []string {
	var names []string
	for name := range k.held {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// verify compares what is there with what must be, and takes it for that.
func (k *snapshotKiller) verify(t *testing.T, s *server) {
	t.Helper()
	const half = 2 * mib
	list, err := s.listSnapshots(k.file)
	must(t, err)
	there := map[string]bool{}
	for _, found := range list {
		there[found.Name] = true
		want, known := k.held[found.Name]
		if !known && found.Name != k.maybe {
			t.Errorf("snapshot %s should not be there", found.Name)
			continue
		}
		path := snapshotPath(k.file, found.Name, "/data")
		a, err := s.send(http.MethodGet, path, nil, "Range", fmt.Sprintf("bytes=0-%d", half-1))
		must(t, accepted("GET "+path, a, err, http.StatusPartialContent))
		if known && !bytes.Equal(a.body, want) {
			t.Errorf("snapshot %s reads otherwise", found.Name)
		}
		k.held[found.Name] = a.body
	}
	for name := range k.held {
		if !there[name] {
			t.Errorf("snapshot %s is lost", name)
		}
	}
	k.maybe = ""
}
