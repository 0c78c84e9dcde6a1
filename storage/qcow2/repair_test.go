package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A damager damages the bytes of an image at random.
type damager struct {
	rng     *rand.Rand
	b       []byte
	said    []string
	cluster uint64
}

func (d *damager) u64(at uint64) uint64 {
	if at > uint64(len(d.b)-16) {
		return 0
	}
	return binary.BigEndian.Uint64(d.b[at:])
}

func (d *damager) put(what string, at, v uint64) {
	if at > uint64(len(d.b)-16) {
		return
	}
	d.said = append(d.said, fmt.Sprintf("%s at %#x: %#x to %#x", what, at, d.u64(at), v))
	binary.BigEndian.PutUint64(d.b[at:], v)
}

// entries are the places of the entries of a table that are not 0, or of some.
func (d *damager) entries(table uint64, n int, step uint64) []uint64 {
	var at []uint64
	for k := range uint64(n) {
		if d.u64(table+k*step) != 0 {
			at = append(at, table+k*step)
		}
	}
	if len(at) == 0 {
		return []uint64{table}
	}
	return at
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

const offsets = 0x00fffffffffffe00

// tables are where the active L1 table's, or a snapshot's, L2 tables are.
func (d *damager) l1Entries() []uint64 {
	table, n := d.u64(40), int(min(d.u64(36)>>32, 1<<12))
	if snapshots := binary.BigEndian.Uint32(d.b[60:]); snapshots > 0 && d.rng.IntN(3) == 0 {
		at := d.u64(64)
		table, n = d.u64(at), int(min(d.u64(at+8)>>32, 1<<12))
	}
	return d.entries(table, n, 8)
}

func (d *damager) l2Entry() uint64 {
	step := uint64(8)
	if d.u64(72)&(1<<4) != 0 {
		step = 16
	}
	table := d.u64(pick(d.rng, d.l1Entries())) & offsets
	return pick(d.rng, d.entries(table, int(d.cluster/step), step))
}

func (d *damager) refcountEntry() uint64 {
	return pick(d.rng, d.entries(d.u64(48), int(d.cluster)/8, 8))
}

// mutate is what an entry becomes.
func (d *damager) mutate(v uint64) uint64 {
	flags := v &^ offsets
	end := uint64(len(d.b))
	switch d.rng.IntN(12) {
	case 0:
		return 0
	case 1:
		return v ^ 1<<63
	case 2:
		return v ^ 1<<d.rng.IntN(64)
	case 3:
		return v + 512
	case 4:
		return flags | end&^(d.cluster-1)
	case 5:
		return flags | (end&^(d.cluster-1) + d.cluster)
	case 6:
		return flags | (end/2)&^(d.cluster-1)
	case 7:
		return v ^ 1
	case 8:
		return v ^ 1<<62
	case 9:
		return flags | d.cluster*d.rng.Uint64N(8)
	case 10:
		return flags | d.rng.Uint64()&offsets
	}
	return flags | d.cluster*d.rng.Uint64N(end/d.cluster)
}

func (d *damager) damage() {
	switch d.rng.IntN(10) {
	case 0, 1:
		at := pick(d.rng, d.l1Entries())
		d.put("l1 entry", at, d.mutate(d.u64(at)))
	case 2, 3, 4:
		at := d.l2Entry()
		d.put("l2 entry", at, d.mutate(d.u64(at)))
	case 5:
		at := d.refcountEntry()
		d.put("refcount table", at, d.mutate(d.u64(at)))
	case 6, 7:
		block := d.u64(d.refcountEntry()) & offsets
		if block == 0 {
			return
		}
		at := block + d.rng.Uint64N(64)*8
		d.put("refcount block", at, pick(d.rng, []uint64{0, d.rng.Uint64(), d.u64(at) ^ 1<<d.rng.IntN(64)}))
	case 8:
		if at := d.u64(64); at != 0 { // the first snapshot's L1 table
			d.put("snapshot", at, d.mutate(d.u64(at)))
		}
	case 9:
		d.put("features", 72, d.u64(72)^pick(d.rng, []uint64{1, 2, 3}))
	}
}

func cloneFile(t testing.TB, dir, to string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, to), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// repairBoth repairs copies of an image, and compares what comes out.
func repairBoth(t testing.TB, dir string, b []byte, all bool) {
	t.Helper()
	how, repair := "leaks", qcow2.RepairLeaks
	if all {
		how, repair = "all", qcow2.RepairAll
	}
	cloneFile(t, dir, "ours", b)
	cloneFile(t, dir, "theirs", b)
	res, err := qcow2.Check(t.Context(), writableNode(t, dir, "ours"), qcow2.CheckOptions{Repair: repair})
	want, ok := qemuCheck(t, dir, "theirs", "-r", how)
	if !ok || want.CheckErrors > 0 {
		return
	}
	fixed := want
	if want, ok = qemuCheck(t, dir, "theirs"); !ok { // what it says right after a repair is not always so
		return
	}
	if err != nil {
		t.Errorf("repair %s: %v, and qemu-img: %+v", how, err, want)
		return
	}
	got, ok := qemuCheck(t, dir, "ours")
	if !ok {
		t.Errorf("repair %s: qemu-img cannot check what we repaired", how)
		return
	}
	if after := report(res); after.CheckErrors == 0 && (got.Corruptions != after.Corruptions || got.Leaks != after.Leaks || got.ImageEnd != after.ImageEnd) {
		t.Errorf("repair %s: qemu-img finds %+v in what we repaired, and we %+v", how, got, after)
	}
	// It may have made the file longer, up to what lay past its end.
	beyond := strings.Contains(strings.Join(res.Errors, "\n"), "past the end")
	if want.clean() && !got.clean() && !beyond {
		t.Errorf("repair %s: qemu-img finds\n%+v in ours\n%+v in what it repaired itself\n%s", how, got, want, strings.Join(res.Errors[:min(len(res.Errors), 12)], "\n"))
	}
	if fixed.CorruptionsFixed != res.CorruptionsFixed || fixed.LeaksFixed != res.LeaksFixed {
		t.Logf("repair %s: qemu-img fixed\n%+v, and we\n%+v", how, fixed, report(res))
	}
}

// damageRounds is how many images of each kind are damaged. Hundreds find what is
// rare.
const damageRounds = 2

// TestDamage damages images at random. What we say, and what is left of it
// after a repair, is what qemu-img says.
func TestDamage(t *testing.T) {
	for _, k := range checkKinds {
		if strings.Contains(k.options, "luks") || strings.Contains(k.options, "2M") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			dir, rng := t.TempDir(), random(t)
			fill(t, dir, "image", k.options)
			clean := load(t, dir, "image")
			for range damageRounds {
				d := &damager{rng: rng, b: slices.Clone(clean), cluster: 1 << binary.BigEndian.Uint32(clean[20:])}
				for range 1 + rng.IntN(4) {
					d.damage()
				}
				t.Run("", func(t *testing.T) {
					t.Log(strings.Join(d.said, "; "))
					cloneFile(t, dir, "damaged", d.b)
					sameCheck(t, dir, "damaged")
					if diff := !bytes.Equal(d.b, load(t, dir, "damaged")); diff {
						t.Error("a check wrote to the image")
					}
					repairBoth(t, dir, d.b, true)
					repairBoth(t, dir, d.b, false)
				})
			}
		})
	}
}

