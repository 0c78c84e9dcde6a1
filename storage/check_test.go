package storage_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
)

// fake is a mapper that answers with a list of its own.
type fake struct {
	size int64
	list []storage.Mapping
	err  error
}

func (f *fake) Size() int64  { return f.size }
func (f *fake) Close() error { return nil }

func (f *fake) Fetch(_ context.Context, _, _ int64, into *storage.ExtentList) error {
	for _, m := range f.list {
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return f.err
}

// TestCheckMapper: each rule of a fetch, broken alone.
func TestCheckMapper(t *testing.T) {
	n := node("node")
	broken := errors.New("broken")
	local := func(off, length int64) storage.Mapping {
		return storage.Mapping{Offset: off, Length: length, Status: storage.Local | data, Node: n, NodeOffset: off + 1000}
	}
	packed := storage.Mapping{Offset: 0, Length: 100, Status: storage.Local | storage.Alloc, Flags: storage.Compressed, Node: n, NodeOffset: 7, PackedLength: 9}
	change := func(m storage.Mapping, f func(m *storage.Mapping)) []storage.Mapping {
		f(&m)
		return []storage.Mapping{m}
	}
	type m = storage.Mapping
	for _, c := range []struct {
		name string
		list []m
		want string // in the text of the error; "" for none
	}{
		{"good", []m{local(0, 100)}, ""},
		{"good, exactly what was asked", []m{local(10, 50)}, ""},
		{"good, several", []m{local(0, 20), {Offset: 20, Length: 30, Status: storage.Local | storage.Zero}, {Offset: 50, Length: 50}}, ""},
		{"good, compressed", []m{packed}, ""},
		{"good, encrypted", change(packed, func(m *m) { m.Flags, m.PackedLength, m.Node, m.NodeOffset = storage.Encrypted, 0, nil, 0 }), ""},
		{"good, far in the node", change(local(0, 100), func(m *m) { m.NodeOffset = storage.MaxSize }), ""},

		{"nothing", nil, "answered with 0 to 0"},
		{"begins late", []m{local(11, 89)}, "answered with 11 to 100"},
		{"ends early", []m{local(0, 59)}, "answered with 0 to 59"},
		{"past the size", []m{local(0, 101)}, "past the size 100"},
		{"gap", []m{local(0, 20), local(21, 79)}, "does not follow"},
		{"overlap", []m{local(0, 20), local(19, 81)}, "does not follow"},
		{"compressed without packed bytes", change(packed, func(m *m) { m.PackedLength = 0 }), "packed length"},
		{"compressed with a negative length", change(packed, func(m *m) { m.PackedLength = -1 }), "packed length"},
		{"compressed nowhere", change(packed, func(m *m) { m.Node = nil }), "no valid place"},
		{"compressed at an offset", change(packed, func(m *m) { m.Status |= storage.OffsetValid }), "compressed data is"},
		{"compressed zeros", change(packed, func(m *m) { m.Status |= storage.Zero }), "compressed data is"},
		{"compressed and deferred", change(packed, func(m *m) { m.Status = 0 }), "compressed data is"},
		{"packed but not compressed", change(local(0, 100), func(m *m) { m.PackedLength = 5 }), "packed length"},
		{"no node", change(local(0, 100), func(m *m) { m.Node = nil }), "no valid place"},
		{"negative place", change(local(0, 100), func(m *m) { m.NodeOffset = -1 }), "no valid place"},
		{"place past everything", change(local(0, 100), func(m *m) { m.NodeOffset = storage.MaxSize + 1 }), "no valid place"},
		{"node of nothing", []m{{Offset: 0, Length: 100, Status: storage.Local | storage.Zero, Node: n}}, "says it does not know"},
		{"unknown bit", change(local(0, 100), func(m *m) { m.Status |= 16 }), "Status(29)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l storage.ExtentList
			f := &fake{size: 100, list: c.list}
			err := storage.CheckMapper(f).Fetch(t.Context(), 10, 50, &l)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, storage.ErrContract) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Fetch = %v, want %q", err, c.want)
			}
		})
	}

	checked := storage.CheckMapper(&fake{size: 7, err: broken})
	var l storage.ExtentList
	if err := checked.Fetch(t.Context(), 0, 1, &l); !errors.Is(err, broken) {
		t.Errorf("the mapper's own error becomes %v", err)
	}
	if checked.Size() != 7 {
		t.Errorf("Size() = %d", checked.Size())
	}
}

