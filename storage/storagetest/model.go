package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
)

// longest is the most bytes that one property reads.
const longest = 1 << 20

// CheckContent tests with random fetches that a layer without a backing leads
// to the content, that every answer keeps the rules, and that what it says of a
// byte does not depend on what was asked. The whole map must have no more than
// [storage.MaxExtents].
func CheckContent(t *testing.T, m storage.Mapper, content io.ReaderAt) {
	t.Helper()
	size := m.Size()
	if size == 0 {
		return
	}
	whole := wholeMap(t, m)
	checked := storage.CheckMapper(m)
	rapid.Check(t, func(rt *rapid.T) {
		// Half of the requests begin or end beside an edge of the map.
		edge := whole.At(rapid.IntRange(0, whole.Len()-1).Draw(rt, "extent")).Offset
		off := rapid.OneOf(rapid.Int64Range(0, size-1), rapid.Int64Range(edge-2, edge+2)).Draw(rt, "off")
		off = min(max(off, 0), size-1)
		n := rapid.Int64Range(1, min(size-off, longest)).Draw(rt, "n")
		var l storage.ExtentList
		if rapid.Bool().Draw(rt, "window") {
			l.ResetWindow(off, off+n)
		}
		if err := checked.Fetch(t.Context(), off, n, &l); err != nil {
			rt.Fatal(err)
		}
		if err := agree(&l, whole); err != nil {
			rt.Fatal(err)
		}
		got, want := make([]byte, n), make([]byte, n)
		if err := readList(t.Context(), m, &l, got, off); err != nil {
			rt.Fatal(err)
		}
		if k, err := content.ReadAt(want, off); int64(k) < n {
			rt.Fatalf("content at %d: %v", off, err)
		}
		if !bytes.Equal(got, want) {
			rt.Fatal("the map leads to the wrong bytes")
		}
	})
}

// wholeMap is the map from beginning to end.
func wholeMap(t *testing.T, m storage.Mapper) *storage.ExtentList {
	t.Helper()
	l := new(storage.ExtentList)
	if m.Size() == 0 {
		return l
	}
	if err := storage.CheckMapper(m).Fetch(t.Context(), 0, m.Size(), l); err != nil {
		t.Fatalf("fetch of everything: %v", err)
	}
	return l
}

// agree reports where part says something else than whole. A compressed unit is
// the same one whole.
func agree(part, whole *storage.ExtentList) error {
	for i := range part.Len() {
		m := *part.At(i)
		for at := whole.Find(m.Offset); m.Length > 0; at++ {
			if at < 0 || at >= whole.Len() {
				return fmt.Errorf("extent at %d is unknown to the whole map", m.Offset)
			}
			want := *whole.At(at)
			want.Clip(m.Offset, m.End())
			got := m
			got.Clip(want.Offset, want.End())
			if got != want {
				return fmt.Errorf("extent is %+v, and in the whole map %+v", got, want)
			}
			if rest := m.End() - want.End(); rest > 0 {
				m.Clip(want.End(), m.End())
			} else {
				break
			}
		}
	}
	return nil
}

// Read reads from a layer without a backing in the slow and obvious way: an
// oracle for what is built for speed.
func Read(ctx context.Context, m storage.Mapper, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	var l storage.ExtentList
	l.ResetWindow(off, off+int64(len(p)))
	if err := m.Fetch(ctx, off, int64(len(p)), &l); err != nil {
		return err
	}
	return readList(ctx, m, &l, p, off)
}

func readList(ctx context.Context, mapper storage.Mapper, l *storage.ExtentList, p []byte, off int64) error {
	if !l.Covers(off, int64(len(p))) {
		return fmt.Errorf("%w: %d to %d does not cover %d bytes at %d", storage.ErrContract, l.Start(), l.End(), len(p), off)
	}
	for len(p) > 0 {
		m := *l.At(l.Find(off))
		m.Clip(off, off+int64(len(p)))
		if err := readMapping(ctx, mapper, &m, p[:m.Length]); err != nil {
			return err
		}
		p, off = p[m.Length:], m.End()
	}
	return nil
}

func readMapping(ctx context.Context, mapper storage.Mapper, m *storage.Mapping, p []byte) error {
	switch {
	case !m.Status.Has(storage.Local) || m.Status.Has(storage.Zero):
		clear(p)
		return nil
	case m.Flags&storage.Compressed != 0:
		return readPacked(ctx, mapper, m, p)
	case !m.Status.Has(storage.OffsetValid) || m.Flags&storage.Encrypted != 0:
		return fmt.Errorf("%w: data at %d cannot be read: %+v", storage.ErrUnsupported, m.Offset, *m)
	}
	n, err := m.Node.ReadAt(ctx, p, m.NodeOffset)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) && m.Flags&storage.ZeroTail != 0 {
		clear(p[n:])
		return nil
	}
	return fmt.Errorf("data at %d: %w", m.Offset, err)
}

func readPacked(ctx context.Context, mapper storage.Mapper, m *storage.Mapping, p []byte) error {
	unpacker, ok := mapper.(storage.Unpacker)
	if !ok {
		return fmt.Errorf("%w: a compressed extent from a mapper that cannot unpack", storage.ErrContract)
	}
	src := make([]byte, m.PackedLength)
	n, err := m.Node.ReadAt(ctx, src, m.NodeOffset)
	if n < len(src) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("packed data at %d: %w", m.Offset, err)
	}
	unit := make([]byte, unpacker.PackedUnit())
	if err := unpacker.Unpack(unit, src[:n]); err != nil {
		return fmt.Errorf("packed data at %d: %w", m.Offset, err)
	}
	copy(p, unit[m.Offset%int64(len(unit)):])
	return nil
}
