package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

// A tracked disk is a device over a qcow2 image in memory, with a model of its bytes
// and of what its bitmaps must say.
type tracked struct {
	t     testing.TB
	rng   *rand.Rand
	opt   qcow2.CreateOptions
	files map[string]storage.File // "image", "data"; "below" is never written to
	image *qcow2.Image
	d     *block.Device

	bytes     []byte
	bitmaps   map[string]*bitmapModel
	snapshots map[string][]byte // by id
}

// A bitmapModel is what a bitmap must say, byte by byte: what has changed since it was
// cleared is dirty, what lies in a granule of which nothing was touched is not.
type bitmapModel struct {
	enabled          bool
	granularity      int64
	changed, touched []bool
}

func (m *bitmapModel) clone() *bitmapModel {
	c := *m
	c.changed, c.touched = slices.Clone(m.changed), slices.Clone(m.touched)
	return &c
}

// newTracked makes the image, and begins to write to it. file makes its files.
func newTracked(t testing.TB, rng *rand.Rand, opt qcow2.CreateOptions, file func(name string, content []byte) storage.File) *tracked {
	t.Helper()
	s := &tracked{
		t: t, rng: rng, opt: opt, files: map[string]storage.File{}, bytes: make([]byte, opt.Size),
		bitmaps: map[string]*bitmapModel{}, snapshots: map[string][]byte{},
	}
	created := storagetest.NewMemFile(nil)
	if opt.DataFile != "" {
		data := storagetest.NewMemFile(make([]byte, opt.Size))
		opt.DataNode = storage.NewNode("data", data, storage.NodeOptions{})
		s.files["data"] = file("data", data.Bytes())
	}
	must(t, qcow2.Create(t.Context(), storage.NewNode("image", created, storage.NodeOptions{}), opt))
	s.files["image"] = file("image", created.Bytes())
	if opt.Backing != "" {
		below := make([]byte, opt.Size*3/4)
		fillRandom(below, rng.Uint64())
		copy(s.bytes, below)
		s.files["below"] = storagetest.NewMemFile(below)
	}
	s.open()
	return s
}

func (s *tracked) node(name string) *storage.Node {
	return storage.NewNode(name, s.files[name], storage.NodeOptions{Check: true})
}

func (s *tracked) open() {
	s.t.Helper()
	ctx := s.t.Context()
	var err error
	s.image, err = qcow2.Open(ctx, s.node("image"), qcow2.Options{CacheSize: 64 << 10, OpenData: func(context.Context, string) (*storage.Node, error) {
		return s.node("data"), nil
	}})
	must(s.t, err)
	layers := []storage.Mapper{s.image}
	if s.opt.Backing != "" {
		below, err := raw.New(ctx, s.node("below"))
		must(s.t, err)
		layers = append(layers, below)
	}
	s.d, err = block.New(layers, block.Options{Check: true})
	must(s.t, err)
	must(s.t, s.image.StartWriting(ctx))
	must(s.t, s.d.StartWriting(ctx))
}

// effect notes that the bytes are now others, of which [off, off+n) were touched.
func (s *tracked) effect(next []byte, off, n int64) {
	for _, m := range s.bitmaps {
		m.resize(len(next))
		if !m.enabled {
			continue
		}
		for k := range next {
			m.changed[k] = m.changed[k] || k >= len(s.bytes) || s.bytes[k] != next[k]
		}
		m.touch(off, off+n)
		m.touch(int64(len(s.bytes)), int64(len(next)))
	}
	s.bytes = next
}

// touch touches whole granules. What a shrinking image cuts off stays touched: it may
// be dirty once the image has grown again.
func (m *bitmapModel) touch(off, end int64) {
	if off >= end {
		return
	}
	off, end = off&^(m.granularity-1), (end+m.granularity-1)&^(m.granularity-1)
	for k := off; k < min(end, int64(len(m.touched))); k++ {
		m.touched[k] = true
	}
}

func (m *bitmapModel) resize(size int) {
	m.changed = append(m.changed, make([]bool, max(0, size-len(m.changed)))...)[:size]
	m.touched = append(m.touched, make([]bool, max(0, size-len(m.touched)))...)
}