// TestRepairSettles repairs images that were damaged at random, in memory. What
// is clean stays so; what is not stays readable for another check.
func TestRepairSettles(t *testing.T) {
	const rounds = 20
	for _, options := range []string{"cluster_size=512", "refcount_bits=1,cluster_size=4k", "extended_l2=on,cluster_size=16k", "refcount_bits=64,cluster_size=512"} {
		t.Run(options, func(t *testing.T) {
			dir, rng := t.TempDir(), random(t)
			fill(t, dir, "image", options)
			clean := load(t, dir, "image")
			all := qcow2.CheckOptions{Repair: qcow2.RepairAll}
			for range rounds {
				d := &damager{rng: rng, b: slices.Clone(clean), cluster: 1 << binary.BigEndian.Uint32(clean[20:])}
				for range 1 + rng.IntN(8) {
					d.damage()
				}
				node := memNode(d.b)
				first, err := qcow2.Check(t.Context(), node, all)
				if err != nil {
					if !errors.Is(err, storage.ErrCorrupt) && !errors.Is(err, storage.ErrUnsupported) {
						t.Fatalf("%v: %v", d.said, err)
					}
					continue
				}
				second, err := qcow2.Check(t.Context(), node, all)
				if err != nil || first.Clean() && (!second.Clean() || second.CorruptionsFixed+second.LeaksFixed != 0) {
					t.Fatalf("%v:\nfirst  %+v\nsecond %+v, %v", d.said, report(first), report(second), err)
				}
			}
		})
	}
}

