package test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/test/certs"
)

const (
	slotSize    = 64 * kib // what is written at a time
	slots       = 12       // of one worker
	restarts    = 5
	restartSize = 16 * mib
)

// A strip is what one worker has of an image, and knows of each slot which stamps
// may be there: more than one only after a request that had no answer.
type strip struct {
	file  string
	start int64 // bytes
	may   [slots][]uint64
	stamp uint64
	acked atomic.Int64 // requests that were done
}

func newStrip(file string, worker int) *strip {
	s := &strip{file: file, start: int64(worker) * slots * slotSize, stamp: uint64(worker+1) << 48}
	for i := range s.may {
		s.may[i] = []uint64{0}
	}
	return s
}

// next is the next slot to write to, where it is, and with what.
func (s *strip) next() (slot int, off int64, p []byte) {
	s.stamp++
	slot = int(s.stamp % slots)
	off = s.start + int64(slot)*slotSize
	return slot, off, stamped(off, slotSize, s.stamp)
}

// try writes into a slot. What was answered is there; what was not is there
// wholly, or not at all.
func (s *strip) try(slot int, write func() error) error {
	s.may[slot] = append(s.may[slot], s.stamp)
	if err := write(); err != nil {
		return err
	}
	s.may[slot] = s.may[slot][len(s.may[slot])-1:]
	s.acked.Add(1)
	return nil
}

// verify compares a slot's sectors with what may be there, all of them with the
// same.
func (s *strip) verify(data []byte) error {
	for i := range s.may {
		first := s.start + int64(i)*slotSize
		stamp, err := stampOf(data[first:first+sector], first)
		if err != nil {
			return err
		}
		for off := first; off < first+slotSize; off += sector {
			if other, err := stampOf(data[off:off+sector], off); err != nil || other != stamp {
				return fmt.Errorf("the slot at %d holds %x, and %x at %d: %w", first, stamp, other, off, err)
			}
		}
		if !slices.Contains(s.may[i], stamp) {
			return fmt.Errorf("the slot at %d holds %x, and may hold %x", first, stamp, s.may[i])
		}
		s.may[i] = []uint64{stamp}
	}
	return nil
}

// TestRestart restarts a server under load with SIGTERM, again and again. What is
// guaranteed: a request that was sent over a connection that stood, before the
// server was told to stop or within knowingTime of that, is answered, and so is
// the first request over any connection that came to stand at all. What was
// answered with success is there; what was not answered was done wholly or not at
// all. The image is closed cleanly and bears no leaks but live allocations.
func TestRestart(t *testing.T) {
	for name, authority := range map[string]*certs.Authority{"plain": nil, "tls": certs.New(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restartRounds(t, authority)
		})
	}
}

// restartRounds is some servers, one after another, at one address.
func restartRounds(t *testing.T, authority *certs.Authority) {
	m := newMaker(t, t.TempDir(), "restart")
	file := m.create(".qcow2", restartSize)
	var flags []string
	var secure *tls.Config
	if authority != nil {
		flags, secure = authority.HTTP(), &tls.Config{RootCAs: authority.Pool()}
	}
	var workers []*restartWorker
	for i, run := range []func(*restartWorker){
		(*restartWorker).write, (*restartWorker).write, (*restartWorker).writeAnew, (*restartWorker).writeAnew, (*restartWorker).writeHTTP2,
		(*restartWorker).publish, (*restartWorker).publish, (*restartWorker).writeNBD, (*restartWorker).writeNBD,
		(*restartWorker).read, (*restartWorker).readAnew,
	} {
		workers = append(workers, &restartWorker{t: t, strip: newStrip(file, i), run: run, secure: secure})
	}
	nbd := "unix:" + nbdSocket()
	address := "127.0.0.1:0"
	for round := range restarts {
		delay := time.Duration(round%2) * 300 * time.Millisecond
		s := serveAt(t, address, m.dir, append(flags, "--nbd", nbd, "--drain-delay", delay.String())...)
		address = s.url[strings.Index(s.url, "://")+len("://"):]
		s.client.Transport.(*http.Transport).TLSClientConfig = secure.Clone()
		underLoad(t, s, workers, delay)
		if t.Failed() {
			return
		}
		leaks := m.leaksOf(t, file)
		again := serve(t, m.dir)
		if live := again.liveAllocations(t, file); leaks*64*kib != live {
			t.Fatalf("round %d: qemu-img finds %d leaked clusters, and %d bytes are allocated", round, leaks, live)
		}
		data, err := again.read(file, 0, restartSize)
		must(t, err)
		for i, w := range workers {
			if err := w.strip.verify(data); err != nil {
				t.Fatalf("round %d, worker %d: %v", round, i, err)
			}
		}
		again.stop()
		m.checkClean(t, file)
	}
	for i, w := range workers {
		t.Logf("worker %d: %d requests done, %d refused a connection, %d too late", i, w.strip.acked.Load(), w.refused.Load(), w.late.Load())
	}
}

// underLoad has all workers at a server, stops it, and waits for all to end.
func underLoad(t *testing.T, s *server, workers []*restartWorker, delay time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var stopped atomic.Int64
	for _, w := range workers {
		w.begin(s, &stopped, delay)
		wg.Go(func() { w.run(w) })
	}
	for deadline := time.Now().Add(60 * time.Second); slices.ContainsFunc(workers, func(w *restartWorker) bool { return w.did() < 20 }); time.Sleep(time.Millisecond) {
		if t.Failed() || time.Now().After(deadline) {
			t.Error("not every worker has done 20 requests after a minute")
			break
		}
	}
	stopped.Store(time.Now().UnixNano())
	s.terminate(t)
	if delay > 0 {
		must(t, eventually(func() error { return s.stillServes(delay, time.Unix(0, stopped.Load())) }))
	}
	s.ended(t, 30*time.Second)
	wg.Wait()
}

// stillServes: during the delay readyz says that the server will go, to those that
// connect as well, and images are served.
func (s *server) stillServes(delay time.Duration, since time.Time) error {
	s.client.CloseIdleConnections()
	resp, err := s.client.Get(s.url + "/readyz")
	if time.Since(since) > delay {
		return nil // too slow to see it
	}
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("readyz: %s", resp.Status)
	}
	return nil
}

// leaksOf is how many clusters qemu-img finds leaked, and nothing else wrong.
func (m *maker) leaksOf(t *testing.T, file string) int64 {
	t.Helper()
	out, err := m.stdout("qemu-img", "check", "--output=json", "-f", "qcow2", file)
	var found struct {
		Leaks       int64 `json:"leaks"`
		Corruptions int64 `json:"corruptions"`
	}
	if e := json.Unmarshal([]byte(out), &found); e != nil || found.Corruptions > 0 || err != nil && exitCode(err) != 3 {
		t.Fatalf("qemu-img check %s: %v\n%.2000s", file, err, out)
	}
	return found.Leaks
}

// liveAllocations are the bytes that are allocated and mapped nowhere. They are
// given back.
func (s *server) liveAllocations(t *testing.T, file string) (live int64) {
	t.Helper()
	var list struct {
		Allocations []grant `json:"allocations"`
	}
	s.getJSON(t, &list, imagePath(file, "/allocations"))
	for _, g := range list.Allocations {
		live += g.Length
		for _, part := range g.Mapped {
			live -= part.Length
		}
		must(t, s.giveBack(file, g.ID))
	}
	return live
}
