package storagetest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/extentd/extentd/storage"
)

// A CreateWritable makes a new image of that size, 4 MiB, in blocks of at most
// 64 KiB, without a backing, which reads as zeros. It returns what opens it, each time after the
// one before has been closed, for reading: nobody has started writing. What must
// be cleaned up beside the image, such as its nodes, it registers with t.
type CreateWritable func(t *testing.T, size int64) (open func(t *testing.T) WritableImage)

// TestWritableMapper tests that a storage.WritableMapper keeps its contract, and
// that it keeps those of storage.Pinner and storage.Resizer if it says so. What
// must not be lost in a crash is tested elsewhere, see [Journal].
func TestWritableMapper(t *testing.T, create CreateWritable) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*writableSuite, *testing.T)
	}{
		{"for reading", (*writableSuite).forReading},
		{"units", (*writableSuite).units},
		{"alloc", (*writableSuite).alloc},
		{"free", (*writableSuite).free},
		{"free of a part", (*writableSuite).freePart},
		{"free of what is not reserved", (*writableSuite).freeConflicts},
		{"update to data", (*writableSuite).toData},
		{"update to data by units", (*writableSuite).toDataUnits},
		{"update to what is not reserved", (*writableSuite).dataConflicts},
		{"update to zeros", (*writableSuite).toZeros},
		{"update to anchored and back", (*writableSuite).anchored},
		{"update of the last block", (*writableSuite).lastBlock},
		{"bad updates", (*writableSuite).badUpdates},
		{"metadata", (*writableSuite).metadata},
		{"pins", (*writableSuite).pins},
		{"reuse", (*writableSuite).reuse},
		{"resize", (*writableSuite).resize},
		{"random changes", (*writableSuite).random},
		{"concurrent", (*writableSuite).concurrent},
		{"concurrent readers", (*writableSuite).concurrentReaders},
		{"cancelled", (*writableSuite).cancelled},
		{"closed", (*writableSuite).closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &writableSuite{open: create(t, writableSize), m: newModel(writableSize)}
			s.image = s.open(t)
			t.Cleanup(func() { _ = s.image.Close() }) // of the last one that was opened
			s.granule = s.image.Units()
			s.block = max(s.granule.Alloc, finest)
			if c.name != "for reading" {
				s.startWriting(t)
			}
			c.test(s, t)
		})
	}
}

// writableSize is the size of the images.
const writableSize = 4 << 20

type writableSuite struct {
	open    func(t *testing.T) WritableImage
	image   WritableImage
	granule storage.Units
	block   int64 // a multiple of granule.Alloc
	m       *model
}

func (s *writableSuite) startWriting(t *testing.T) {
	t.Helper()
	if err := s.image.StartWriting(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// reopen closes the image and opens it again.
func (s *writableSuite) reopen(t *testing.T) {
	t.Helper()
	if err := s.image.Close(); err != nil {
		t.Fatal(err)
	}
	s.image = s.open(t)
}

// check compares the whole image with the model.
func (s *writableSuite) check(t *testing.T) {
	t.Helper()
	if got := s.image.Size(); got != s.m.size() {
		t.Fatalf("Size() = %d, want %d", got, s.m.size())
	}
	p := make([]byte, s.m.size())
	if err := ReadPinned(t.Context(), s.image, p, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.m.equal(p, 0); err != nil {
		t.Fatal(err)
	}
	wholeMap(t, s.image)
}

// alike reports what the map says of every byte, to compare before and after.
func (s *writableSuite) alike(t *testing.T) []storage.Mapping {
	t.Helper()
	l := wholeMap(t, s.image)
	all := make([]storage.Mapping, l.Len())
	for i := range all {
		all[i] = *l.At(i)
	}
	return all
}

// write writes in the slow way.
func (s *writableSuite) write(t *testing.T, p []byte, off int64) {
	t.Helper()
	if err := Write(t.Context(), s.image, p, off); err != nil {
		t.Fatalf("write of %d bytes at %d: %v", len(p), off, err)
	}
	s.m.write(p, off)
}

// fill writes n bytes that are not zeros.
func (s *writableSuite) fill(t *testing.T, off, n int64, b byte) {
	t.Helper()
	s.write(t, bytes.Repeat([]byte{b}, int(n)), off)
}

// update makes a range zeros of some kind, and reports whether it can: some
// formats have no anchored blocks.
func (s *writableSuite) update(t *testing.T, off, n int64, kind storage.TargetKind) bool {
	t.Helper()
	err := s.image.Update(t.Context(), off, n, storage.Target{Kind: kind})
	if kind == storage.ToAnchored && errors.Is(err, storage.ErrUnsupported) {
		return false
	}
	if err != nil {
		t.Fatalf("update of %d bytes at %d to %v: %v", n, off, kind, err)
	}
	s.m.write(make([]byte, n), off)
	return true
}

// reserve reserves so many blocks for a guest offset, in one run.
func (s *writableSuite) reserve(t *testing.T, guest, blocks int64) storage.Blocks {
	t.Helper()
	b, err := s.image.Alloc(t.Context(), blocks*s.block, storage.AllocOptions{Guest: guest, Contiguous: true})
	if err != nil {
		t.Fatal(err)
	}
	if b.Length != blocks*s.block || b.Node == nil || b.Offset < 0 || b.Offset%s.granule.Alloc != 0 {
		t.Fatalf("%d bytes reserved are %d at %d", blocks*s.block, b.Length, b.Offset)
	}
	return b
}

// put writes to reserved blocks.
func (s *writableSuite) put(t *testing.T, b storage.Blocks, at int64, p []byte) {
	t.Helper()
	if err := writeNode(t.Context(), s.image, b.Node, p, b.Offset+at); err != nil {
		t.Fatal(err)
	}
}

// data is the target of the bytes in b at an offset.
func data(b storage.Blocks, at int64) storage.Target {
	return storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset + at}
}

// mappings are what the image says of a range, cut at it.
func (s *writableSuite) mappings(t *testing.T, off, n int64) []storage.Mapping {
	t.Helper()
	var l storage.ExtentList
	if err := storage.CheckMapper(s.image).Fetch(t.Context(), off, n, &l); err != nil {
		t.Fatal(err)
	}
	var all []storage.Mapping
	for i := range l.Len() {
		if m := *l.At(i); m.Offset < off+n && m.End() > off {
			m.Clip(off, off+n)
			all = append(all, m)
		}
	}
	return all
}