// TestCheckStatuses: exactly the statuses of the tables pass.
func TestCheckStatuses(t *testing.T) {
	n := node("node")
	for s := range storage.Status(16) {
		m := storage.Mapping{Offset: 0, Length: 100, Status: s}
		if s.Has(storage.OffsetValid) {
			m.Node = n
		}
		var l storage.ExtentList
		err := storage.CheckMapper(&fake{size: 100, list: []storage.Mapping{m}}).Fetch(t.Context(), 0, 100, &l)
		if valid := storage.FormatStatuses()[s].Valid; valid != (err == nil) || !valid && !errors.Is(err, storage.ErrContract) {
			t.Errorf("format, %v: %v", s, err)
		}
		m.Node = n // a node says so of all
		l.Reset()
		if err := l.Add(m); err != nil {
			t.Fatal(err)
		}
		err = storage.CheckNodeExtents(&l, 50)
		if valid := storage.ProtocolStatuses()[s].Valid; valid != (err == nil) || !valid && !errors.Is(err, storage.ErrContract) {
			t.Errorf("protocol, %v: %v", s, err)
		}
	}
}

func TestCheckNodeExtents(t *testing.T) {
	n := node("node")
	good := storage.Mapping{Offset: 100, Length: 10, Status: data, Node: n, NodeOffset: 100}
	for _, c := range []struct {
		name string
		off  int64
		list []storage.Mapping
		want string
	}{
		{"good", 100, []storage.Mapping{good}, ""},
		{"good, last byte", 109, []storage.Mapping{good}, ""},
		{"nothing", 100, nil, "no extent at 100"},
		{"begins late", 99, []storage.Mapping{good}, "no extent at 99"},
		{"ends early", 110, []storage.Mapping{good}, "no extent at 110"},
		{"far", math.MaxInt64, []storage.Mapping{good}, "no extent at"},
		{"no node", 100, []storage.Mapping{{Offset: 100, Length: 10, Status: data}}, "no valid place"},
		{"local", 100, []storage.Mapping{{Offset: 100, Length: 10, Status: storage.Local | data, Node: n}}, "no backing to tell apart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l storage.ExtentList
			for _, m := range c.list {
				if err := l.Add(m); err != nil {
					t.Fatal(err)
				}
			}
			err := storage.CheckNodeExtents(&l, c.off)
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, storage.ErrContract) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("CheckNodeExtents = %v, want %q", err, c.want)
			}
		})
	}
}

// TestCheckFindsChangedLists: who reaches into a list is found out.
func TestCheckFindsChangedLists(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(m *storage.Mapping)
	}{
		{"gap", func(m *storage.Mapping) { m.Offset++ }},
		{"no length", func(m *storage.Mapping) { m.Length = 0 }},
		{"negative length", func(m *storage.Mapping) { m.Length = -1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l storage.ExtentList
			for i := range int64(3) {
				if err := l.Add(storage.Mapping{Offset: 10 * i, Length: 10, Status: storage.Local | storage.Zero | storage.Status(i%2)<<2}); err != nil {
					t.Fatal(err)
				}
			}
			c.change(l.At(1))
			if err := storage.CheckFetch(&l, 0, 30, 30); !errors.Is(err, storage.ErrContract) {
				t.Errorf("CheckFetch = %v", err)
			}
		})
	}
}
