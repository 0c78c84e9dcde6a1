package test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const replayed = "Idempotency-Replayed"

// TestIdempotencyKey sends with curl what is to be done once.
func TestIdempotencyKey(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	keyed := func(s *server, key, path, body string) answer {
		t.Helper()
		return curl(t, s, path, "-H", "Idempotency-Key: "+key, "-H", "Content-Type: application/json", "-d", body)
	}
	const creation = `{"name":"a.qcow2","format":"qcow2","size":1048576}`
	first := keyed(s, "one", "/v1/images", creation)
	if first.status != http.StatusCreated || first.header.Get(replayed) != "" {
		t.Fatalf("%d: %s", first.status, first.body)
	}
	s.stop()
	s = serve(t, dir)
	for range 2 {
		a := keyed(s, "one", "/v1/images", creation)
		if a.status != http.StatusCreated || a.header.Get(replayed) != "true" || !bytes.Equal(a.body, first.body) || a.header.Get("Location") != "/v1/images/a.qcow2" {
			t.Errorf("after a restart: %d %v: %s", a.status, a.header, a.body)
		}
	}
	a := keyed(s, "one", "/v1/images", strings.Replace(creation, "a.qcow2", "b.qcow2", 1))
	checkProblem(t, a.header, a.body, 409, "conflict")
	a = keyed(s, "two", "/v1/images", creation)
	checkProblem(t, a.header, a.body, 409, "exists")
	a = keyed(s, strings.Repeat("k", 256), "/v1/images", creation)
	checkProblem(t, a.header, a.body, 400, "invalid-request")
	if _, err := os.Stat(filepath.Join(dir, "b.qcow2")); err == nil {
		t.Error("another request has been done under the key")
	}
	if info, err := os.Stat(filepath.Join(dir, ".extentd", "state.db")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state.db: %v, %v", info, err)
	}
	s.stop()
	s = serve(t, dir, "--read-only")
	a = keyed(s, "three", "/v1/images", creation)
	checkProblem(t, a.header, a.body, 422, "unsupported-feature")
}

// TestIdempotencyKeyClientGone goes away while an image is being made, and has the
// server stopped: the image is made all the same, once, and who asks again is told.
func TestIdempotencyKeyClientGone(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	creation := object{"name": "a.raw", "format": "raw", "size": 64 * mib, "preallocation": "full"}
	create := func(s *server) (answer, error) {
		return s.sendJSON(http.MethodPost, "/v1/images", creation, "Idempotency-Key", "k")
	}
	s.client.Timeout = 30 * time.Millisecond
	_, err := create(s)
	t.Logf("the first time: %v", err)
	s.client.Timeout = 2 * time.Minute
	s.stop()
	s = serve(t, dir)
	a, err := create(s)
	must(t, err)
	switch a.status {
	case http.StatusCreated:
	case http.StatusConflict: // it took longer than a server that stops waits
		if p := checkProblem(t, a.header, a.body, 409, "conflict"); !strings.Contains(p.Detail, "not known") {
			t.Errorf("%s", a.body)
		}
		return
	default:
		t.Fatalf("%d: %s", a.status, a.body)
	}
	if a, err = create(s); err != nil || a.header.Get(replayed) != "true" {
		t.Errorf("%v, %d: %s", err, a.status, a.body)
	}
	if p, err := s.read("a.raw", 64*mib-512, 512); err != nil || len(bytes.Trim(p, "\x00")) > 0 {
		t.Error(err)
	}
}

// A deed is something that is to be done once, of a worker.
type deed struct {
	path, key string
	body      object
	clusters  int64  // of an allocation: no other one has so many
	off       int64  // of a mapping: what is there is zeroed, and then perhaps written to
	answer    answer // status 0: none came
	tried     []byte // what was to be written since
	written   bool   // and is there durably
}

func (d *deed) do(s *server) (answer, error) {
	return s.sendJSON(http.MethodPost, d.path, d.body, "Idempotency-Key", d.key)
}

const (
	deedCluster = 4 * kib
	deedWorkers = 4
	deedsMost   = 180 // of one worker in a round
)

// deeds are those of one worker: until the server dies.
func deeds(s *server, file string, round, worker int, acked *atomic.Int64) (done []*deed) {
	for n := range deedsMost {
		d := &deed{key: fmt.Sprintf("%d-%d-%d", round, worker, n)}
		switch n % 3 {
		case 0:
			d.path, d.body = "/v1/images", object{"name": "new-" + d.key + ".raw", "format": "raw", "size": 4096}
		case 1:
			d.clusters = int64(((round*deedsMost+n)/3)*deedWorkers + worker + 1)
			d.path, d.body = imagePath(file, "/allocations"), object{"length": d.clusters * deedCluster}
		case 2:
			d.off = int64(worker*deedsMost+n) * deedCluster // no other one of this round
			d.path, d.body = imagePath(file, "/mappings"), object{"updates": []object{target(d.off, deedCluster, "zero")}}
			if s.put(file, d.off, stamped(d.off, deedCluster, 1), true) != nil {
				return done
			}
		}
		done = append(done, d)
		a, err := d.do(s)
		if err != nil {
			return done
		}
		d.answer = a
		acked.Add(1)
		if n%6 == 2 && a.status == http.StatusOK {
			d.tried = stamped(d.off, deedCluster, 2)
			if s.put(file, d.off, d.tried, true) != nil {
				return done
			}
			d.written = true
		}
	}
	return done
}