// TestCheckWhileWriting: an image that is being written to can be checked and
// repaired. What is reserved is neither counted nor given back.
func TestCheckWhileWriting(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512,lazy_refcounts=on"} {
		t.Run(options, func(t *testing.T) {
			ctx := t.Context()
			w := newWritten(t, 256<<10, options, func(dir string) { snapshots(t, dir) })
			leaked, err := w.image.Alloc(ctx, 3*w.units.Alloc, storage.AllocOptions{Contiguous: true})
			w.ok(err)
			w.ok(w.image.Close()) // what is reserved has leaked
			w.open()
			w.write([]byte("dirty"), 100)
			live, err := w.image.Alloc(ctx, w.units.Alloc, storage.AllocOptions{})
			w.ok(err)
			res, err := w.image.Check(ctx, qcow2.CheckOptions{})
			if err != nil || res.Corruptions != 0 || res.Leaks != 3 {
				t.Fatalf("Check = %+v, %v, want 3 leaks", res, err)
			}
			res, err = w.image.Check(ctx, qcow2.CheckOptions{Repair: qcow2.RepairLeaks})
			if err != nil || !res.Clean() || res.LeaksFixed != 3 {
				t.Fatalf("Check = %+v, %v, want 3 leaks fixed", res, err)
			}
			again, err := w.image.Alloc(ctx, 3*w.units.Alloc, storage.AllocOptions{Contiguous: true})
			w.ok(err)
			if again.Offset != leaked.Offset {
				t.Errorf("what had leaked at %d is not reserved anew: %d", leaked.Offset, again.Offset)
			}
			w.ok(w.image.Free(ctx, again))
			res, err = w.image.Check(ctx, qcow2.CheckOptions{Repair: qcow2.RepairAll})
			if err != nil || !res.Clean() || res.LeaksFixed+res.CorruptionsFixed != 0 {
				t.Fatalf("Check = %+v, %v, want nothing", res, err)
			}
			w.ok(w.image.Free(ctx, live))
			w.write([]byte("goes on"), 5000)
			w.compare()
			w.close()
		})
	}
}

// TestCheckHostile: what a file claims takes neither memory nor time.
func TestCheckHostile(t *testing.T) {
	base := builder{clusterBits: 9, entries: []uint64{1<<63 | 1<<55, 1 << 54, 1<<62 | 1<<50, 512 * 77}}
	far := storagetest.NewMemFile(base.bytes())
	if _, err := qcow2.Check(t.Context(), storage.NewNode("image", far, storage.NodeOptions{}), qcow2.CheckOptions{}); err != nil {
		t.Errorf("entries past the end: %v", err)
	}
	far.SetSize(1 << 50)
	_, err := qcow2.Check(t.Context(), storage.NewNode("image", far, storage.NodeOptions{}), qcow2.CheckOptions{})
	if !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("Check of 2^41 clusters = %v, want %v", err, storage.ErrUnsupported)
	}
	far.SetSize(1 << 39)
	res, err := qcow2.Check(t.Context(), storage.NewNode("image", far, storage.NodeOptions{}), qcow2.CheckOptions{})
	if err != nil || res.Corruptions == 0 || len(res.Errors) > 100 {
		t.Errorf("Check = %+v, %v", res, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := qcow2.Check(ctx, memNode(base.bytes()), qcow2.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Check = %v, want %v", err, context.Canceled)
	}
}
