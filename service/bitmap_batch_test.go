package service_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	format "github.com/extentd/extentd/storage/qcow2"
)

// A faultyKeeper fails the change of bitmaps that spent counts down to.
type faultyKeeper struct {
	*format.Image
	left *atomic.Int32
}

func (k faultyKeeper) ChangeBitmaps(ctx context.Context, changes []storage.BitmapChange) error {
	if k.left.Add(-1) == 0 {
		return fmt.Errorf("fake: %w", storage.ErrNoSpace)
	}
	return k.Image.ChangeBitmaps(ctx, changes)
}

func faultyKeepers(left *atomic.Int32) map[string]service.Driver {
	d := service.QCOW2Driver()
	inner := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		l, err := inner(ctx, node, opt)
		if i, ok := l.Mapper.(*format.Image); ok {
			l.Mapper = faultyKeeper{i, left}
		}
		return l, err
	}
	return map[string]service.Driver{"qcow2": d}
}

// TestBitmapsAllOrNone fails the change of each of three images in turn: all of them
// have what they had before, whatever was to be done.
func TestBitmapsAllOrNone(t *testing.T) {
	dir := t.TempDir()
	images := []string{"a.qcow2", "b.qcow2", "c.qcow2"}
	for _, name := range images {
		newDisk(t, dir, name)
	}
	var left atomic.Int32
	svc := start(t, service.Options{Dir: dir, Formats: faultyKeepers(&left)})
	for n, name := range images {
		changeBitmaps(t, svc, recording(name, "live"), recording(name, "other"))
		writeAt(t, svc, name, int64(n)*cluster, cluster)
		changeBitmaps(t, svc, step(name, storage.BitmapDisable, "other"))
	}
	all := func() string {
		var texts []string
		for _, name := range images {
			texts = append(texts, strings.Join(sorted(bitmapsOf(t, svc, name)), " "))
		}
		return strings.Join(texts, "; ")
	}
	before := all()
	if want := "live*=65536 other=65536"; before != want+"; "+want+"; "+want {
		t.Fatal(before)
	}
	of := func(name string) []service.ImageBitmapChange {
		return []service.ImageBitmapChange{
			recording(name, "new"), step(name, storage.BitmapMerge, "new", "live"), step(name, storage.BitmapClear, "live"),
			step(name, storage.BitmapDisable, "live"), step(name, storage.BitmapDelete, "other"), recording(name, "other"), step(name, storage.BitmapMerge, "other", "new"),
		}
	}
	var batch []service.ImageBitmapChange
	for _, name := range images {
		batch = append(batch, of(name)...)
	}
	for n := range images {
		left.Store(int32(n + 1))
		err := svc.ChangeBitmaps(t.Context(), batch)
		if !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("change %d: %v", n, err)
		}
		if got := all(); got != before {
			t.Fatalf("after change %d failed: %s, want %s", n, got, before)
		}
		for i, name := range images { // what they mark is what it was, too
			if got := marked(t, svc, name, "other"); !slices.Equal(got, []int64{int64(i) * 16}) {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	left.Store(0)
	changeBitmaps(t, svc, batch...)
	if got, want := all(), "live=0 new*=65536 other*=65536"; got != want+"; "+want+"; "+want {
		t.Errorf("%s, want three times %s", got, want)
	}
	closed(t, svc)
	for _, name := range images {
		checkClean(t, dir, name)
	}
}

func sorted(text string) []string {
	words := strings.Fields(text)
	slices.Sort(words)
	return words
}

// marked are the granules of 4 KiB at which the dirty pieces of a bitmap begin.
func marked(t testing.TB, svc *service.Service, image, bitmap string) (granules []int64) {
	t.Helper()
	h := acquire(t, svc, image)
	defer h.Release()
	err := h.Dirty(t.Context(), bitmap, 0, h.Device().Size(), func(off, n int64, dirty bool) error {
		if dirty {
			granules = append(granules, off>>12)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return granules
}

// TestBitmapsAmongWriters creates and freezes bitmaps of two images at once while
// they are written to. Each granule is written once, so it must be in exactly one
// bitmap; and who writes to one image and then to the other is never recorded in an
// older generation of bitmaps than before: they change at one moment for both.
func TestBitmapsAmongWriters(t *testing.T) {
	const writers, each, granule = 4, 128, 4096
	dir := t.TempDir()
	images := []string{"a.qcow2", "b.qcow2"}
	for _, name := range images {
		qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", name, fmt.Sprint(writers*each*granule))
		qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 9 0 %d", writers*each*granule), name) // zeros are a change
	}
	svc := start(t, service.Options{Dir: dir})
	generation := func(n int) string { return fmt.Sprint("g", n) }
	changeBitmaps(t, svc, recording(images[0], generation(0)), recording(images[1], generation(0)))
	var work sync.WaitGroup
	var written atomic.Int32
	for w := range writers {
		work.Go(func() {
			for k := range each {
				for i := range images {
					h, err := svc.AcquireWritable(t.Context(), images[i])
					if err != nil {
						t.Error(err)
						return
					}
					off := int64(w*each+k) * granule
					switch k % 3 {
					case 0:
						err = h.Device().Zero(t.Context(), off, granule, false)
					default:
						err = h.Device().WriteAt(t.Context(), pattern(byte(w+1), granule), off)
					}
					h.Release()
					if err != nil {
						t.Error(err)
						return
					}
					written.Add(1)
				}
			}
		})
	}
	last := 0
	for ; written.Load() < writers*each*2 && !t.Failed(); last++ {
		var batch []service.ImageBitmapChange
		for _, i := range rand.Perm(2) { // the order in the request is of no matter
			batch = append(batch, recording(images[i], generation(last+1)), step(images[i], storage.BitmapDisable, generation(last)))
		}
		changeBitmaps(t, svc, batch...)
		if last%8 == 7 { // what is frozen may be removed, and others go on
			changeBitmaps(t, svc, step(images[0], storage.BitmapCreate, "copy"), step(images[0], storage.BitmapMerge, "copy", generation(last)), step(images[0], storage.BitmapDelete, "copy"))
		}
	}
	work.Wait()
	var in [2][writers * each]int // the generation that has the granule, plus 1
	for i, name := range images {
		for n := range last + 1 {
			for g := range dirtyGranules(t, svc, name, generation(n)) {
				if in[i][g] != 0 {
					t.Fatalf("%s: granule %d is in the bitmaps %d and %d", name, g, in[i][g]-1, n)
				}
				in[i][g] = n + 1
			}
		}
	}
	for w := range writers {
		before := 1
		for k := range each {
			for i, name := range images {
				now := in[i][w*each+k]
				if now < before {
					t.Fatalf("%s: granule %d is in bitmap %d, after a write that is in bitmap %d", name, w*each+k, now-1, before-1)
				}
				before = now
			}
		}
	}
	if last < 3 {
		t.Errorf("only %d generations", last)
	}
	t.Logf("%d generations", last)
}

// dirtyGranules are all granules of 4 KiB that a bitmap marks.
func dirtyGranules(t testing.TB, svc *service.Service, image, bitmap string) map[int64]bool {
	t.Helper()
	found := map[int64]bool{}
	h := acquire(t, svc, image)
	defer h.Release()
	err := h.Dirty(t.Context(), bitmap, 0, h.Device().Size(), func(off, n int64, dirty bool) error {
		for at := off; dirty && at < off+n; at += 4096 {
			found[at>>12] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