// step does something at random.
func (s *tracked) step() {
	s.t.Helper()
	size := int64(len(s.bytes))
	off := s.rng.Int64N(size)
	n := min(1+s.rng.Int64N(20_000), size-off)
	if s.rng.IntN(3) == 0 {
		unit := s.image.Units().Alloc
		off -= off % unit
		n = min((n+unit-1)/unit*unit, size-off)
	}
	next := bytes.Clone(s.bytes)
	switch k := s.rng.IntN(24); {
	case k < 8:
		p := make([]byte, n)
		fillRandom(p, s.rng.Uint64())
		must(s.t, s.d.WriteAt(s.t.Context(), p, off))
		copy(next[off:], p)
		s.effect(next, off, n)
	case k < 11:
		must(s.t, s.d.Zero(s.t.Context(), off, n, k == 8))
		clear(next[off : off+n])
		s.effect(next, off, n)
	case k < 13:
		must(s.t, s.d.Trim(s.t.Context(), off, n))
		lo, hi := s.blocks(off, n)
		clear(next[lo:hi])
		s.effect(next, off, n)
	case k == 13:
		s.resize()
	case k == 14:
		must(s.t, s.d.Flush(s.t.Context()))
	case k == 15 && s.opt.DataFile == "":
		s.publish(off, n)
	case k < 18 && s.opt.DataFile == "":
		s.snapshot()
	case k < 21:
		s.changeBitmaps()
	}
}

// blocks is the whole blocks in [off, off+n).
func (s *tracked) blocks(off, n int64) (lo, hi int64) {
	unit := s.image.Units().Alloc
	lo, hi = (off+unit-1)/unit*unit, (off+n)/unit*unit
	if off+n == int64(len(s.bytes)) {
		hi = off + n
	}
	return min(lo, hi), hi
}

func (s *tracked) resize() {
	size := max(512, (int64(len(s.bytes))*int64(50+s.rng.IntN(100))/100)&^511)
	size = min(size, 2*s.opt.Size)
	must(s.t, s.d.Resize(s.t.Context(), size, true))
	next := make([]byte, size)
	copy(next, s.bytes)
	s.effect(next, int64(len(s.bytes))-1, 1) // the last block may be written anew
}

