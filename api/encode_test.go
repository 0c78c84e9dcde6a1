package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// extentOf is what encoding/json is given.
func extentOf(m *storage.Mapping) Extent {
	yes := true
	e := Extent{
		Offset: m.Offset, Length: m.Length, Depth: int(m.Depth),
		Local: m.Status.Has(storage.Local), Zero: m.Status.Has(storage.Zero),
		Alloc: m.Status.Has(storage.Alloc), OffsetValid: m.Status.Has(storage.OffsetValid),
	}
	if e.OffsetValid {
		name := m.Node.Name()
		e.Node, e.NodeOffset = &name, &m.NodeOffset
	}
	if m.Flags&storage.Compressed != 0 {
		e.Compressed = &yes
	}
	if m.Flags&storage.Encrypted != 0 {
		e.Encrypted = &yes
	}
	return e
}

func testNodes() []*storage.Node {
	var nodes []*storage.Node
	for _, name := range []string{"disk.qcow2", `a "quoted"\name`, "zeichen-äöü-\u2028", "control\x01\n", "<html>&", "invalid-\xff\xfe", "."} {
		nodes = append(nodes, storage.NewNode(name, storagetest.NewMemFile(nil), storage.NodeOptions{}))
	}
	return nodes
}

// Whatever the order of extents, each is what encoding/json says it is.
func TestEncoderAgreesWithEncodingJSON(t *testing.T) {
	nodes := testNodes()
	mapping := rapid.Custom(func(t *rapid.T) storage.Mapping {
		m := storage.Mapping{
			Offset: rapid.Int64Range(0, storage.MaxSize).Draw(t, "offset"),
			Length: rapid.OneOf(rapid.Just(int64(65536)), rapid.Int64Range(1, storage.MaxSize)).Draw(t, "length"),
			Depth:  rapid.Int16Range(0, 63).Draw(t, "depth"),
			Status: storage.Status(rapid.IntRange(0, 15).Draw(t, "status")),
			Flags:  storage.Flags(rapid.IntRange(0, 3).Draw(t, "flags")),
		}
		if m.Status.Has(storage.OffsetValid) {
			m.Node = rapid.SampledFrom(nodes).Draw(t, "node")
			m.NodeOffset = rapid.Int64Range(0, storage.MaxSize).Draw(t, "node_offset")
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		var e encoder
		for _, m := range rapid.SliceOfN(mapping, 1, 100).Draw(t, "mappings") {
			text := e.append(nil, &m)
			var got Extent
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			if err := d.Decode(&got); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			want := extentOf(&m)
			if want.Node != nil {
				valid := strings.ToValidUTF8(*want.Node, "\uFFFD\uFFFD") // a replacement for each byte
				want.Node = &valid
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", text, diff)
			}
			if bytes.ContainsAny(text, "\n ") && m.Node == nil {
				t.Fatalf("white space in %s", text)
			}
		}
	})
}

// The members stand in the order of the contract's examples.
func TestEncoderText(t *testing.T) {
	nodes := testNodes()
	var e encoder
	for _, test := range []struct {
		m    storage.Mapping
		want string
	}{
		{
			storage.Mapping{Offset: 0, Length: 65536, Node: nodes[0], NodeOffset: 327680, Status: storage.Local | storage.Alloc | storage.OffsetValid},
			`{"offset":0,"length":65536,"local":true,"zero":false,"alloc":true,"offset_valid":true,"node":"disk.qcow2","node_offset":327680,"depth":0}`,
		},
		{
			storage.Mapping{Offset: 65536, Length: 65536, Status: storage.Local | storage.Alloc, Flags: storage.Compressed, Depth: 3},
			`{"offset":65536,"length":65536,"local":true,"zero":false,"alloc":true,"offset_valid":false,"depth":3,"compressed":true}`,
		},
		{
			storage.Mapping{Offset: 131072, Length: 1, Status: storage.Zero, Depth: 1},
			`{"offset":131072,"length":1,"local":false,"zero":true,"alloc":false,"offset_valid":false,"depth":1}`,
		},
	} {
		if got := string(e.append(nil, &test.m)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Fragments that share a slot are told apart.
func TestEncoderSlots(t *testing.T) {
	nodes := testNodes()
	var e encoder
	seen := map[string]bool{}
	for range 2 {
		for depth := range int16(64) {
			for _, node := range nodes[:2] {
				m := storage.Mapping{Offset: 1, Length: 2, Node: node, NodeOffset: 3, Depth: depth, Status: storage.Local | storage.Alloc | storage.OffsetValid}
				text := string(e.append(nil, &m))
				if !strings.HasSuffix(text, fmt.Sprintf(`"depth":%d}`, depth)) {
					t.Fatalf("depth %d: %s", depth, text)
				}
				seen[text] = true
			}
		}
	}
	if len(seen) != 128 {
		t.Errorf("%d different texts, want 128", len(seen))
	}
}

func BenchmarkEncoder(b *testing.B) {
	node := testNodes()[0]
	var e encoder
	var text []byte
	m := [2]storage.Mapping{
		{Length: 4096, Node: node, Status: storage.Local | storage.Alloc | storage.OffsetValid},
		{Length: 4096, Status: storage.Local | storage.Zero},
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m := &m[i&1]
		m.Offset, m.NodeOffset = int64(i)*4096, int64(i)*4096
		text = e.append(text[:0], m)
	}
}
