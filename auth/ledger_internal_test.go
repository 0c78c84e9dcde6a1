package auth

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/state"
	"github.com/extentd/extentd/storage"
)

func TestTicketsAreBoundedInAll(t *testing.T) {
	now := time.Now()
	var l ledger
	if err := l.load(nil, now); err != nil {
		t.Fatal(err)
	}
	ticket := func(minter int, ends time.Time) *record {
		return &record{
			note:   note{id: rand.Text(), image: "a", verbs: Read, expires: ends.UnixMilli()},
			source: source{kind: KindToken, name: fmt.Sprint(minter)},
		}
	}
	for minter := range maxTickets / maxTicketsMinter {
		for range maxTicketsMinter {
			if err := l.reserve(ticket(minter, now.Add(time.Minute)), now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, minter := range []int{0, maxTickets} {
		if err := l.reserve(ticket(minter, now.Add(time.Hour)), now); !errors.Is(err, storage.ErrRefused) {
			t.Errorf("minter %d: %v", minter, err)
		}
	}
	// What has ended makes room for its minter at once.
	if err := l.reserve(ticket(0, now.Add(time.Hour)), now.Add(time.Minute)); err != nil {
		t.Error(err)
	}
	if want := maxTickets - maxTicketsMinter + 1; len(l.live) != want {
		t.Errorf("%d live, want %d", len(l.live), want)
	}
	if err := l.sweep(now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if len(l.live) != 1 || len(l.minters) != 1 || len(l.ended) != 0 {
		t.Errorf("%d live of %d minters, %d ended", len(l.live), len(l.minters), len(l.ended))
	}
}

// What has ended while the server was down is removed from the state.
func TestSweepAfterRestart(t *testing.T) {
	db := state.New(t.TempDir())
	defer db.Close()
	now := time.Now()
	count := func() (n int) {
		err := db.View(func(tx *bbolt.Tx) error {
			n = tx.Bucket([]byte(bucketTickets)).Bucket([]byte(bucketLive)).Stats().KeyN
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var first ledger
	if err := first.load(db, now); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		rec := &record{
			note:   note{id: rand.Text(), image: "a", verbs: Read, expires: now.Add(time.Duration(1+i%2) * time.Hour).UnixMilli()},
			source: source{kind: KindAnyone},
		}
		if _, err := first.add(rec, now); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(90 * time.Minute)
	var second ledger
	if err := second.load(db, now); err != nil {
		t.Fatal(err)
	}
	if len(second.live) != 10 || count() != 20 {
		t.Errorf("%d live, %d kept", len(second.live), count())
	}
	if err := second.sweep(now); err != nil {
		t.Fatal(err)
	}
	if count() != 10 {
		t.Errorf("%d kept after the sweep, want 10", count())
	}
	if *first.key.Load() != *second.key.Load() {
		t.Error("the key is another one")
	}
}

func TestDamagedState(t *testing.T) {
	good, err := (&record{note: note{image: "a", verbs: Read}, source: source{kind: KindAnyone}}).encode()
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, len(ticketKey{}))
	cases := []struct {
		name, id    string
		key, record []byte
		want        string // "" for none
	}{
		{"good", rand.Text(), key, good, ""},
		{"no key", rand.Text(), nil, good, "the key has 0 bytes"},
		{"a short key", rand.Text(), key[1:], good, "the key has 31 bytes"},
		{"a long key", rand.Text(), append(key, 0), good, "the key has 33 bytes"},
		{"no json", rand.Text(), key, good[1:], "ticket"},
		{"a short id", "x", key, good, `ticket "x" makes no sense`},
		{"no verbs", rand.Text(), key, []byte(strings.Replace(string(good), `"verbs":2`, `"verbs":0`, 1)), "makes no sense"},
		{"other verbs", rand.Text(), key, []byte(strings.Replace(string(good), `"verbs":2`, `"verbs":66`, 1)), "makes no sense"},
		{"a pattern", rand.Text(), key, []byte(strings.Replace(string(good), `"image":"a"`, `"image":"*"`, 1)), "makes no sense"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			db := state.New(t.TempDir())
			defer db.Close()
			err := db.Update(func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucket([]byte(bucketTickets))
				if err != nil {
					return err
				}
				if c.key != nil {
					if err := b.Put([]byte(keyName), c.key); err != nil {
						return err
					}
				}
				live, err := b.CreateBucket([]byte(bucketLive))
				if err != nil {
					return err
				}
				return live.Put([]byte(c.id), c.record)
			})
			if err != nil {
				t.Fatal(err)
			}
			g, err := New(t.Context(), Options{State: db})
			if err == nil {
				defer g.Close()
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// No more secrets are remembered than there is room for.
func TestCacheIsBounded(t *testing.T) {
	now := time.Now()
	var c cache
	var h handle
	for i := range 3 * maxCached {
		h[0], h[1], h[2] = byte(i), byte(i>>8), byte(i>>16)
		c.put(h, cached{caller: Anyone(), until: now.Add(time.Hour)}, now)
		if c.get(h, now) == nil {
			t.Fatal("what was put last is not there")
		}
	}
	if len(c.known) > maxCached {
		t.Errorf("%d are remembered", len(c.known))
	}
	if c.get(h, now.Add(cacheFor)) != nil {
		t.Error("it is remembered for too long")
	}
}
