package test

import (
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An nbdArea is what one qemu-io has of an image.
type nbdArea struct {
	*area
	q *qemuIO
}

// write goes on until a request fails, as it does when the server dies.
func (a *nbdArea) write() {
	for {
		first := a.random.Int64N(a.count)
		n := min(1+a.random.Int64N(100), a.count-first)
		if a.step(first, n) != nil {
			return
		}
		a.acked.Add(1)
	}
}

func (a *nbdArea) step(first, n int64) error {
	off, length := a.start+first*sector, n*sector
	switch kind := a.random.IntN(20); {
	case kind < 3:
		a.may(first, n, 0, false)
		return a.q.zero(off, length, kind == 0)
	case kind < 5:
		a.may(first, n, 0, true)
		return a.q.trim(off, length)
	case kind < 6:
		if err := a.q.flush(); err != nil {
			return err
		}
		a.durable(0, a.count)
		return nil
	}
	a.stamp++
	a.may(first, n, a.stamp, false)
	fua := a.random.IntN(3) == 0
	if err := a.q.write(off, stamped(off, length, a.stamp), fua); err != nil {
		return err
	}
	if fua {
		a.durable(first, n)
	}
	return nil
}

// TestNBDSoakKill kills the server while qemu-io writes, fio writes and HTTP
// clients do, again and again. What was flushed is there, and the image is sound.
func TestNBDSoakKill(t *testing.T) {
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
				nbdKillRounds(t, options, name == "lazy", fmt.Sprint("nbd ", name, " ", round))
			})
		}
	})
}

// nbdKillRounds is three servers that are killed.
func nbdKillRounds(t *testing.T, options []string, lazy bool, name string) {
	const clients, size = 3, 6 * mib
	m := newMaker(t, t.TempDir(), "kill")
	file := m.create(".qcow2", size, options...)
	var areas []*nbdArea
	for i := range int64(clients) {
		areas = append(areas, &nbdArea{area: newArea(name, file, i*mib, mib, int(i))})
	}
	web := newArea(name, file, clients*mib, mib, clients)
	for round := range 3 {
		s := serve(t, m.dir, overNBD()...)
		var acked, wanted atomic.Int64
		var wg sync.WaitGroup
		for _, a := range areas {
			a.q, a.acked = startQemuIO(t, s.uri(file)), &acked
			wg.Go(a.write)
		}
		web.s, web.acked = s, &wanted
		wg.Go(web.write)
		fio := exec.Command("fio", fioArgs(t, s.uri(file), mib, "--rw=randwrite --bs=8k --iodepth=16 --fsync=20 --offset=5m --size=1m --time_based --runtime=60")...)
		must(t, fio.Start())
		enough := 40 + source(fmt.Sprint(name, " kill ", round)).Int64N(200)
		for deadline := time.Now().Add(20 * time.Second); acked.Load() < enough; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("only %d requests were answered in 20 s", acked.Load())
			}
		}
		s.kill()
		wg.Wait()
		if err := fio.Wait(); err == nil {
			t.Error("fio did not see that its server was killed")
		}
		for _, a := range areas {
			a.q.close()
		}
		if !lazy { // the refcounts of a dirty image are wrong until it is repaired
			m.checkSound(t, file)
		}
		again := serve(t, m.dir, overNBD()...)
		data, err := again.openNBD(t, file, round == 1).readAll(0, size)
		must(t, err)
		for _, a := range areas {
			must(t, a.verify(data))
		}
		must(t, web.verify(data))
		q := startQemuIO(t, again.uri(file))
		must(t, q.write(0, data[:sector], true))
		q.close()
		if v, err := again.check(file, "leaks"); err != nil || v.Corruptions != 0 {
			t.Fatalf("check after a kill: %+v, %v", v, err)
		}
		again.stop()
		m.checkClean(t, file)
	}
}
