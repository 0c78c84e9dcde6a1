package test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const sector = int64(512)

// An area is what one writer has of an image. It knows, of each sector, what
// may be there after a crash.
type area struct {
	s      *server
	file   string
	random *rand.Rand
	start  int64 // bytes
	count  int64 // sectors
	states [][]uint64
	now    []int // how many of a sector's last states may be there at this moment
	stamp  uint64
	acked  *atomic.Int64 // requests that were answered
}

func newArea(name, file string, start, length int64, worker int) *area {
	a := &area{file: file, start: start, count: length / sector, random: source(fmt.Sprint(name, " area ", worker))}
	a.states = make([][]uint64, a.count)
	a.now = make([]int, a.count)
	for i := range a.states {
		a.states[i], a.now[i] = []uint64{0}, 1
	}
	a.stamp = uint64(worker+1) << 48
	return a
}

// stamped are sectors that bear where they belong and who wrote them when.
func stamped(off, length int64, stamp uint64) []byte {
	p := make([]byte, length)
	for at := int64(0); at < length; at += sector {
		for i := at; i < at+sector; i += 16 {
			binary.LittleEndian.PutUint64(p[i:], uint64(off+at))
			binary.LittleEndian.PutUint64(p[i+8:], stamp)
		}
	}
	return p
}

// stampOf reads what stamped wrote: 0 for zeros; an error for anything else.
func stampOf(p []byte, off int64) (uint64, error) {
	where, stamp := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	for i := 16; i < len(p); i += 16 {
		if binary.LittleEndian.Uint64(p[i:]) != where || binary.LittleEndian.Uint64(p[i+8:]) != stamp {
			return 0, fmt.Errorf("the sector at %d is torn at %d", off, i)
		}
	}
	if stamp != 0 && where != uint64(off) {
		return 0, fmt.Errorf("the sector at %d is one that was written at %d by %x", off, where, stamp)
	}
	if stamp == 0 && where != 0 {
		return 0, fmt.Errorf("the sector at %d has no stamp", off)
	}
	return stamp, nil
}

// write goes on until a request fails, as it does when the server dies.
func (a *area) write() {
	for {
		first := a.random.Int64N(a.count)
		n := min(1+a.random.Int64N(40), a.count-first)
		if a.random.IntN(3) == 0 {
			n = min(n*8, a.count-first)
		}
		if a.step(first, n) != nil {
			return
		}
		a.acked.Add(1)
	}
}

func (a *area) step(first, n int64) error {
	off, length := a.start+first*sector, n*sector
	switch kind := a.random.IntN(20); {
	case kind < 3:
		a.may(first, n, 0, false)
		return a.s.zero(a.file, off, length, kind == 0)
	case kind < 5:
		a.may(first, n, 0, true)
		return a.s.trim(a.file, off, length)
	case kind < 6:
		if err := a.s.flush(a.file); err != nil {
			return err
		}
		a.durable(0, a.count)
		return nil
	}
	a.stamp++
	a.may(first, n, a.stamp, false)
	flush := a.random.IntN(3) == 0
	if err := a.s.put(a.file, off, stamped(off, length, a.stamp), flush); err != nil {
		return err
	}
	if flush {
		a.durable(first, n)
	}
	return nil
}

// may notes what sectors may hold from now on, beside what they did; with keep,
// what they held may be there for good.
func (a *area) may(first, n int64, stamp uint64, keep bool) {
	for i := first; i < first+n; i++ {
		a.states[i] = append(a.states[i], stamp)
		if keep {
			a.now[i]++
		} else {
			a.now[i] = 1
		}
	}
}

// durable forgets what can no longer be there.
func (a *area) durable(first, n int64) {
	for i := first; i < first+n; i++ {
		a.states[i] = slices.Clone(a.states[i][len(a.states[i])-a.now[i]:])
	}
}

// verify compares the bytes with what may be there, which is what is there from
// now on.
func (a *area) verify(data []byte) error {
	for i := range a.count {
		off := a.start + i*sector
		stamp, err := stampOf(data[off:off+sector], off)
		if err != nil {
			return err
		}
		if !slices.Contains(a.states[i], stamp) {
			return fmt.Errorf("the sector at %d holds %x, and may hold %x", off, stamp, a.states[i])
		}
		a.states[i], a.now[i] = []uint64{stamp}, 1
	}
	return nil
}

// TestSoakKill kills the server under load, again and again. What was flushed is
// there, and the image is sound.
func TestSoakKill(t *testing.T) {
	soak(t, func(t *testing.T, round int) {
		for name, options := range map[string][]string{
			"plain":     nil,
			"512":       {"cluster_size=512"},
			"lazy":      {"lazy_refcounts=on", "cluster_size=4k"},
			"extended":  {"extended_l2=on", "cluster_size=16k"},
			"data-file": {"data_file=kill-data.raw"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				killRounds(t, options, name == "lazy", fmt.Sprint(name, " ", round))
			})
		}
	})
}

// killRounds is three servers that are killed.
func killRounds(t *testing.T, options []string, lazy bool, name string) {
	const workers, size = 5, 5 * mib
	m := newMaker(t, t.TempDir(), "kill")
	file := m.create(".qcow2", size, options...)
	var areas []*area
	for i := range int64(workers) {
		areas = append(areas, newArea(name, file, i*mib, mib, int(i)))
	}
	for round := range 3 {
		s := serve(t, m.dir)
		var acked atomic.Int64
		var wg sync.WaitGroup
		for _, a := range areas {
			a.s, a.acked = s, &acked
			wg.Go(a.write)
		}
		enough := 40 + source(fmt.Sprint(name, " kill ", round)).Int64N(300)
		for deadline := time.Now().Add(20 * time.Second); acked.Load() < enough; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("only %d requests were answered in 20 s", acked.Load())
			}
		}
		s.kill()
		wg.Wait()
		if !lazy { // the refcounts of a dirty image are wrong until it is repaired
			m.checkSound(t, file)
		}
		again := serve(t, m.dir)
		data, err := again.read(file, 0, size)
		must(t, err)
		for _, a := range areas {
			must(t, a.verify(data))
		}
		must(t, again.put(file, 0, data[:sector], true))
		if v, err := again.check(file, "leaks"); err != nil || v.Corruptions != 0 {
			t.Fatalf("check after a kill: %+v, %v", v, err)
		}
		again.stop()
		m.checkClean(t, file)
	}
}
