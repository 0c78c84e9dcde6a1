package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// counted is what is kept, by what the buckets hold and by what is counted.
func (o *onceServer) counted(t testing.TB) (keys, untils int, all, sum usage) {
	t.Helper()
	err := o.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketKeys))
		if b == nil {
			return nil
		}
		err := b.ForEach(func(_, _ []byte) error { keys++; return nil })
		if err == nil {
			err = tx.Bucket([]byte(bucketUntil)).ForEach(func(_, _ []byte) error { untils++; return nil })
		}
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketUsage)).ForEach(func(k, v []byte) error {
			var u usage
			if err := json.Unmarshal(v, &u); err != nil {
				return err
			}
			if string(k) == usageOfAll {
				all = u
			} else {
				sum.Keys, sum.Bytes = sum.Keys+u.Keys, sum.Bytes+u.Bytes
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys, untils, all, sum
}

func (o *onceServer) consistent(t testing.TB, want int) {
	t.Helper()
	keys, untils, all, sum := o.counted(t)
	if keys != want || untils != want || all.Keys != int64(want) || all != sum || (want == 0) != (all.Bytes == 0) {
		t.Errorf("%d keys, %d times, %+v in all, %+v in sum, want %d", keys, untils, all, sum, want)
	}
}

func TestOnceExpires(t *testing.T) {
	o := startOnce(t, t.TempDir(), nil)
	o.handler = o.created
	for n := range 2*maxSwept + 10 {
		o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", fmt.Sprint("k", n), "Caller", []string{"", "token"}[n%2]), 201, int64(n+1), "")
	}
	runs := o.runs.Load()
	o.consistent(t, int(runs))
	o.ahead.Store(int64(keyTime - time.Minute))
	o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k0"), 201, runs, `"run":1,`)
	o.ahead.Store(int64(keyTime + time.Minute))
	last := fmt.Sprint("k", runs-2) // not yet swept when it comes again
	o.want(t, o.send(t, "/once/b", "{}", "Idempotency-Key", last), 201, runs+1, "")
	o.consistent(t, maxSwept+9+1)
	o.want(t, o.send(t, "/once/b", "{}", "Idempotency-Key", "new"), 201, runs+2, "")
	o.want(t, o.send(t, "/once/b", "{}", "Idempotency-Key", "newer"), 201, runs+3, "")
	o.consistent(t, 3)
	o.handler = func(w http.ResponseWriter, r *http.Request) { // is under way for days
		o.ahead.Add(int64(3 * keyTime))
		o.created(w, r)
	}
	o.want(t, o.send(t, "/once/c", "{}", "Idempotency-Key", "slow"), 201, runs+4, "")
	o.want(t, o.send(t, "/once/c", "{}", "Idempotency-Key", "slow"), 201, runs+4, "")
	o.handler = func(w http.ResponseWriter, r *http.Request) { o.s.fail(w, r, errMethod) }
	o.want(t, o.send(t, "/once/c", "{}", "Idempotency-Key", "none"), 405, runs+5, "")
	o.consistent(t, 1)
}

// Who has as much as one may have goes on without a key, and the others with one.
func TestOnceBounds(t *testing.T) {
	most := usage{maxKeys/2 - 1, maxKept/2 - 1}
	for name, c := range map[string]struct {
		own, all usage
		status   int
	}{
		"room":           {most, usage{maxKeys - 1, maxKept - 1}, 201},
		"my keys":        {usage{maxKeys / 2, 1}, usage{maxKeys / 2, 1}, 507},
		"my bytes":       {usage{1, maxKept / 2}, usage{1, maxKept / 2}, 507},
		"everyone's":     {usage{}, usage{maxKeys, 1}, 507},
		"all bytes":      {usage{}, usage{1, maxKept}, 507},
		"that of others": {usage{}, usage{maxKeys - 1, 1}, 201},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOnce(t, t.TempDir(), nil)
			o.handler = o.created
			owner := digestOf("token", "ab", "c")
			err := o.db.Update(func(tx *bbolt.Tx) error {
				b, err := openBuckets(tx)
				if err != nil {
					return err
				}
				if err := b.count(owner[:], c.own.Keys, c.own.Bytes); err != nil {
					return err
				}
				rest := digestOf("others")
				return b.count(rest[:], c.all.Keys-c.own.Keys, c.all.Bytes-c.own.Bytes)
			})
			if err != nil {
				t.Fatal(err)
			}
			runs := int64(0)
			if c.status == 201 {
				runs = 1
			}
			o.want(t, o.send(t, "/once/a", "{}", "Idempotency-Key", "k", "Caller", "token"), c.status, runs, "")
			o.want(t, o.send(t, "/once/a", "{}", "Caller", "token"), 201, runs+1, "")
		})
	}
}

// Any order of requests, failures, restarts and days is as a simple model says.
func TestOnceModel(t *testing.T) {
	dir := t.TempDir()
	o := startOnce(t, dir, nil)
	fail := false
	o.handler = func(w http.ResponseWriter, r *http.Request) {
		if fail {
			o.s.fail(w, r, errMethod)
			return
		}
		o.created(w, r)
	}
	type entry struct {
		request, answer string
		until           time.Duration
	}
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		model := map[string]entry{}
		r.Repeat(map[string]func(*rapid.T){
			"request": func(r *rapid.T) {
				key := fmt.Sprint(round, "-", rapid.IntRange(0, 1).Draw(r, "key"))
				caller := rapid.SampledFrom([]string{"", "ticket"}).Draw(r, "caller")
				body := rapid.SampledFrom([]string{"{}", `{"n":1}`}).Draw(r, "body")
				fail = rapid.IntRange(0, 3).Draw(r, "fail") == 0
				runs, now := o.runs.Load(), time.Duration(o.ahead.Load())
				was, known := model[caller+" "+key]
				known = known && now < was.until
				p := o.send(t, "/once/a", body, "Idempotency-Key", key, "Caller", caller)
				switch {
				case known && was.request == body:
					if p.status != 201 || p.body != was.answer || !p.replayed() || o.runs.Load() != runs {
						r.Fatalf("%+v is no replay of %s", p, was.answer)
					}
				case known:
					if p.status != 409 || o.runs.Load() != runs {
						r.Fatalf("%+v, want 409", p)
					}
				case fail:
					if p.status != 405 || o.runs.Load() != runs+1 {
						r.Fatalf("%+v, want 405", p)
					}
					delete(model, caller+" "+key)
				default:
					if p.status != 201 || p.replayed() || o.runs.Load() != runs+1 {
						r.Fatalf("%+v, want 201", p)
					}
					model[caller+" "+key] = entry{body, p.body, now + keyTime}
				}
			},
			"time": func(r *rapid.T) { o.ahead.Add(int64(rapid.IntRange(1, 30).Draw(r, "hours")) * int64(time.Hour)) },
			"restart": func(r *rapid.T) {
				if rapid.IntRange(0, 5).Draw(r, "restart") == 0 {
					o.restart(t)
				}
			},
		})
	})
	keys, untils, all, sum := o.counted(t)
	if keys != untils || all != sum || all.Keys != int64(keys) {
		t.Errorf("%d keys, %d times, %+v in all, %+v in sum", keys, untils, all, sum)
	}
}