// publish fills blocks by hand, those that are there and hidden or new ones.
func (s *tracked) publish(off, n int64) {
	ctx := s.t.Context()
	lo, hi := s.blocks(off, n)
	if lo == hi {
		return
	}
	next := bytes.Clone(s.bytes)
	p := make([]byte, (hi-lo+s.image.Units().Alloc-1)&^(s.image.Units().Alloc-1))
	fillRandom(p, s.rng.Uint64())
	if c, err := s.d.Claim(ctx, lo, hi-lo); err == nil {
		defer c.Release()
		for _, b := range c.Blocks() {
			must(s.t, s.d.FillBlocks(ctx, b.Blocks, p[b.Offset-lo:][:b.Length], 0))
		}
		must(s.t, c.Publish(ctx, lo, hi-lo))
	} else {
		b, err := s.d.Alloc(ctx, hi-lo, storage.AllocOptions{Contiguous: true})
		must(s.t, err)
		must(s.t, s.d.FillBlocks(ctx, b, p, 0))
		must(s.t, s.d.Update(ctx, lo, hi-lo, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
	}
	copy(next[lo:hi], p)
	s.effect(next, lo, hi-lo)
}

func (s *tracked) snapshot() {
	s.t.Helper()
	ids := slices.Sorted(maps.Keys(s.snapshots))
	must(s.t, s.d.Exclusively(s.t.Context(), func(ctx context.Context) error {
		switch k := s.rng.IntN(3); {
		case len(ids) < 2 || k == 0 && len(ids) < 5:
			made, err := s.image.CreateSnapshot(ctx, qcow2.SnapshotOptions{Name: "s"})
			s.snapshots[made.ID] = s.bytes
			return err
		case k == 1:
			id := ids[s.rng.IntN(len(ids))]
			delete(s.snapshots, id)
			return s.image.DeleteSnapshot(ctx, id)
		default:
			id := ids[s.rng.IntN(len(ids))]
			next := bytes.Clone(s.snapshots[id])
			s.effect(next, 0, int64(len(next)))
			return s.image.RevertTo(ctx, id)
		}
	}))
}

// changeBitmaps makes some changes at once.
func (s *tracked) changeBitmaps() {
	s.t.Helper()
	var changes []storage.BitmapChange
	next := map[string]*bitmapModel{}
	for name, m := range s.bitmaps {
		next[name] = m.clone()
	}
	for range 1 + s.rng.IntN(3) {
		names := slices.Sorted(maps.Keys(next))
		c := storage.BitmapChange{Kind: storage.BitmapChangeKind(1 + s.rng.IntN(6))}
		if len(names) == 0 || c.Kind == storage.BitmapDelete && len(names) < 3 {
			c.Kind = storage.BitmapCreate
		}
		if c.Kind == storage.BitmapCreate {
			c.Name, c.Granularity, c.Enabled = fmt.Sprint("b", s.rng.IntN(1000)), 512<<s.rng.IntN(6), s.rng.IntN(3) > 0
			if len(names) > 5 || next[c.Name] != nil {
				continue
			}
			next[c.Name] = &bitmapModel{enabled: c.Enabled, granularity: c.Granularity}
			next[c.Name].resize(len(s.bytes))
			changes = append(changes, c)
			continue
		}
		c.Name = names[s.rng.IntN(len(names))]
		m := next[c.Name]
		switch c.Kind {
		case storage.BitmapDelete:
			delete(next, c.Name)
		case storage.BitmapClear:
			clear(m.changed)
			clear(m.touched)
		case storage.BitmapEnable, storage.BitmapDisable:
			m.enabled = c.Kind == storage.BitmapEnable
		case storage.BitmapMerge:
			c.From = []string{names[s.rng.IntN(len(names))], names[s.rng.IntN(len(names))]}
			for _, name := range c.From {
				m.merge(next[name])
			}
		}
		changes = append(changes, c)
	}
	must(s.t, s.d.Exclusively(s.t.Context(), func(ctx context.Context) error { return s.image.ChangeBitmaps(ctx, changes) }))
	s.bitmaps = next
}

func (m *bitmapModel) merge(o *bitmapModel) {
	for k := range m.changed {
		m.changed[k] = m.changed[k] || o.changed[k]
	}
	const least = 512 // the smallest granule
	for k := 0; k < len(o.touched); k += least {
		if o.touched[k] {
			m.touch(int64(k), int64(k)+1)
		}
	}
}

// read is what the device reads.
func (s *tracked) read() []byte {
	s.t.Helper()
	p := make([]byte, s.d.Size())
	must(s.t, s.d.ReadAt(s.t.Context(), p, 0))
	return p
}

// check compares the bytes, and each bitmap, with the model.
func (s *tracked) check() {
	s.t.Helper()
	if got := s.read(); !bytes.Equal(got, s.bytes) {
		s.t.Fatal("the bytes differ from the model")
	}
	all, err := s.image.Bitmaps(s.t.Context())
	must(s.t, err)
	if len(all) != len(s.bitmaps) {
		s.t.Fatalf("%+v, want %d", all, len(s.bitmaps))
	}
	for _, b := range all {
		m := s.bitmaps[b.Name]
		if m == nil || b.Enabled != m.enabled || b.Granularity != m.granularity || b.Inconsistent {
			s.t.Fatalf("%+v, want %+v", b, m)
		}
		dirty := bitsOf(s.t, s.image, b.Name)
		if why := m.wrong(dirty, true); why != "" {
			s.t.Fatalf("%+v: %s", b, why)
		}
		if n := int64(len(slices.DeleteFunc(slices.Clone(dirty), func(d bool) bool { return !d }))); n != b.Dirty {
			s.t.Fatalf("%+v: %d bytes are dirty", b, n)
		}
	}
}

// bitsOf is which bytes a bitmap marks.
func bitsOf(t testing.TB, i *qcow2.Image, name string) []bool {
	t.Helper()
	dirty := make([]bool, 0, i.Size())
	must(t, i.Dirty(t.Context(), name, 0, i.Size(), func(off, n int64, d bool) error {
		if off != int64(len(dirty)) || n <= 0 {
			return errors.New("a gap")
		}
		dirty = append(dirty, slices.Repeat([]bool{d}, int(n))...)
		return nil
	}))
	return dirty
}

// wrong is what is wrong with a bitmap. exact: also with what is dirty needlessly.
func (m *bitmapModel) wrong(dirty []bool, exact bool) string {
	g := int(m.granularity)
	for k := 0; k < len(dirty); k += g {
		end := min(k+g, len(dirty))
		changed := slices.Contains(m.changed[min(k, len(m.changed)):min(end, len(m.changed))], true)
		switch {
		case changed && !dirty[k]:
			return fmt.Sprintf("the granule at %d is clean, but something has changed", k)
		case exact && dirty[k] && !slices.Contains(m.touched[k:end], true):
			return fmt.Sprintf("the granule at %d is dirty, but nothing was touched", k)
		}
	}
	return ""
}