// TestIdempotencyKilled kills the server under a load of requests with keys. What
// was answered is answered again; of the others each is done then, or was, or
// nobody knows: and nothing is ever done twice.
func TestIdempotencyKilled(t *testing.T) {
	const workers, rounds = deedWorkers, 3
	m := newMaker(t, t.TempDir(), "once")
	file := m.create(".qcow2", 4*mib, fmt.Sprint("cluster_size=", deedCluster))
	seen := map[int]int{}
	for round := range rounds {
		s := serve(t, m.dir)
		var acked atomic.Int64
		var load sync.WaitGroup
		all := make([][]*deed, workers)
		for w := range workers {
			load.Go(func() { all[w] = deeds(s, file, round, w, &acked) })
		}
		least := int64(20 + m.rand.IntN(100))
		for deadline := time.Now().Add(20 * time.Second); acked.Load() < least && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(m.rand.IntN(20)) * time.Millisecond)
		s.kill()
		load.Wait()
		s = serve(t, m.dir)
		for _, mine := range all {
			for _, d := range mine {
				seen[redo(t, s, d)]++
			}
		}
		for _, mine := range all {
			checkDeeds(t, s, file, mine)
		}
		s.stop()
	}
	t.Logf("after a kill: %v by status; 0: answered again", seen)
	if seen[0] == 0 {
		t.Error("nothing was done")
	}
	s := serve(t, m.dir)
	s.liveAllocations(t, file)
	s.stop()
	m.leaksOf(t, file) // and no corruption
}

// redo does a deed again after the server was killed, twice, and returns the
// status, or 0 for the answer of the first time.
func redo(t *testing.T, s *server, d *deed) int {
	t.Helper()
	again, err := d.do(s)
	must(t, err)
	if d.answer.status != 0 {
		if again.status != d.answer.status || !bytes.Equal(again.body, d.answer.body) || again.header.Get(replayed) != "true" {
			t.Errorf("%s %s: %d %s, was %d %s", d.key, d.path, again.status, again.body, d.answer.status, d.answer.body)
		}
		return 0
	}
	status := again.status
	switch {
	case status == http.StatusConflict:
		p := checkProblem(t, again.header, again.body, 409, "conflict")
		if !strings.Contains(p.Detail, "Idempotency-Key") {
			t.Errorf("%s %s was done, and done again: %s", d.key, d.path, again.body)
		}
	case status != http.StatusOK && status != http.StatusCreated:
		t.Errorf("%s %s: %d %s", d.key, d.path, status, again.body)
	}
	third, err := d.do(s)
	must(t, err)
	if third.status != status || status < 300 && (third.header.Get(replayed) != "true" || !bytes.Equal(third.body, again.body)) {
		t.Errorf("%s %s: %d %s, was %d %s", d.key, d.path, third.status, third.body, status, again.body)
	}
	d.answer = again
	return status
}

// checkDeeds fails unless each was done once, or perhaps not if nobody knows.
func checkDeeds(t *testing.T, s *server, file string, mine []*deed) {
	t.Helper()
	var list struct {
		Allocations []grant `json:"allocations"`
	}
	s.getJSON(t, &list, imagePath(file, "/allocations"))
	for _, d := range mine {
		known := d.answer.status < 300
		switch {
		case d.clusters > 0:
			n := 0
			for _, g := range list.Allocations {
				if g.Length == d.clusters*deedCluster {
					n++
					if known && !bytes.Contains(d.answer.body, []byte(g.ID)) {
						t.Errorf("%s: allocation %s, and %s was answered", d.key, g.ID, d.answer.body)
					}
				}
			}
			if n > 1 || known && n == 0 {
				t.Errorf("%s: %d allocations", d.key, n)
			}
		case strings.HasSuffix(d.path, "/mappings") && known:
			p, err := s.read(file, d.off, deedCluster)
			must(t, err)
			switch isZero := len(bytes.Trim(p, "\x00")) == 0; {
			case d.written && !bytes.Equal(p, d.tried):
				t.Errorf("%s: what was written at %d after it is gone", d.key, d.off)
			case !isZero && (d.tried == nil || !bytes.Equal(p, d.tried)):
				t.Errorf("%s: it was answered %d, and is not done", d.key, d.answer.status)
			}
		}
	}
}
