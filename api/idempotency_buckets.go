package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// buckets are those of the answers, in one change.
type buckets struct{ keys, until, usage *bbolt.Bucket }

func openBuckets(tx *bbolt.Tx) (b buckets, err error) {
	for name, to := range map[string]**bbolt.Bucket{bucketKeys: &b.keys, bucketUntil: &b.until, bucketUsage: &b.usage} {
		if *to, err = tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return b, err
		}
	}
	return b, nil
}

// sweep forgets what is over, the oldest first, and not too much at a time.
func (b *buckets) sweep(now time.Time) error {
	var over []digest
	c := b.until.Cursor()
	for k, _ := c.First(); k != nil && len(over) < maxSwept && len(k) == 8+len(digest{}); k, _ = c.Next() {
		if now.Before(time.Unix(0, int64(binary.BigEndian.Uint64(k)))) {
			break
		}
		over = append(over, digest(k[8:]))
	}
	for _, id := range over {
		if err := b.drop(id); err != nil {
			return err
		}
	}
	return nil
}

func untilKey(until time.Time, id digest) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(until.UnixNano())), id[:]...)
}

// put adds an entry that is not there.
func (b *buckets) put(e *entry, k *keptEntry) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := b.keys.Put(e.id[:], text); err != nil {
		return err
	}
	if err := b.until.Put(untilKey(k.Until, e.id), nil); err != nil {
		return err
	}
	return b.count(k.Owner, 1, int64(len(text)))
}

// drop removes an entry, if it is there.
func (b *buckets) drop(id digest) error {
	text := b.keys.Get(id[:])
	if text == nil {
		return nil
	}
	var k keptEntry
	if err := json.Unmarshal(text, &k); err != nil {
		return fmt.Errorf("state: %s: %w", bucketKeys, err)
	}
	size := int64(len(text)) // which is not to be used after a change
	if err := b.keys.Delete(id[:]); err != nil {
		return err
	}
	if err := b.until.Delete(untilKey(k.Until, id)); err != nil {
		return err
	}
	return b.count(k.Owner, -1, -size)
}

// used is what all callers have, and what one has.
func (b *buckets) used(owner []byte) (sum, own usage, err error) {
	for key, to := range map[string]*usage{usageOfAll: &sum, string(owner): &own} {
		if text := b.usage.Get([]byte(key)); text != nil {
			if err := json.Unmarshal(text, to); err != nil {
				return sum, own, fmt.Errorf("state: %s: %w", bucketUsage, err)
			}
		}
	}
	return sum, own, nil
}

// count counts what is put, or dropped.
func (b *buckets) count(owner []byte, keys, size int64) error {
	sum, own, err := b.used(owner)
	if err != nil {
		return err
	}
	for key, u := range map[string]usage{usageOfAll: sum, string(owner): own} {
		u.Keys, u.Bytes = u.Keys+keys, u.Bytes+size
		if u.Keys <= 0 {
			if err := b.usage.Delete([]byte(key)); err != nil {
				return err
			}
			continue
		}
		text, err := json.Marshal(u)
		if err != nil {
			return err
		}
		if err := b.usage.Put([]byte(key), text); err != nil {
			return err
		}
	}
	return nil
}
